"""The objects of each row, read and checked: corners in pixels, class ids and marks of difficult ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Image
from torch import Tensor
from torchvision.ops import box_convert
from tqdm import tqdm

from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.common.images import find_size, open_image
from adamnx_hf.common.splits import find_row
from adamnx_hf.tasks.object_detection.arguments import Arguments
from adamnx_hf.tasks.object_detection.schema import split_fields

__all__ = ["read_objects"]


#: Pixels by which rounding may move a box out of its image. The box is cut off at the edge.
ROUNDING = 1.0

#: Amount by which rounding may move a share out of the range from 0 to 1.
SHARE_ROUNDING = 0.01


def read_objects(
    data: Any, arguments: Arguments, split: str, classes: Sequence[str], quiet: bool
) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Reads each row's objects, (n, 6) as in a DetectionDataset, and each image's height and width.

    Of the images only the headers are read.

    Raises:
        RecipeError: an image is missing, or RGB cannot hold it; objects are no numbers; a box has another
            unit, has no area or reaches out of its image; or a class is unknown. The message names the row.
    """
    column = arguments.image_column
    headers = data.select_columns([column, arguments.objects_column]).cast_column(column, Image(decode=False))
    objects, sizes = [], []
    rows = tqdm(headers, desc=f"checking {split}", unit=" images", leave=False, disable=quiet)
    for i, row in enumerate(rows):
        width, height = find_size(open_image(row[column], column, i, split, as_rgb=True))
        objects.append(_read_numbers(row[arguments.objects_column], arguments, classes, _name_row(split, i)))
        sizes.append((height, width))
    if arguments.box_unit == "pixels":
        _check_pixels([own[:, 2:] for own in objects], sizes, split)
    for i, (own, size) in enumerate(zip(objects, sizes, strict=True)):
        own[:, 2:] = _to_corners(own[:, 2:], arguments, *size, _name_row(split, i))
    return [torch.from_numpy(own).float() for own in objects], sizes


def _check_pixels(boxes: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], split: str) -> None:
    """Checks that boxes in pixels are not shares of their images.

    Args:
        boxes: the boxes of each image, (n, 4), as they are in the data.
        sizes: each image's height and width. Boxes of an image of one pixel are from 0 to 1 anyway.
        split: the name of the split.

    Raises:
        RecipeError: all numbers are from 0 to 1.
    """
    large = [own for own, size in zip(boxes, sizes, strict=True) if len(own) and max(size) > 1]
    if large and all((np.abs(own - 0.5) <= 0.5 + SHARE_ROUNDING).all() for own in large):
        raise RecipeError(
            f"box_unit: these look like shares of the image, not pixels: the {sum(map(len, large))} boxes of "
            f"the split {split!r} have numbers from 0 to 1 alone; pass --box_unit shares, and --box_format "
            "cxcywh if they are YOLO's"
        )


def _to_corners(boxes: np.ndarray, arguments: Arguments, height: int, width: int, where: str) -> np.ndarray:
    """Turns an image's boxes (n, 4), as they are in the data, into corners in pixels.

    Raises:
        RecipeError: a box has no area, reaches out of the image, or is in pixels instead of shares.
    """
    shares = arguments.box_unit == "shares"
    corners = boxes * np.array([width, height] * 2 if shares else [1] * 4)
    if arguments.box_format == "voc":
        corners[:, :2] -= 1
    else:
        corners = box_convert(torch.from_numpy(corners), arguments.box_format, "xyxy").numpy()
    inside = corners.clip(0, np.array([width, height] * 2))
    for box, corner, cut in zip(boxes, corners, inside, strict=True):
        shown = f"{arguments.box_format} box {[round(value, 4) for value in box.tolist()]}"
        if shares and np.abs(box).max() > 2:
            raise RecipeError(
                f"{where}: the {shown} has numbers far above 1, and is no share of its image; correct it, or "
                "are they pixels: --box_unit pixels?"
            )
        if not (corner[2:] > corner[:2]).all():
            raise RecipeError(f"{where}: the {shown} has no area; leave it out, or is --box_format another?")
        if np.abs(corner - cut).max() > ROUNDING or not (cut[2:] > cut[:2]).all():
            raise RecipeError(
                f"{where}: the {shown} reaches out of its image of {width} x {height} pixels; correct it, or "
                "is --box_format another?"
            )
    return inside


def _name_row(split: str, row: int) -> str:
    """Names a row for messages; see :func:`adamnx_hf.common.splits.find_row`."""
    name, number = find_row(split, row)
    return f"{name}, row {number}"


def _read_numbers(objects: Any, arguments: Arguments, classes: Sequence[str], where: str) -> np.ndarray:
    """Reads a row's objects, (n, 6): class id, difficult or not, and the box as the data have it.

    Raises:
        RecipeError: objects are no numbers or do not match each other, or a class is not known.
    """
    arrays: list[np.ndarray] = []
    kinds = (np.float64, np.int64, np.bool_)
    for (name, values), kind in zip(split_fields(objects, arguments).items(), kinds, strict=True):
        if kind is np.int64 and any(isinstance(label, str) for label in values):
            values = _find_ids(values, classes, where)
        try:
            arrays.append(np.asarray(values, dtype=kind))
        except (TypeError, ValueError) as error:
            raise RecipeError(
                f"{where}: {name} of its objects: {str(values)[:60]} ({error}); correct it, or leave the row "
                "out"
            ) from error
    boxes, labels, difficult = arrays
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if not len(difficult):
        difficult = np.zeros(len(labels), dtype=bool)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) == len(labels) == len(difficult):
        raise RecipeError(
            f"{where}: boxes of four numbers, class ids and marks of difficult ones do not match: "
            f"{boxes.shape}, {labels.shape}, {difficult.shape}"
        )
    for label in labels.tolist():
        if label < 0:
            raise RecipeError(
                f"{where}: {label} is not a class id; they are counted from 0; correct it, or leave the row "
                "out"
            )
        if label >= len(classes):
            raise RecipeError(
                f"{where}: {label} is not a class id; there are {len(classes)}, from 0 to "
                f"{len(classes) - 1}; correct it, leave the row out, or name every class: --class_names"
            )
    return np.column_stack([labels, difficult, boxes])


def _find_ids(labels: Sequence[str], classes: Sequence[str], where: str) -> list[int]:
    """Finds the ids of classes that are given by name.

    Raises:
        RecipeError: a name is not among `classes`.
    """
    ids = {name: i for i, name in enumerate(classes)}
    for label in labels:
        if label not in ids:
            raise RecipeError(
                f"{where}: {label!r} is not a class{nearest(str(label), classes)}; correct it, leave the row "
                "out, or name every class: --class_names"
            )
    return [ids[label] for label in labels]
