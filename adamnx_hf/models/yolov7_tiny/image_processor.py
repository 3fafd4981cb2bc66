"""Images for YOLOv7-tiny, and its predictions as boxes on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert
from torchvision.transforms.v2 import functional
from transformers import BaseImageProcessor, BatchFeature
from transformers.image_utils import make_list_of_images

from adamnx_hf.common.images import to_rgb

__all__ = ["Yolov7TinyImageProcessor", "letterbox", "letterbox_boxes", "unletterbox_boxes"]

#: Grey level, of 255, of the border of letterboxed images, as YOLO has it.
GREY = 114


def letterbox(image: Tensor, size: int) -> Tensor:
    """Puts the whole image into the middle of a grey square.

    Args:
        image: uint8 RGB, (3, height, width).
        size: pixels along a side of the square.

    Returns:
        uint8, (3, size, size).
    """
    height, width = image.shape[-2:]
    rows, columns, top, left = _place_image(height, width, size)
    if (rows, columns) != (height, width):
        image = functional.resize(image, [rows, columns], antialias=True)
    return functional.pad(image, [left, top, size - columns - left, size - rows - top], fill=GREY)


def _place_image(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Places an image in its letterbox; returns its height, width, top and left there, in pixels."""
    rows, columns = (max(1, round(side * size / max(height, width))) for side in (height, width))
    return rows, columns, (size - rows) // 2, (size - columns) // 2


def _find_scale_and_offset(boxes: Tensor, height: int, width: int, size: int) -> tuple[Tensor, Tensor]:
    """Finds what turns corners in an image into corners in its letterbox: (4,) each, in pixels."""
    rows, columns, top, left = _place_image(height, width, size)
    return boxes.new_tensor([columns / width, rows / height] * 2), boxes.new_tensor([left, top] * 2)


def letterbox_boxes(boxes: Tensor, height: int, width: int, size: int) -> Tensor:
    """Turns boxes (n, 4), xyxy in pixels of the image, into shares of its letterbox's side."""
    scale, offset = _find_scale_and_offset(boxes, height, width, size)
    return (boxes * scale + offset) / size


def unletterbox_boxes(boxes: Tensor, height: int, width: int, size: int) -> Tensor:
    """Inverts :func:`letterbox_boxes`, and clips boxes to the image."""
    scale, offset = _find_scale_and_offset(boxes, height, width, size)
    most = boxes.new_tensor([width, height] * 2)
    return ((boxes * size - offset) / scale).clamp(min=0).minimum(most)


class Yolov7TinyImageProcessor(BaseImageProcessor):
    """Letterboxes, scales and normalises images; turns predictions into boxes.

    Args:
        size: `{"height": n, "width": n}`, or n: pixels along a side of the square, a multiple of 32.
        image_mean, image_std: mean and standard deviation that normalise values in [0, 1].
        nms_threshold: of two boxes of one class that overlap by more (IoU), the less likely one is dropped.
        max_detections: how many boxes of an image are kept at most, the likeliest.
        kwargs: BaseImageProcessor's arguments.

    Raises:
        ValueError: the size is not a square of a multiple of 32 pixels.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012, as Transformers has it

    def __init__(
        self,
        size: dict[str, int] | int = 640,
        image_mean: Sequence[float] = (0.0, 0.0, 0.0),
        image_std: Sequence[float] = (1.0, 1.0, 1.0),
        nms_threshold: float = 0.65,
        max_detections: int = 300,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = {"height": size, "width": size} if isinstance(size, int) else dict(size)
        side = self.size.get("height", 0)
        if side != self.size.get("width") or side < 32 or side % 32:
            raise ValueError(f"size: {size} is not a square of a multiple of 32 pixels")
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.nms_threshold, self.max_detections = nms_threshold, max_detections

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Letterboxes, scales to [0, 1] and normalises.

        Args:
            images: one or a list: PIL images, or uint8 arrays or tensors with the channels first or last.
            return_tensors: `"pt"` or `"np"`; None for a list.
            kwargs: ignored, as pipelines pass arguments of other processors.

        Returns:
            `pixel_values`, float32, (images, 3, size, size).

        Raises:
            ValueError: an image has more than 8 bits a channel, or neither 1 nor 3 channels.
        """
        pixels = [self._prepare_pixels(image) for image in make_list_of_images(images)]
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def _prepare_pixels(self, image: Any) -> np.ndarray:
        """Letterboxes, scales and normalises an image."""
        if hasattr(image, "convert"):
            image = functional.pil_to_tensor(to_rgb(image))
        else:
            image = torch.as_tensor(np.asarray(image))
            if image.ndim == 3 and image.shape[0] not in (1, 3):
                image = image.movedim(-1, 0)
            if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[0] not in (1, 3)):
                raise ValueError(
                    f"images: must have 1 or 3 channels, got an array of {tuple(np.shape(image))}; "
                    "convert it to RGB"
                )
            image = image.expand(3, *image.shape[-2:])
        if image.dtype != torch.uint8:
            raise ValueError(f"images: must be of 8 bits a channel (uint8), got {image.dtype}")
        scaled = letterbox(image, self.size["height"]).float() / 255
        return functional.normalize(scaled, self.image_mean, self.image_std).numpy()

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
    ) -> list[dict[str, Tensor]]:
        """Turns predictions into boxes, as Transformers' other detectors do.

        Args:
            outputs: the model's outputs for images of this processor.
            threshold: less likely boxes are left out. The likelihood of a box is the product of its object's
                and its class's.
            target_sizes: (images, 2): original height and width of each image. None: boxes stay in shares of
                the letterbox's side.

        Returns:
            For each image `scores` (n,), falling, `labels` (n,) and `boxes` (n, 4), xyxy in pixels.

        Raises:
            ValueError: there are not as many target sizes as images.
        """
        if target_sizes is not None and len(target_sizes) != len(outputs.logits):
            raise ValueError(f"target_sizes: {len(target_sizes)} of them for {len(outputs.logits)} images")
        scores = outputs.objectness_logits.float().sigmoid()[..., None] * outputs.logits.float().sigmoid()
        boxes = box_convert(outputs.pred_boxes.float(), "cxcywh", "xyxy")
        results = []
        for i, own in enumerate(scores):
            anchor, label = (own > threshold).nonzero(as_tuple=True)
            score = own[anchor, label]
            if len(score) > 30 * self.max_detections:  # the time of NMS rises with their square
                score, best = score.topk(30 * self.max_detections)
                anchor, label = anchor[best], label[best]
            box = boxes[i, anchor]
            kept = batched_nms(box, score, label, self.nms_threshold)[: self.max_detections]
            box = box[kept]
            if target_sizes is not None:
                height, width = (int(side) for side in target_sizes[i])
                box = unletterbox_boxes(box, height, width, self.size["height"])
            results.append({"scores": score[kept], "labels": label[kept], "boxes": box})
        return results
