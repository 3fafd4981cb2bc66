"""The configuration of our models: what config.json holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

__all__ = ["TorchvisionNetConfig", "UNetConfig", "Yolov7TinyConfig"]


class TorchvisionNetConfig(PretrainedConfig):
    """Names a torchvision network, the options that differ from torchvision's, and the classes.

    Args:
        architecture: torchvision's name, one of :data:`adamnx_hf.models.nets.NETS`.
        options: what to change of it; see the functions in :mod:`adamnx_hf.models.nets`.
        image_size: pixels along a side of the images the network is made for.
        num_channels: always 3.
        kwargs: `id2label`, `num_labels` and whatever else every configuration takes.
    """

    model_type = "torchvision_net"

    def __init__(
        self,
        architecture: str = "efficientnet_v2_m",
        options: dict[str, Any] | None = None,
        image_size: int = 32,
        num_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        self.architecture = architecture
        self.options = dict(options or {})
        self.image_size = image_size
        self.num_channels = num_channels
        super().__init__(**kwargs)


class UNetConfig(PretrainedConfig):
    """The size of a U-Net and what its loss is made of.

    Args:
        base_width: channels at full resolution; each level below has twice as many as the one above.
        depth: how many times the resolution is halved.
        num_channels: of the images.
        dice_weight: of the Dice loss, in [0, 1]; the rest is cross-entropy's.
        class_weights: what a pixel of each class counts in the cross-entropy, `num_labels` numbers. None: all
            alike.
        semantic_loss_ignore_index: the id of pixels that do not count, as in Transformers' own models.
        kwargs: `id2label`, `num_labels` and whatever else every configuration takes.

    Raises:
        ValueError: a width, a depth or a weight that is out of range.
    """

    model_type = "unet"
    #: What makes it tiny, for smoke runs.
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


class Yolov7TinyConfig(PretrainedConfig):
    """YOLOv7-tiny: its size, its anchors and the weights of its loss.

    Args:
        image_size: pixels along a side of the square the network is made for, a multiple of 32.
        width: of all layers, as a share of YOLOv7-tiny's channels; 1 is YOLOv7-tiny.
        anchors: for each of the strides 8, 16 and 32 three pairs of width and height, in pixels of the
            input. Default: the published ones, which are for 640 pixels, in proportion to `image_size`.
        anchor_ratio: an anchor is a candidate for a box whose width and height are at most so many times
            larger or smaller.
        box_loss_coefficient: weight of 1 - CIoU.
        objectness_loss_coefficient: weight of the objectness' cross-entropy, times (input size / 640)².
        class_loss_coefficient: weight of the classes' cross-entropy, times classes / 80.
        num_channels: of the images.
        kwargs: `id2label`, `num_labels` and whatever else every configuration takes.

    Raises:
        ValueError: `image_size` is not a multiple of 32, `width` not above 0, or `anchors` not of three times
            three pairs of positive numbers.
    """

    model_type = "yolov7_tiny"

    #: Of YOLOv7-tiny (arXiv:2207.02696), in pixels of a 640 x 640 input.
    published_anchors = (
        ((10, 13), (16, 30), (33, 23)),
        ((30, 61), (62, 45), (59, 119)),
        ((116, 90), (156, 198), (373, 326)),
    )
    strides = (8, 16, 32)

    def __init__(
        self,
        image_size: int = 640,
        width: float = 1.0,
        anchors: Sequence[Sequence[Sequence[float]]] | None = None,
        anchor_ratio: float = 4.0,
        box_loss_coefficient: float = 0.05,
        objectness_loss_coefficient: float = 1.0,
        class_loss_coefficient: float = 0.5,
        num_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        if image_size < 32 or image_size % 32:
            raise ValueError(f"image_size: {image_size} is not a multiple of 32 pixels")
        if not width > 0:
            raise ValueError(f"width: {width} is not a share above 0")
        if anchors is None:
            scale = image_size / 640
            anchors = [[[w * scale, h * scale] for w, h in level] for level in self.published_anchors]
        shape = [[len(pair) for pair in level] for level in anchors]
        if shape != [[2] * 3] * 3 or any(
            not side > 0 for level in anchors for pair in level for side in pair
        ):
            raise ValueError(f"anchors: needs three times three pairs of positive numbers, got {anchors}")
        self.image_size = image_size
        self.width = width
        self.anchors = [[list(pair) for pair in level] for level in anchors]
        self.anchor_ratio = anchor_ratio
        self.box_loss_coefficient = box_loss_coefficient
        self.objectness_loss_coefficient = objectness_loss_coefficient
        self.class_loss_coefficient = class_loss_coefficient
        self.num_channels = num_channels
        super().__init__(**kwargs)
