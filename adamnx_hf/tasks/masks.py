"""Pairs of an image and a mask of class ids: checked, decoded, transformed, batched, made up and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from adamnx_hf import images
from adamnx_hf.errors import RecipeError
from adamnx_hf.files import save_figure
from adamnx_hf.tasks.randomness import RowRandom

__all__ = [
    "SegmentationDataset",
    "check_pairs",
    "collate",
    "colours",
    "draw",
    "eval_transform",
    "shapes",
    "synthetic",
    "train_transform",
]


def check_pairs(
    data: Any,
    *,
    split: str,
    image_column: str,
    mask_column: str,
    classes: int | None,
    ignore_index: int,
    quiet: bool = False,
) -> np.ndarray:
    """That every row has an image and a mask of its size, with known ids only.

    Reads all masks, and of the images no more than their sizes.

    Args:
        data: a split.
        split: its name, for the message.
        image_column, mask_column: their names.
        classes: how many ids there are, from 0. None: as many as are found.
        ignore_index: the id of pixels that do not count.
        quiet: no progress bar.

    Returns:
        Pixels of each id.

    Raises:
        RecipeError: a row that does not fit, which it names.
    """
    from datasets import Image

    columns = (image_column, mask_column)
    raw = data.select_columns(list(columns))
    for column in columns:
        raw = raw.cast_column(column, Image(decode=False))
    counts = np.zeros(classes or 0, dtype=np.int64)

    for row, pair in enumerate(
        tqdm(raw, desc=f"checking {split}", unit=" masks", leave=False, disable=quiet)
    ):
        image, mask = (
            images.opened(pair[column], column, row, split, as_rgb=column == image_column)
            for column in columns
        )
        where = images.named(mask_column, row, split)
        shown = [f"{width} x {height}" for width, height in map(images.size, (mask, image))]
        if len(set(shown)) > 1:
            raise RecipeError(
                f"{where} is {shown[0]} pixels, its image {shown[1]}; a mask has to have its image's size"
            )
        if len(mask.getbands()) != 1:
            raise RecipeError(
                f"{where} is a picture in colours ({mask.mode}), not one channel of class ids; convert it"
            )
        if mask.mode == "F":
            raise RecipeError(
                f"{where} holds fractions (PIL's mode F), not class ids; convert it to whole ones"
            )
        with images.reading(mask_column, row, split):
            ids, pixels = np.unique(np.asarray(mask), return_counts=True)
        counted = ids != ignore_index
        ids, pixels = ids[counted].astype(np.int64), pixels[counted]
        if classes is None and len(ids) and ids[-1] >= len(counts):
            counts = np.pad(counts, (0, int(ids[-1]) + 1 - len(counts)))
        if strange := [int(i) for i in ids if not 0 <= i < len(counts)]:
            raise RecipeError(
                f"{where} holds the class id {strange[0]}; known are 0 to {len(counts) - 1} and "
                f"{ignore_index}, which does not count: see class_names and ignore_index"
            )
        counts[ids] += pixels
    if not counts.sum():
        raise RecipeError(f"{mask_column}: in the split {split!r} no pixel counts")
    return counts


class SegmentationDataset(torch.utils.data.Dataset):
    """Pairs of an image and a mask.

    Args:
        data: a split of a `datasets` data set.
        image_column, mask_column: their names.
        transform: takes an image, uint8 (3, height, width), and a mask, int64 (height, width), both as
            torchvision's tv_tensors.
        keep_mask: for evaluation, where the mask that counts is the one of the image's own size.
        keep_decoded: decode all images now and keep them, 4 bytes a pixel.
        split: its name, for messages.
        quiet: no progress bar.
        random: what the transform draws, by row. None: what torch's global generator gives.

    Raises:
        RecipeError: an image that cannot be read, when it is; names its row.

    Examples are `{"pixel_values": (3, height, width), "labels": (height, width) int64}` and, with
    `keep_mask`, `"mask"`, as `labels` before the transform.
    """

    def __init__(
        self,
        data: Any,
        *,
        image_column: str,
        mask_column: str,
        transform: Callable[..., tuple[Tensor, Tensor]],
        keep_mask: bool = False,
        keep_decoded: bool = False,
        split: str = "train",
        quiet: bool = False,
        random: RowRandom | None = None,
    ) -> None:
        self.random = random
        self.images, self.masks = data.select_columns([image_column]), data.select_columns([mask_column])
        self.image_column, self.mask_column, self.split = image_column, mask_column, split
        self.transform, self.keep_mask = transform, keep_mask
        self.decoded: list[tuple[Tensor, Tensor]] | None = None
        if keep_decoded:
            rows = tqdm(range(len(data)), desc="decoding", unit=" images", leave=False, disable=quiet)
            self.decoded = [self._decode(i) for i in rows]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        from torchvision import tv_tensors

        image, mask = self._decode(index) if self.decoded is None else self.decoded[index]
        mask = mask.long()
        with nullcontext() if self.random is None else self.random.seed_row(index):
            pixels, labels = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        example = {"pixel_values": pixels.as_subclass(Tensor), "labels": labels.as_subclass(Tensor)}
        return example | ({"mask": mask} if self.keep_mask else {})

    def picture(self, index: int) -> Any:
        """The image itself, PIL's."""
        return images.picture(self.images, self.image_column, index, self.split)

    def _decode(self, index: int) -> tuple[Tensor, Tensor]:
        from torchvision.transforms.v2 import functional

        image = functional.pil_to_tensor(self.picture(index))
        mask = np.array(self.masks[index][self.mask_column])
        return image, torch.from_numpy(mask if mask.dtype == np.uint8 else mask.astype(np.int64))


