"""Images with objects for smoke runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from adamnx_hf.tasks.object_detection.arguments import Arguments

__all__ = ["make_up"]


def make_up(arguments: Arguments) -> tuple[Any, Any]:
    """Makes coloured rectangles on noise in the recipe's columns, for smoke runs."""
    names = arguments.class_names or [f"class {i}" for i in range(20)]
    features = Features(
        {
            arguments.image_column: Image(),
            arguments.objects_column: {
                arguments.box_field: List(List(Value("float32"), length=4)),
                arguments.category_field: List(ClassLabel(names=names)),
                arguments.difficult_field: List(Value("bool")),
            },
        }
    )

    def make_split(count: int, seed: int) -> Dataset:
        random = np.random.default_rng(seed)
        side = arguments.image_size
        images, objects = [], []
        for _ in range(count):
            height, width = random.integers(side // 2, side + 1, 2)
            image = random.integers(0, 100, (height, width, 3), dtype=np.uint8)
            unit = [width, height] * 2 if arguments.box_unit == "shares" else [1] * 4
            boxes, labels = [], []
            for label in random.integers(0, len(names), random.integers(1, 4)):
                w, h = (int(random.integers(s // 4, s // 2)) for s in (width, height))
                x, y = int(random.integers(0, width - w)), int(random.integers(0, height - h))
                image[y : y + h, x : x + w] = [
                    100 + 50 * (label % 3),
                    100 + 40 * (label // 3 % 3),
                    100 + label,
                ]
                box = {
                    "xywh": [x, y, w, h],
                    "xyxy": [x, y, x + w, y + h],
                    "cxcywh": [x + w / 2, y + h / 2, w, h],
                    "voc": [x + 1, y + 1, x + w, y + h],
                }
                boxes.append(np.array(box[arguments.box_format]) / unit)
                labels.append(int(label))
            images.append(image)
            fields = (arguments.box_field, arguments.category_field, arguments.difficult_field)
            objects.append(dict(zip(fields, (boxes, labels, [False] * len(boxes)), strict=True)))
        columns = {arguments.image_column: images, arguments.objects_column: objects}
        return Dataset.from_dict(columns, features=features)

    return make_split(arguments.max_train_samples or 64, 0), make_split(arguments.max_eval_samples or 32, 1)
