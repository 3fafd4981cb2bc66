"""Masks of class ids, read and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Image
from tqdm import tqdm

from adamnx_hf.common import images
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.splits import name_row

__all__ = ["PairFormat", "check_pairs", "find_class_ids", "find_void_id"]


def find_void_id(ignore_index: int, mask_values: Sequence[int] | None = None) -> int:
    """Finds the id that :func:`find_class_ids` gives to pixels that do not count.

    Args:
        ignore_index: the value that such pixels have in the masks.
        mask_values: the values of the classes 0, 1, ... Default: the ids themselves.

    Returns:
        `ignore_index` itself by default. With `mask_values`, 255 or the number of classes, whichever is more:
        no class has this id.
    """
    return ignore_index if mask_values is None else max(255, len(mask_values))


def find_class_ids(values: np.ndarray, mask_values: Sequence[int] | None = None) -> np.ndarray:
    """Finds the class ids that the values in a mask stand for.

    The check, training, evaluation and pictures all read masks by this function.

    Args:
        values: a mask, or some of its values: whole numbers of any shape. A 1-bit mask's values are bool and
            stand for 0 and 1.
        mask_values: the values of the classes 0, 1, ... Default: the ids themselves.

    Returns:
        Ids of the same shape, uint8 where they fit and int64 otherwise. A value that is not in `mask_values`
        becomes :func:`find_void_id`; :func:`check_pairs` refuses such values, unless they do not count.
    """
    if mask_values is None:
        return values.astype(np.uint8 if values.dtype in (np.uint8, np.bool_) else np.int64, copy=False)
    if values.dtype == np.uint8 and values.size > 256:  # a table of all possible values is faster
        return find_class_ids(np.arange(256), mask_values)[values]
    order = np.argsort(mask_values)
    known = np.asarray(mask_values)[order]
    places = np.searchsorted(known, values).clip(max=len(known) - 1)
    void = find_void_id(0, mask_values)
    ids = np.where(known[places] == values, order[places], void)
    return ids.astype(np.uint8 if void < 256 else np.int64)


class PairFormat(NamedTuple):
    """The columns of images and masks, and the values in masks."""

    image_column: str
    mask_column: str
    mask_values: Sequence[int] | None = None
    """The values of the classes 0, 1, ... in the masks. None: the ids themselves."""


def check_pairs(
    data: Any,
    form: PairFormat,
    *,
    split: str,
    classes: int | None,
    ignore_index: int,
    quiet: bool = False,
) -> tuple[np.ndarray, int]:
    """Checks that every row has an image and a mask of its size, with known values only.

    Decodes every mask; of the images it reads only the headers.

    Args:
        data: a split.
        form: the columns of the pairs, and the values in masks.
        split: the name of the split, for the message.
        classes: how many classes there are, with ids from 0. None: as many as there are mask values, or else
            up to the highest id that is found, which is at most 1023.
        ignore_index: the value of pixels that do not count, unless it is among the mask values.
        quiet: no progress bar.

    Returns:
        How many pixels each class has, (classes,) int64, and how many do not count.

    Raises:
        RecipeError: a row does not fit; the message names it.
    """
    raw = data.select_columns([form.image_column, form.mask_column])
    for column in (form.image_column, form.mask_column):
        raw = raw.cast_column(column, Image(decode=False))
    classes = classes or len(form.mask_values or ()) or None
    most = classes or 1024  # values of more than 8 bits may be no ids: so many classes would take all memory
    counts = Counter[int]()
    rows = tqdm(raw, desc=f"checking {split}", unit=" masks", leave=False, disable=quiet)
    for row, pair in enumerate(rows):
        mask = _open_mask(pair, form, row, split)
        with images.name_errors(form.mask_column, row, split):
            values, pixels = np.unique(np.asarray(mask), return_counts=True)
        values = values.astype(np.int64)
        _check_values(values, form, most, ignore_index, name_row(form.mask_column, row, split))
        ids = find_class_ids(values, form.mask_values)
        counts.update(dict(zip(ids.tolist(), pixels.tolist(), strict=True)))
    uncounted = counts.pop(find_void_id(ignore_index, form.mask_values), 0)
    if not counts:
        raise RecipeError(
            f"{form.mask_column}: in the split {split!r} no pixel counts, all are {ignore_index}, "
            f"ignore_index; if that is a class, give each one its value: --mask_values VALUE {ignore_index}"
        )
    return np.array([counts[i] for i in range(classes or max(counts) + 1)]), uncounted


def _open_mask(pair: Mapping[str, Any], form: PairFormat, row: int, split: str) -> Any:
    """Opens the mask of a row, PIL's.

    Raises:
        RecipeError: the mask is not one channel of whole numbers of its image's size.
    """
    sizes = []
    for column in (form.image_column, form.mask_column):
        mask = images.open_image(pair[column], column, row, split, as_rgb=column == form.image_column)
        with images.name_errors(column, row, split):  # reads all of a PNG, for its EXIF data
            width, height = images.find_size(mask)
        sizes.append(f"{width} x {height}")
    where = name_row(form.mask_column, row, split)
    if sizes[0] != sizes[1]:
        raise RecipeError(
            f"{where} is {sizes[1]} pixels, its image {sizes[0]}; a mask has to have its image's size"
        )
    if len(mask.getbands()) != 1:
        raise RecipeError(
            f"{where} is a picture in colours ({mask.mode}), not one channel of class ids; convert it"
        )
    if mask.mode == "F":
        raise RecipeError(f"{where} holds fractions (PIL's mode F), not class ids; convert it to whole ones")
    return mask


def _check_values(values: np.ndarray, form: PairFormat, most: int, ignore_index: int, where: str) -> None:
    """Checks that the values in a mask are known.

    Args:
        values: the values in the mask, each once.
        form: has the mask values, which are known. Without them, ids below `most` are.
        most: see `form`.
        ignore_index: is known, too.
        where: names the mask in the message.

    Raises:
        RecipeError: a value is not known.
    """
    known = range(most) if form.mask_values is None else set(form.mask_values)
    if strange := [value for value in values.tolist() if value not in known and value != ignore_index]:
        what, those = "class id", f"0 to {most - 1} and {ignore_index}, which does not count"
        if form.mask_values is not None:
            what, those = "value", f"mask_values and ignore_index, {ignore_index}"
        raise RecipeError(
            f"{where} holds the {what} {strange[0]}; known are {those}: see class_names and ignore_index"
            ", or give each class the value that stands for it: --mask_values VALUE VALUE ..."
        )
