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

from adamnx_hf.common import images
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.files import save_figure
from adamnx_hf.tasks.randomness import RowRandom

__all__ = [
    "SegmentationDataset",
    "check_pairs",
    "class_ids",
    "collate",
    "colours",
    "draw",
    "eval_transform",
    "shapes",
    "synthetic",
    "train_transform",
    "void_id",
]


def void_id(ignore_index: int, mask_values: Sequence[int] | None = None) -> int:
    """The id of pixels that do not count, once :func:`class_ids` has read a mask.

    Args:
        ignore_index: the value that such pixels have in the masks.
        mask_values: the values of the classes 0, 1, ... Default: the ids themselves.

    Returns:
        `ignore_index` itself by default. With `mask_values` 255, or the number of classes where that is more:
        no class has this id, whatever the values are.
    """
    return ignore_index if mask_values is None else max(255, len(mask_values))


def class_ids(values: np.ndarray, mask_values: Sequence[int] | None = None) -> np.ndarray:
    """The class ids that the values in a mask stand for.

    All that reads masks goes through here: the check, training, evaluation and pictures.

    Args:
        values: a mask, or some of its values: whole numbers of any shape. A 1-bit mask's are bool, and stand
            for 0 and 1.
        mask_values: the values of the classes 0, 1, ... Default: the ids themselves.

    Returns:
        Ids of the same shape, uint8 where they fit and int64 otherwise. A value that is not in `mask_values`
        is :func:`void_id`; :func:`check_pairs` refuses those that should be something else.
    """
    if mask_values is None:
        return values.astype(np.uint8 if values.dtype in (np.uint8, np.bool_) else np.int64, copy=False)
    if values.dtype == np.uint8 and values.size > 256:  # a table of all that can be there is faster
        return class_ids(np.arange(256), mask_values)[values]
    order = np.argsort(mask_values)
    known = np.asarray(mask_values)[order]
    places = np.searchsorted(known, values).clip(max=len(known) - 1)
    void = void_id(0, mask_values)
    ids = np.where(known[places] == values, order[places], void)
    return ids.astype(np.uint8 if void < 256 else np.int64)


def check_pairs(
    data: Any,
    *,
    split: str,
    image_column: str,
    mask_column: str,
    classes: int | None,
    ignore_index: int,
    mask_values: Sequence[int] | None = None,
    quiet: bool = False,
) -> tuple[np.ndarray, int]:
    """That every row has an image and a mask of its size, with known values only.

    Reads all masks, and of the images no more than PIL needs for their sizes.

    Args:
        data: a split.
        split: its name, for the message.
        image_column, mask_column: their names.
        classes: how many classes there are, with ids from 0. None: as many as `mask_values` has, or else up
            to the highest id that is found, which is at most 1023.
        ignore_index: the value of pixels that do not count. One that is among `mask_values` is its class's.
        mask_values: the values of the classes 0, 1, ... Default: the ids themselves.
        quiet: no progress bar.

    Returns:
        How many pixels each class has, (classes,) int64, and how many do not count.

    Raises:
        RecipeError: a row that does not fit, which it names.
    """
    from datasets import Image

    columns = (image_column, mask_column)
    raw = data.select_columns(list(columns))
    for column in columns:
        raw = raw.cast_column(column, Image(decode=False))
    classes = classes or len(mask_values or ()) or None
    most = classes or 1024  # of more than 8 bits, values may be no ids, and that many classes take all memory
    known = range(most) if mask_values is None else set(mask_values)
    void = void_id(ignore_index, mask_values)
    counts, uncounted = np.zeros(classes or 0, dtype=np.int64), 0

    for row, pair in enumerate(
        tqdm(raw, desc=f"checking {split}", unit=" masks", leave=False, disable=quiet)
    ):
        shown = []
        for column in columns:  # the mask comes last, and stays
            mask = images.opened(pair[column], column, row, split, as_rgb=column == image_column)
            with images.reading(column, row, split):  # of a PNG all is read, for its EXIF data
                width, height = images.size(mask)
            shown.append(f"{width} x {height}")
        where = images.named(mask_column, row, split)
        if shown[0] != shown[1]:
            raise RecipeError(
                f"{where} is {shown[1]} pixels, its image {shown[0]}; a mask has to have its image's size"
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
            values, pixels = np.unique(np.asarray(mask), return_counts=True)
        values = values.astype(np.int64)
        if strange := [value for value in values.tolist() if value not in known and value != ignore_index]:
            what, those = "class id", f"0 to {most - 1} and {ignore_index}, which does not count"
            if mask_values is not None:
                what, those = "value", f"mask_values and ignore_index, {ignore_index}"
            raise RecipeError(
                f"{where} holds the {what} {strange[0]}; known are {those}: see class_names and ignore_index"
                ", or give each class the value that stands for it: --mask_values VALUE VALUE ..."
            )
        ids = class_ids(values, mask_values)
        uncounted += int(pixels[ids == void].sum())
        ids, pixels = ids[ids != void], pixels[ids != void]
        counts = np.pad(counts, (0, max(int(ids.max(initial=0)) + 1 - len(counts), 0)))
        counts[ids] += pixels
    if not counts.sum():
        raise RecipeError(
            f"{mask_column}: in the split {split!r} no pixel counts, all are {ignore_index}, ignore_index; "
            f"if that is a class, give each one its value: --mask_values VALUE {ignore_index}"
        )
    return counts, uncounted


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
        mask_values: see :func:`class_ids`.
        quiet: no progress bar.
        random: what the transform draws, by row. None: what torch's global generator gives.

    Raises:
        RecipeError: an image or a mask that cannot be read, when it is; names its row.

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
        mask_values: Sequence[int] | None = None,
        quiet: bool = False,
        random: RowRandom | None = None,
    ) -> None:
        self.random = random
        self.images, self.masks = data.select_columns([image_column]), data.select_columns([mask_column])
        self.image_column, self.mask_column, self.split = image_column, mask_column, split
        self.transform, self.keep_mask, self.mask_values = transform, keep_mask, mask_values
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
        with images.reading(self.mask_column, index, self.split):
            mask = np.array(self.masks[index][self.mask_column])
        return image, torch.from_numpy(class_ids(mask, self.mask_values))


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
    count: int,
    *,
    image_column: str,
    mask_column: str,
    classes: int,
    ignore_index: int,
    mask_values: Sequence[int] | None = None,
    seed: int = 0,
) -> Any:
    """`count` pairs of :func:`shapes` as a `datasets.Dataset`; masks hold `mask_values`, if there are any."""
    from datasets import Dataset, Features, Image

    def made(row: int) -> tuple[np.ndarray, np.ndarray]:
        void = void_id(ignore_index, mask_values)
        image, ids = shapes(np.random.default_rng([seed, row]), classes, void)
        if mask_values is None:
            return image, ids
        values = np.full(ids.shape, ignore_index, dtype=np.int32)
        for i, value in enumerate(mask_values):
            values[ids == i] = value
        return image, values

    pairs = [made(row) for row in range(count)]
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
    mask = np.zeros((height, width), dtype=np.uint8 if 0 <= ignore_index < 256 else np.int32)
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
