"""The configuration of a YOLOv7-tiny, as config.json holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

__all__ = ["Yolov7TinyConfig"]


class Yolov7TinyConfig(PretrainedConfig):
    """YOLOv7-tiny: its size, its anchors and the weights of its loss.

    Args:
        image_size: pixels along a side of the square that the network is made for, a multiple of 32.
        width: channels of all layers as a share of YOLOv7-tiny's.
        anchors: for each of the strides 8, 16 and 32 three pairs of width and height, in pixels of the
            input. Default: the published ones, which are for 640 pixels, in proportion to `image_size`.
        anchor_ratio: an anchor may learn a box whose width and height are at most so many times larger or
            smaller than its own.
        box_loss_coefficient: weight of 1 - CIoU.
        objectness_loss_coefficient: weight of the objectness' cross-entropy, times (input size / 640)².
        class_loss_coefficient: weight of the classes' cross-entropy, times classes / 80.
        num_channels: channels of the images.
        kwargs: `id2label`, `num_labels` and whatever else every configuration takes.

    Raises:
        ValueError: `image_size` is not a multiple of 32, `width` is not above 0, or `anchors` are not three
            times three pairs of positive numbers.
    """

    model_type = "yolov7_tiny"

    #: The anchors of YOLOv7-tiny (arXiv:2207.02696), in pixels of a 640 x 640 input.
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
