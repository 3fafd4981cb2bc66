"""What users are told when something they wrote does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["RecipeError", "nearest"]


class RecipeError(ValueError):
    """A recipe, a flag or data that do not fit. The message is one line, with the remedy."""


def nearest(word: str, valid: Iterable[object], most: int = 12) -> str:
    """`"; did you mean 'x'?"`, or the list of what is valid where nothing is near and it is short."""
    words = [str(item) for item in valid]
    if near := difflib.get_close_matches(word, words, n=1):
        return f"; did you mean {near[0]!r}?"
    return f"; valid: {', '.join(words)}" if 0 < len(words) <= most else ""
