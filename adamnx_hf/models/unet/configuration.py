"""The configuration of a U-Net, as config.json holds it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

__all__ = ["UNetConfig"]


class UNetConfig(PretrainedConfig):
    """The size of a U-Net and the weights of its loss.

    Args:
        base_width: channels at full resolution; each level below has twice as many as the one above.
        depth: how many times the resolution is halved.
        num_channels: channels of the images.
        dice_weight: weight of the Dice loss, in [0, 1]; cross-entropy has the rest.
        class_weights: weight of a pixel of each class in the cross-entropy, `num_labels` numbers. None: all
            count alike.
        semantic_loss_ignore_index: the id of pixels that do not count, as in Transformers' own models.
        kwargs: `id2label`, `num_labels` and whatever else every configuration takes.

    Raises:
        ValueError: a width, a depth or a weight is out of range.
    """

    model_type = "unet"
    #: Options of a tiny network, for smoke runs.
    tiny = {"base_width": 4, "depth": 2}  # noqa: RUF012  (a plain name: annotated, it would be a field)

    def __init__(
        self,
        base_width: int = 64,
        depth: int = 4,
        num_channels: int = 3,
        dice_weight: float = 0.5,
        class_weights: Sequence[float] | None = None,
        semantic_loss_ignore_index: int = 255,
        **kwargs: Any,
    ) -> None:
        for name, value in (("base_width", base_width), ("depth", depth), ("num_channels", num_channels)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: {value!r} is not a whole number above 0")
        if not isinstance(dice_weight, int | float) or not 0 <= dice_weight <= 1:
            raise ValueError(f"dice_weight: {dice_weight!r} is not a share from 0 to 1")
        self.base_width = base_width
        self.depth = depth
        self.num_channels = num_channels
        if class_weights is not None and not all(
            isinstance(weight, int | float) and 0 <= weight < math.inf for weight in class_weights
        ):
            raise ValueError(f"class_weights: {list(class_weights)} are not all finite numbers from 0 on")
        self.dice_weight = dice_weight
        self.class_weights = None if class_weights is None else [float(weight) for weight in class_weights]
        self.semantic_loss_ignore_index = semantic_loss_ignore_index
        super().__init__(**kwargs)
        if class_weights is not None and len(class_weights) != self.num_labels:
            raise ValueError(f"class_weights: {len(class_weights)} of them for {self.num_labels} classes")