def train_transform(
    *,
    image_size: int,
    scale_range: Sequence[float],
    crop_size: int,
    flip: float,
    mean: Sequence[float],
    std: Sequence[float],
    ignore_index: int,
) -> Any:
    """Random scaling, cropping and mirroring, of image and mask alike.

    Args:
        image_size: of the shorter side, in pixels, at scale 1.
        scale_range: the lowest and the highest scale.
        crop_size: pixels along a side of the crop. What it has outside of the image is grey and void.
        flip: probability of mirroring.
        mean, std: of the normalisation, for values in [0, 1].
        ignore_index: the id of pixels that do not count.
    """
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    low, high = (max(round(image_size * scale), 1) for scale in scale_range)
    fill: Any = {tv_tensors.Image: [round(255 * value) for value in mean], tv_tensors.Mask: ignore_index}
    return v2.Compose(
        [
            v2.RandomResize(low, high + 1),  # the upper end is not drawn
            v2.RandomCrop(crop_size, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(flip),
            *_normalized(mean, std),
        ]
    )


def eval_transform(*, image_size: int, mean: Sequence[float], std: Sequence[float]) -> Any:
    """The whole image, its shorter side `image_size` pixels long."""
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(image_size), *_normalized(mean, std)])


def _normalized(mean: Sequence[float], std: Sequence[float]) -> list[Any]:
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    return [to_float, v2.Normalize(mean, std)]


def collate(examples: Sequence[Mapping[str, Tensor]], *, ignore_index: int) -> dict[str, Any]:
    """A batch of examples of different sizes: what is lacking below and to the right is grey and void.

    Returns:
        `pixel_values` (n, 3, height, width), `labels` (n, height, width) and, where the examples have a
        `mask`, `masks`, a list of them, and `sizes` (n, 2), the images' heights and widths in the batch.
    """
    sizes = [tuple(example["labels"].shape) for example in examples]
    height, width = (max(side) for side in zip(*sizes, strict=True))

    def padded(name: str, value: int) -> Tensor:
        return torch.stack(
            [
                nn.functional.pad(example[name], (0, width - w, 0, height - h), value=value)
                for example, (h, w) in zip(examples, sizes, strict=True)
            ]
        )

    batch: dict[str, Any] = {
        "pixel_values": padded("pixel_values", 0),
        "labels": padded("labels", ignore_index),
    }
    if "mask" in examples[0]:
        batch["masks"] = [example["mask"] for example in examples]
        batch["sizes"] = torch.tensor(sizes)
    return batch


def synthetic(
    count: int, *, image_column: str, mask_column: str, classes: int, ignore_index: int, seed: int = 0
) -> Any:
    """`count` pairs of :func:`shapes` as a `datasets.Dataset`."""
    from datasets import Dataset, Features, Image

    pairs = [shapes(np.random.default_rng([seed, i]), classes, ignore_index) for i in range(count)]
    columns = {image_column: [image for image, _ in pairs], mask_column: [mask for _, mask in pairs]}
    return Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, Image())))


def shapes(
    random: np.random.Generator, classes: int, ignore_index: int, side: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """A made-up image, (height, width, 3) uint8, and its mask: shapes in the classes' colours on noise.

    The ids from 1 are shapes, 0 is what is around them; each shape has a rim that does not count. The image's
    sides are from 3/4 of `side` to all of it.
    """
    height, width = random.integers(side * 3 // 4, side + 1, 2)
    image = random.integers(60, 120, (height, width, 3))
    mask = np.zeros((height, width), dtype=np.uint8)
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


def colours(count: int) -> np.ndarray:
    """(count, 3) uint8: PASCAL VOC's colours, an id's bits spread over the high bits of the channels."""
    ids = np.arange(count)
    result = np.zeros((count, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            result[:, channel] |= ((ids >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return result


def draw(
    path: Path,
    title: str,
    names: Sequence[str],
    columns: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    ignore_index: int,
) -> None:
    """Images, their masks and predictions below each other, with a legend.

    Args:
        path: of the PNG.
        title: of the picture.
        names: the classes'.
        columns: by label, an image (height, width, 3), its mask and the prediction, both (height, width).
        ignore_index: the id of pixels that do not count.
    """
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    tints = np.concatenate([colours(len(names)), [[224, 224, 192]]])  # void as VOC draws it
    plt.switch_backend("agg")
    figure, axes = plt.subplots(
        3, len(columns), figsize=(2.3 * len(columns), 6.4), dpi=150, layout="constrained", squeeze=False
    )
    shown: set[int] = set()
    for column, (label, (image, truth, predicted)) in enumerate(columns.items()):
        truth = np.where(truth == ignore_index, len(names), truth)
        shown |= set(np.unique(truth).tolist()) | set(np.unique(predicted).tolist())
        for axis, content in zip(axes[:, column], (image, tints[truth], tints[predicted]), strict=True):
            axis.imshow(content.astype(np.uint8))
            axis.set(xticks=[], yticks=[])
        axes[0, column].set_title(label, fontsize=9)
    for axis, name in zip(axes[:, 0], ("image", "truth", "prediction"), strict=True):
        axis.set_ylabel(name)
    labels = [*names, "does not count"]
    patches = [Patch(facecolor=tints[i] / 255, edgecolor="#888888", label=labels[i]) for i in sorted(shown)]
    columns_of_legend = min(len(patches), max(2 * len(columns), 1))
    figure.legend(
        handles=patches, loc="outside lower center", ncols=columns_of_legend, frameon=False, fontsize=8
    )
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)
