"""Images of a data set, by row: read in 8-bit RGB, or no more than their headers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.splits import place

__all__ = ["named", "opened", "picture", "pictures", "reading", "size", "to_rgb"]


def named(column: str, row: int, split: str) -> str:
    """How messages name what stands in a row; see :func:`adamnx_hf.common.splits.place`."""
    name, number = place(split, row)
    return f"{column}: row {number} of the split {name!r}"


def _errors() -> tuple[type[Exception], ...]:
    """What PIL raises of an image that is broken, or that is larger than it reads."""
    from PIL.Image import DecompressionBombError

    # A broken PNG or WebP ends in a SyntaxError, and now and then a TIFF in a TypeError.
    return OSError, ValueError, SyntaxError, TypeError, DecompressionBombError


@contextlib.contextmanager
def reading(column: str, row: int, split: str) -> Iterator[None]:
    """Has PIL's errors name the row.

    Raises:
        RecipeError: in place of what is raised within.
    """
    from PIL.Image import DecompressionBombError

    try:
        yield
    except _errors() as error:
        remedy = "resize it" if isinstance(error, DecompressionBombError) else "correct it"
        reason = str(error).rstrip(".")
        raise RecipeError(
            f"{named(column, row, split)} cannot be read ({reason}); {remedy}, or leave the row out"
        ) from error


def to_rgb(image: Any) -> Any:
    """PIL's `image` in RGB.

    Raises:
        ValueError: it has more than 8 bits a channel, which PIL would clip: most of it would be white.
    """
    _check_depth(image)
    return image.convert("RGB")


def picture(data: Any, column: str, row: int, split: str) -> Any:
    """The image in a row of a `datasets` data set, in RGB.

    Raises:
        RecipeError: there is none, or it cannot be read; names the row.
    """
    with reading(column, row, split):
        image = data[row][column]
        if image is not None:
            return to_rgb(image)
    raise _none(column, row, split)


def pictures(data: Any, column: str, rows: Iterable[int], split: str) -> list[Any]:
    """As :func:`picture`, of several rows, which are read together."""
    rows = list(rows)
    with contextlib.suppress(*_errors()):
        images = data[rows][column]
        if all(image is not None for image in images):
            return [to_rgb(image) for image in images]
    return [picture(data, column, row, split) for row in rows]  # which of them it is, each alone says


def opened(stored: Any, column: str, row: int, split: str, as_rgb: bool) -> Any:
    """An image as `datasets.Image(decode=False)` stores it, opened by PIL, which reads header and EXIF data.

    Raises:
        RecipeError: there is none, it cannot be read, or with `as_rgb` not by :func:`to_rgb`; names the row.
    """
    from PIL import Image

    if stored is None:
        raise _none(column, row, split)
    with reading(column, row, split):
        image = Image.open(stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"]))
        if as_rgb:
            _check_depth(image)
        image.getexif()  # may be broken by itself, and in a PNG come after the pixels, which are then read
    return image


def size(image: Any) -> tuple[int, int]:
    """Width and height of what :func:`opened` returns, turned as its EXIF data say, as `datasets` does."""
    width, height = image.size
    return (height, width) if image.getexif().get(0x0112, 1) >= 5 else (width, height)


def _none(column: str, row: int, split: str) -> RecipeError:
    return RecipeError(f"{named(column, row, split)} has none; leave the row out")


def _check_depth(image: Any) -> None:
    if image.mode[0] in "IF":
        raise ValueError(
            f"its pixels have more than 8 bits, PIL's mode {image.mode}: RGB does not hold them; convert it"
        )
