"""Shapes in the classes' colours, for smoke runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image

from adamnx_hf.tasks.semantic_segmentation.arguments import Arguments
from adamnx_hf.tasks.semantic_segmentation.charts import make_colours
from adamnx_hf.tasks.semantic_segmentation.masks import PairFormat, find_void_id

__all__ = ["draw_shapes", "make_pairs", "make_up"]


def make_up(arguments: Arguments) -> tuple[Any, Any]:
    """Makes up images with masks in the recipe's columns, for smoke runs."""
    make = partial(
        make_pairs,
        form=arguments.pair_format,
        classes=len(arguments.class_names or arguments.mask_values or ()) or 3,
        ignore_index=arguments.ignore_index,
    )
    return make(arguments.max_train_samples or 64), make(arguments.max_eval_samples or 32, seed=1)


def make_pairs(count: int, form: PairFormat, *, classes: int, ignore_index: int, seed: int = 0) -> Any:
    """Makes `count` pairs by :func:`draw_shapes` as a `datasets.Dataset`; masks hold `form`'s values."""
    columns: dict[str, list[np.ndarray]] = {form.image_column: [], form.mask_column: []}
    void = find_void_id(ignore_index, form.mask_values)
    for row in range(count):
        image, mask = draw_shapes(np.random.default_rng([seed, row]), classes, void)
        if form.mask_values is not None:
            ids, mask = mask, np.full(mask.shape, ignore_index, dtype=np.int32)
            for i, value in enumerate(form.mask_values):
                mask[ids == i] = value
        columns[form.image_column].append(image)
        columns[form.mask_column].append(mask)
    return Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, Image())))


def draw_shapes(
    random: np.random.Generator, classes: int, ignore_index: int, side: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Draws shapes in the classes' colours on noise: an image, (height, width, 3) uint8, and its mask.

    Shapes have ids from 1, the background has 0, and the rim of a shape does not count. The image's sides are
    from 3/4 of `side` to all of it.
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
        image[inside] = (
            make_colours(classes)[label] * 0.75 + 48 + random.integers(-15, 16, (int(inside.sum()), 3))
        )
    return np.clip(image, 0, 255).astype(np.uint8), mask
