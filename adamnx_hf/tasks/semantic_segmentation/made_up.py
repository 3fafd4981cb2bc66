"""Shapes in the classes' colours, for smoke runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from adamnx_hf.tasks.semantic_segmentation.arguments import Arguments
from adamnx_hf.tasks.semantic_segmentation.charts import colours
from adamnx_hf.tasks.semantic_segmentation.masks import PairFormat, void_id

__all__ = ["make_up", "shapes", "synthetic"]


def make_up(arguments: Arguments) -> tuple[Any, Any]:
    """Makes up images with masks in the recipe's columns, for smoke runs."""
    make = partial(
        synthetic,
        form=arguments.pair_format,
        classes=len(arguments.class_names or arguments.mask_values or ()) or 3,
        ignore_index=arguments.ignore_index,
    )
    return make(arguments.max_train_samples or 64), make(arguments.max_eval_samples or 32, seed=1)


def synthetic(
    count: int,
    form: PairFormat,
    *,
    classes: int,
    ignore_index: int,
    seed: int = 0,
) -> Any:
    """Makes `count` pairs of :func:`shapes` as a `datasets.Dataset`; masks hold `form`'s values."""
    from datasets import Dataset, Features, Image

    def make_pair(row: int) -> tuple[np.ndarray, np.ndarray]:
        void = void_id(ignore_index, form.mask_values)
        image, ids = shapes(np.random.default_rng([seed, row]), classes, void)
        if form.mask_values is None:
            return image, ids
        values = np.full(ids.shape, ignore_index, dtype=np.int32)
        for i, value in enumerate(form.mask_values):
            values[ids == i] = value
        return image, values

    pairs = [make_pair(row) for row in range(count)]
    columns = {
        form.image_column: [image for image, _ in pairs],
        form.mask_column: [mask for _, mask in pairs],
    }
    return Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, Image())))


def shapes(
    random: np.random.Generator, classes: int, ignore_index: int, side: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Draws shapes in the classes' colours on noise: an image, (height, width, 3) uint8, and its mask.

    The ids from 1 are shapes, 0 is what is around them; each shape has a rim that does not count. The image's
    sides are from 3/4 of `side` to all of it.
    """
    height, width = random.integers(side * 3 // 4, side + 1, 2)
    image = random.integers(60, 120, (height, width, 3))
    mask = np.zeros((height, width), dtype=np.uint8 if 0 <= ignore_index < 256 else np.int32)
    y, x = np.mgrid[:height, :width]
    for _ in range(random.integers(1, 4)):
        label = int(random.integers(1, classes)) if classes > 1 else 0
        centre, radius = random.uniform(0.2, 0.8, 2) * (height, width), random.uniform(0.12, 0.3) * side
        offsets = np.abs(y - centre[0]), np.abs(x - centre[1])
        distance = np.hypot(*offsets) if label % 2 else np.maximum(*offsets)
        inside, rim = distance < radius, (distance >= radius) & (distance < radius + 1)
        mask[inside], mask[rim] = label, ignore_index
        image[inside] = colours(classes)[label] * 0.75 + 48 + random.integers(-15, 16, (int(inside.sum()), 3))
    return np.clip(image, 0, 255).astype(np.uint8), mask
