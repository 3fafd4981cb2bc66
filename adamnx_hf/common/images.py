"""Images of a data set, by row: read in 8-bit RGB, or no more than their headers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.splits import name_row

__all__ = ["find_size", "name_errors", "open_image", "read_image", "read_images", "to_rgb"]


def _errors() -> tuple[type[Exception], ...]:
    """Returns the errors that PIL raises for an image that is broken, or larger than it reads."""
    from PIL.Image import DecompressionBombError

    # A broken PNG or WebP ends in a SyntaxError, and now and then a TIFF in a TypeError.
    return OSError, ValueError, SyntaxError, TypeError, DecompressionBombError


@contextlib.contextmanager
def name_errors(column: str, row: int, split: str) -> Iterator[None]:
    """Turns PIL's errors into RecipeErrors that name the row.

    Raises:
        RecipeError: PIL cannot read the image.
    """
    from PIL.Image import DecompressionBombError

    try:
        yield
    except _errors() as error:
        remedy = "resize it" if isinstance(error, DecompressionBombError) else "correct it"
        reason = str(error).rstrip(".")
        raise RecipeError(
            f"{name_row(column, row, split)} cannot be read ({reason}); {remedy}, or leave the row out"
        ) from error


def to_rgb(image: Any) -> Any:
    """Converts a PIL image to RGB.

    Raises:
        ValueError: the image has more than 8 bits a channel. PIL would clip them: most of it would be white.
    """
    _check_depth(image)
    return image.convert("RGB")


def read_image(data: Any, column: str, row: int, split: str) -> Any:
    """Reads the image in a row of a `datasets` data set, in RGB.

    Raises:
        RecipeError: the row has no image, or it cannot be read. The message names the row.
    """
    with name_errors(column, row, split):
        image = data[row][column]
        if image is not None:
            return to_rgb(image)
    raise _none(column, row, split)


def read_images(data: Any, column: str, rows: Iterable[int], split: str) -> list[Any]:
    """Reads the images of several rows together, each as :func:`read_image` does."""
    rows = list(rows)
    with contextlib.suppress(*_errors()):
        images = data[rows][column]
        if all(image is not None for image in images):
            return [to_rgb(image) for image in images]
    # One by one, so that the error names the row.
    return [read_image(data, column, row, split) for row in rows]


def open_image(stored: Any, column: str, row: int, split: str, as_rgb: bool) -> Any:
    """Opens an image and reads no more than its header and EXIF data.

    Args:
        stored: the image, as `datasets.Image(decode=False)` stores it.
        column, row, split: its place, for the message.
        as_rgb: whether :func:`to_rgb` has to be able to convert the image.

    Raises:
        RecipeError: there is no image, or it cannot be read. The message names the row.
    """
    from PIL import Image

    if stored is None:
        raise _none(column, row, split)
    with name_errors(column, row, split):
        image = Image.open(stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"]))
        if as_rgb:
            _check_depth(image)
        image.getexif()  # may be broken; in a PNG they follow the pixels, which are then read, too
    return image


def find_size(image: Any) -> tuple[int, int]:
    """Returns an image's width and height, turned as its EXIF data say, as `datasets` does."""
    width, height = image.size
    return (height, width) if image.getexif().get(0x0112, 1) >= 5 else (width, height)


def _none(column: str, row: int, split: str) -> RecipeError:
    return RecipeError(f"{name_row(column, row, split)} has none; leave the row out")


def _check_depth(image: Any) -> None:
    if image.mode[0] in "IF":
        raise ValueError(
            f"its pixels have more than 8 bits, PIL's mode {image.mode}: RGB does not hold them; convert it"
        )
