"""Pairs of an image and a mask: decoded, transformed and batched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from tqdm import tqdm

from adamnx_hf.common import images
from adamnx_hf.tasks.randomness import RowRandom
from adamnx_hf.tasks.semantic_segmentation.masks import PairFormat, find_class_ids
from adamnx_hf.tasks.sharing import decode_once

__all__ = ["SegmentationDataset", "collate", "make_eval_transform", "make_train_transform"]


class SegmentationDataset(torch.utils.data.Dataset):
    """Pairs of an image and a mask.

    Args:
        data: a split of a `datasets` data set.
        form: the columns of the pairs, and the values in masks.
        transform: takes an image, uint8 (3, height, width), and a mask, int64 (height, width), both as
            torchvision's tv_tensors.
        keep_mask: keep the mask at the image's own size, too, by which evaluation judges.
        keep_decoded: decode all images now and keep them, 4 bytes a pixel.
        split: the name of the split, for messages.
        quiet: no progress bar.
        random: seeds what the transform draws, by row. None: torch's global generator draws on.

    Raises:
        RecipeError: an image or a mask cannot be read, when it is needed. The message names the row.

    Examples are `{"pixel_values": (3, height, width), "labels": (height, width) int64}` and, with
    `keep_mask`, `"mask"`, as `labels` before the transform.
    """

    def __init__(
        self,
        data: Any,
        form: PairFormat,
        *,
        transform: Callable[..., tuple[Tensor, Tensor]],
        keep_mask: bool = False,
        keep_decoded: bool = False,
        split: str = "train",
        quiet: bool = False,
        random: RowRandom | None = None,
    ) -> None:
        self.random, self.quiet = random, quiet
        self.images, self.masks = (data.select_columns([column]) for column in form[:2])
        self.form, self.split, self.transform, self.keep_mask = form, split, transform, keep_mask
        self.decoded: list[tuple[Tensor, Tensor]] | None = None
        if keep_decoded:
            self.decoded = decode_once(self._decode_all, data, split, *form[:2], *(form.mask_values or ()))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, mask = self._decode(index) if self.decoded is None else self.decoded[index]
        mask = mask.to(torch.int64, copy=True)  # a decoded one is kept
        with nullcontext() if self.random is None else self.random.seed_row(index):
            pixels, labels = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        example = {"pixel_values": pixels.as_subclass(Tensor), "labels": labels.as_subclass(Tensor)}
        return example | ({"mask": mask} if self.keep_mask else {})

    def read_picture(self, index: int) -> Any:
        """Reads the image itself, PIL's, in RGB."""
        return images.read_image(self.images, self.form.image_column, index, self.split)

    def _decode_all(self) -> list[tuple[Tensor, Tensor]]:
        rows = tqdm(range(len(self)), desc="decoding", unit=" images", leave=False, disable=self.quiet)
        return [self._decode(i) for i in rows]

    def _decode(self, index: int) -> tuple[Tensor, Tensor]:
        image = functional.pil_to_tensor(self.read_picture(index))
        with images.name_errors(self.form.mask_column, index, self.split):
            mask = np.array(self.masks[index][self.form.mask_column])
        return image, torch.from_numpy(find_class_ids(mask, self.form.mask_values))


def make_train_transform(
    *,
    image_size: int,
    scale_range: Sequence[float],
    crop_size: int,
    flip: float,
    mean: Sequence[float],
    std: Sequence[float],
    ignore_index: int,
) -> Any:
    """Makes a transform that scales, crops and mirrors at random, image and mask alike.

    Args:
        image_size: pixels along the shorter side at scale 1.
        scale_range: the lowest and the highest scale.
        crop_size: pixels along a side of the crop, which is grey and void outside of the image.
        flip: probability of mirroring.
        mean, std: mean and standard deviation that normalise values in [0, 1].
        ignore_index: the id of pixels that do not count.
    """
    low, high = (max(round(image_size * scale), 1) for scale in scale_range)
    fill: Any = {tv_tensors.Image: [round(255 * value) for value in mean], tv_tensors.Mask: ignore_index}
    return v2.Compose(
        [
            v2.RandomResize(low, high + 1),  # the upper end is not drawn
            v2.RandomCrop(crop_size, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(flip),
            *_normalize(mean, std),
        ]
    )


def make_eval_transform(*, image_size: int, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Makes a transform to the whole image, its shorter side `image_size` pixels long."""
    return v2.Compose([v2.Resize(image_size), *_normalize(mean, std)])


def _normalize(mean: Sequence[float], std: Sequence[float]) -> list[Any]:
    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    return [to_float, v2.Normalize(mean, std)]


def collate(examples: Sequence[Mapping[str, Tensor]], *, ignore_index: int) -> dict[str, Any]:
    """Batches examples of different sizes, which grey and void fill up below and to the right.

    Returns:
        `pixel_values` (n, 3, height, width), `labels` (n, height, width) and, where the examples have a
        `mask`, `masks`, a list of them, and `sizes` (n, 2), the images' heights and widths in the batch.
    """
    sizes = [tuple(example["labels"].shape) for example in examples]
    height, width = (max(side) for side in zip(*sizes, strict=True))

    def pad(name: str, value: int) -> Tensor:
        return torch.stack(
            [
                nn.functional.pad(example[name], (0, width - w, 0, height - h), value=value)
                for example, (h, w) in zip(examples, sizes, strict=True)
            ]
        )

    batch: dict[str, Any] = {"pixel_values": pad("pixel_values", 0), "labels": pad("labels", ignore_index)}
    if "mask" in examples[0]:
        batch |= {"masks": [example["mask"] for example in examples], "sizes": torch.tensor(sizes)}
    return batch
