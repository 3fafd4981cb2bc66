"""What users are told when something they wrote does not fit."""

from __future__ import annotations

import argparse
import difflib
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["RecipeError", "close_bars", "nearest", "number"]


class RecipeError(ValueError):
    """A recipe, a flag or data that do not fit. The message is one line, with the remedy."""


def close_bars() -> None:
    """Ends the progress bars that an error has left open, so that what is said next has a line of its own."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def nearest(word: str, valid: Iterable[object], most: int = 12) -> str:
    """`"; did you mean 'x'?"`, or the list of what is valid where nothing is near and it is short."""
    words = [str(item) for item in valid]
    if near := difflib.get_close_matches(word, words, n=1):
        return f"; did you mean {near[0]!r}?"
    return f"; valid: {', '.join(words)}" if 0 < len(words) <= most else ""


def number(kind: Callable[[str], Any], least: float, inclusive: bool = True) -> Callable[[str], Any]:
    """An argparse type: a finite number, at least (or above) `least`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and (value >= least if inclusive else value > least)):
            kind_name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {kind_name} {'from' if inclusive else 'above'} {least:g}"
            )
        return value

    return parse
