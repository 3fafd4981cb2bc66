"""Letterboxed images with their objects, augmented and batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from tqdm import tqdm

from adamnx_hf.common import images
from adamnx_hf.models.yolov7_tiny.image_processor import GREY, letterbox, letterbox_boxes
from adamnx_hf.tasks.object_detection.arguments import Arguments
from adamnx_hf.tasks.object_detection.boxes import read_objects
from adamnx_hf.tasks.randomness import RowRandom
from adamnx_hf.tasks.sharing import decode_once
from adamnx_hf.tasks.transforms import HSVJitter

__all__ = ["Augmentation", "DetectionDataset", "collate"]


#: Least width and height of a box that is learned: pixels of the training image, and share of its side.
LEAST_PIXELS, LEAST_SHARE = 2.0, 0.01


class Augmentation:
    """Scales, pads or cuts, jitters and mirrors a letterboxed image, its boxes with it.

    Args:
        size: pixels along a side of the image.
        scale_range: lowest and highest scale. The image is then put at a random place of the square, or cut.
        jitter: probability of HSV jitter.
        flip: probability of mirroring.
    """

    def __init__(self, size: int, scale_range: Sequence[float], jitter: float, flip: float) -> None:
        self.jitter = HSVJitter(jitter)
        self.min_size = max(LEAST_PIXELS, LEAST_SHARE * size)
        self.geometry = v2.Compose(
            [
                v2.ScaleJitter((size, size), tuple(scale_range), antialias=True),
                v2.RandomCrop(size, pad_if_needed=True, fill=GREY),
                v2.RandomHorizontalFlip(flip),
                v2.ClampBoundingBoxes(),
                # Too little is often left of an object at a cut edge to tell its class. An object that is as
                # small by itself is as hard to tell.
                v2.SanitizeBoundingBoxes(min_size=self.min_size, labels_getter=itemgetter(2)),
            ]
        )

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Augments an image, (3, size, size) uint8, to floats, with its boxes, (n, 4) xyxy in pixels."""
        size = (image.shape[-2], image.shape[-1])
        corners = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
        image, boxes, labels = self.geometry(tv_tensors.Image(image), corners, labels)
        return self.jitter(image.as_subclass(Tensor).float() / 255), boxes.as_subclass(Tensor), labels


class DetectionDataset(torch.utils.data.Dataset):
    """A split of a `datasets` data set as letterboxed images with their objects.

    Args:
        data: the split.
        arguments: name its columns and fields.
        split: the name of the split, for messages.
        classes: the classes' names, in the order of their ids.
        augment: changes image and boxes. None: both stay as they are.
        with_difficult: whether objects that need not be found are among those to learn.
        quiet: no progress bars.
        random: seeds what `augment` draws, by row. None: torch's global generator draws on.

    Raises:
        RecipeError: a row's objects do not fit their image or the classes; or an image cannot be read, when
            it is needed.

    Examples are `{"pixel_values": (3, size, size) float, "labels": {...}}`. Labels have, as DETR's,
    `class_labels` (n,), `boxes` (n, 4) centre x, centre y, width and height as shares of the square's side,
    and `orig_size` (2,), the image's own height and width. They also have `objects` (m, 6), all objects of
    the image: class id, difficult or not, and two corners in pixels of the image itself.
    """

    def __init__(
        self,
        data: Any,
        arguments: Arguments,
        split: str,
        classes: Sequence[str],
        augment: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None,
        with_difficult: bool = False,
        quiet: bool = False,
        random: RowRandom | None = None,
    ) -> None:
        self.random, self.quiet = random, quiet
        self.images = data.select_columns([arguments.image_column])
        self.image_column, self.split, self.size = arguments.image_column, split, arguments.image_size
        self.augment, self.with_difficult = augment, with_difficult
        self.normalize = v2.Normalize(arguments.image_mean, arguments.image_std)
        self.objects, self.sizes = read_objects(data, arguments, split, classes, quiet)
        self.decoded: Tensor | None = None
        if arguments.keep_decoded:
            self.decoded = decode_once(self._decode_all, self.images, split, self.size)

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, index: int) -> dict[str, Any]:
        labels, boxes = self.select_learned(index)
        image = self._decode(index) if self.decoded is None else self.decoded[index]
        if self.augment is not None:
            with nullcontext() if self.random is None else self.random.seed_row(index):
                image, boxes, labels = self.augment(image, boxes * self.size, labels)
            boxes = boxes / self.size
        else:
            image = image.float() / 255
        return {
            "pixel_values": self.normalize(image),
            "labels": {
                "class_labels": labels,
                "boxes": box_convert(boxes, "xyxy", "cxcywh"),
                "orig_size": torch.tensor(self.sizes[index]),
                "objects": self.objects[index],
            },
        }

    def select_learned(self, index: int) -> tuple[Tensor, Tensor]:
        """Selects the objects of a row that are to be learned, before augmentation.

        Returns:
            Class ids, (n,) int64, and corners, (n, 4) float32, as shares of the letterbox's side.
        """
        objects, (height, width) = self.objects[index], self.sizes[index]
        if not self.with_difficult:
            objects = objects[objects[:, 1] == 0]
        return objects[:, 0].long(), letterbox_boxes(objects[:, 2:], height, width, self.size)

    def read_picture(self, index: int) -> Any:
        """Reads the image itself, PIL's, in RGB."""
        return images.read_image(self.images, self.image_column, index, self.split)

    def _decode_all(self) -> Tensor:
        decoded = torch.empty(len(self), 3, self.size, self.size, dtype=torch.uint8)
        for i in tqdm(range(len(self)), desc="decoding", unit=" images", leave=False, disable=self.quiet):
            decoded[i] = self._decode(i)
        return decoded

    def _decode(self, index: int) -> Tensor:
        return letterbox(functional.pil_to_tensor(self.read_picture(index)), self.size)


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Batches examples: images as one tensor, labels as a list."""
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": [example["labels"] for example in examples],
    }
