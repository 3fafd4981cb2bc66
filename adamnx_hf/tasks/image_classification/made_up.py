"""Random images for smoke runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from adamnx_hf.tasks.image_classification.arguments import Arguments

__all__ = ["make_up"]


def make_up(arguments: Arguments, classes: int = 100) -> tuple[Any, Any]:
    """Makes random images in the recipe's columns, for smoke runs."""
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features(
        {
            arguments.image_column: Image(),
            arguments.label_column: ClassLabel(names=[f"class {i}" for i in range(classes)]),
        }
    )
    shape = (arguments.image_size, arguments.image_size, 3)

    def split(count: int, seed: int) -> Dataset:
        random = np.random.default_rng(seed)
        return Dataset.from_dict(
            {
                arguments.image_column: list(random.integers(0, 256, (count, *shape), dtype=np.uint8)),
                arguments.label_column: random.integers(0, classes, count),
            },
            features=features,
        )

    return split(arguments.max_train_samples or 64, 0), split(arguments.max_eval_samples or 32, 1)
