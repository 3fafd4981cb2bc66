"""Images and class ids, decoded and batched, or made up for a smoke run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adamnx_hf.common.images import read_images
from adamnx_hf.tasks.image_classification.arguments import Arguments
from adamnx_hf.tasks.randomness import RowRandom
from adamnx_hf.tasks.sharing import decode_once

__all__ = ["ImageDataset", "keep_batch", "make_up"]


class ImageDataset(torch.utils.data.Dataset):
    """A split of a `datasets` data set that hands out whole batches.

    Args:
        data: the split.
        image_column: the column of images.
        labels: the class id of each row.
        size: the side of the images, in pixels. Images are resized to it, and grey ones become RGB.
        transform: changes a uint8 batch (n, 3, size, size). The second argument, with `random`, is the rows'
            random numbers. None: images stay as they are.
        keep_decoded: decodes all images now and keeps them, 3 · size² bytes each.
        split: the split's name, for messages.
        random: draws the random numbers that images are augmented by.

    Raises:
        RecipeError: an image cannot be read, at the time it is needed. The message names the row.

    Batches are `{"pixel_values": (n, 3, size, size), "labels": (n,) int64}`. With `random` and without
    `transform` they also have `"draws"`, the rows' random numbers, for a transform on the device.
    """

    def __init__(
        self,
        data: Any,
        *,
        image_column: str,
        labels: Sequence[int],
        size: int,
        transform: Callable[..., Tensor] | None = None,
        keep_decoded: bool = False,
        split: str = "train",
        random: RowRandom | None = None,
    ) -> None:
        self.split, self.random = split, random
        self.images = data.select_columns([image_column])
        self.image_column, self.size, self.transform = image_column, size, transform
        self.labels = torch.as_tensor(np.asarray(labels, dtype=np.int64))
        self.decoded = decode_once(self._decode_all, self.images, split, size) if keep_decoded else None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch = self.__getitems__([index])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Returns the batch of these examples. torch's loader prefers this method to `__getitem__`."""
        rows = torch.as_tensor(indices)
        pixels = self._decode(indices) if self.decoded is None else self.decoded[rows]
        batch = {"pixel_values": pixels, "labels": self.labels[rows]}
        draws = {} if self.random is None else {"draws": self.random.uniform(rows)}
        if self.transform is None:
            return batch | draws
        return batch | {"pixel_values": self.transform(pixels, *draws.values())}

    def _decode_all(self) -> Tensor:
        count = len(self.images)
        decoded = torch.empty(count, 3, self.size, self.size, dtype=torch.uint8)
        with tqdm(total=count, desc="decoding", unit=" images", leave=False) as bar:
            for start in range(0, count, 500):
                indices = range(start, min(start + 500, count))
                decoded[start : indices.stop] = self._decode(indices)
                bar.update(len(indices))
        return decoded

    def _decode(self, indices: Sequence[int]) -> Tensor:
        from torchvision.transforms.v2 import functional

        images = []
        for image in read_images(self.images, self.image_column, indices, self.split):
            if image.size != (self.size, self.size):
                image = functional.resize(image, [self.size, self.size], antialias=True)
            images.append(functional.pil_to_tensor(image))
        return torch.stack(images)


def keep_batch(batch: Any) -> Any:
    """Returns the batch itself: the collator for :class:`ImageDataset`, which hands out whole batches."""
    return batch


def make_up(arguments: Arguments) -> tuple[Any, Any]:
    """Makes random images of 100 classes in the recipe's columns, for smoke runs."""
    from datasets import ClassLabel, Dataset, Features, Image

    image, label = arguments.image_column, arguments.label_column
    names = [f"class {i}" for i in range(100)]
    features = Features({image: Image(), label: ClassLabel(names=names)})

    def split(count: int, seed: int) -> Dataset:
        random = np.random.default_rng(seed)
        shape = (count, arguments.image_size, arguments.image_size, 3)
        images = list(random.integers(0, 256, shape, dtype=np.uint8))
        labels = random.integers(0, len(names), count)
        return Dataset.from_dict({image: images, label: labels}, features=features)

    return split(arguments.max_train_samples or 64, 0), split(arguments.max_eval_samples or 32, 1)
