"""Errors that users can act on, and the words they are told in."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["RecipeError", "close_bars", "in_one_line", "nearest", "number", "printable"]


class RecipeError(ValueError):
    """Says that a recipe, a flag or data do not fit. The message is one line, with the remedy.

    Args:
        message: the line. It is made :func:`printable`, because it may quote what somebody else has written.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Returns `text` on one line in which control characters, which a terminal would obey, are escapes."""
    line = re.sub(r"\s*[\n\r\x0b\x0c\x85\u2028\u2029]\s*", " ", text.strip())
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode()
        for c in line
    )


def close_bars() -> None:
    """Ends the progress bars that an error has left open, so that the next message has a line of its own."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def in_one_line(error: Exception) -> Exception:
    """Returns `error` as a RecipeError, save a missing module, for which the command has its own words."""
    if isinstance(error, RecipeError):  # from a worker of the data loader: its traceback comes before it
        return RecipeError(str(error).rpartition("RecipeError: ")[2].strip())
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error
    plain = isinstance(error, ValueError | TypeError | ImportError | OSError | RuntimeError) and str(error)
    return RecipeError(str(error) if plain else f"{type(error).__name__}: {error}")


def nearest(word: str, valid: Iterable[object], most: int = 12) -> str:
    """Returns the end of an error message: `"; did you mean 'x'?"`, or a short list of what is valid.

    Args:
        word: the word that is not valid.
        valid: the words that are.
        most: how many words a short list has at most. A longer one is not shown.
    """
    words = [str(item) for item in valid]
    if near := difflib.get_close_matches(word, words, n=1):
        return f"; did you mean {near[0]!r}?"
    return f"; valid: {', '.join(words)}" if 0 < len(words) <= most else ""


def number(kind: Callable[[str], Any], least: float, inclusive: bool = True) -> Callable[[str], Any]:
    """Makes an argparse type of finite numbers.

    Args:
        kind: `int` or `float`.
        least: the smallest number.
        inclusive: whether `least` itself is one.
    """

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
