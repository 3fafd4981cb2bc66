"""Image classification: images and class ids to a trained classifier, judged by its top-k error."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adamnx_hf import metrics
from adamnx_hf.errors import RecipeError
from adamnx_hf.images import pictures
from adamnx_hf.tasks.data import ImageArguments, check_columns, check_images, doc, load_splits
from adamnx_hf.tasks.pretrained import check_pretrained
from adamnx_hf.tasks.randomness import RowRandom
from adamnx_hf.tasks.trainer import RecipeTrainer

if TYPE_CHECKING:
    from adamnx_hf.recipe import Recipe

__all__ = ["METRICS", "UNIT", "Arguments", "ImageDataset", "fast", "make_trainer", "smoke"]

#: Reported best and last; the best is the lowest.
METRICS = {"top1_error": "min", "top5_error": "min"}

UNIT = "images"


@dataclasses.dataclass
class Arguments(ImageArguments):
    """The fields of a recipe for image classification."""

    label_column: str = dataclasses.field(default="label", metadata=doc("Column of the class ids."))
    architecture: str | None = dataclasses.field(
        default=None,
        metadata=doc("A torchvision network, from scratch, one of adamnx_hf.models.nets.NETS."),
    )
    image_size: int = dataclasses.field(
        default=32, metadata=doc("Images of another size are resized to it, in pixels.")
    )
    jitter_probability: float = dataclasses.field(
        default=0.5, metadata=doc("Probability of the HSV jitter of a training image.")
    )
    augment_on_device: bool = dataclasses.field(
        default=False,
        metadata=doc("Augment whole batches on the training device, not in the data loader."),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 1:
            raise ValueError(f"image_size: {self.image_size} is not a size in pixels")
        if self.architecture:
            _check_network(self.architecture, json.dumps(self.architecture_options))


@functools.cache
def _check_network(architecture: str, options: str) -> None:
    from adamnx_hf.models import nets

    changes = json.loads(options)
    nets.options_of(architecture, changes)
    try:
        with torch.device("meta"):  # costs no memory, and shows what does not fit
            nets.build(architecture, 2, changes)
    except ModuleNotFoundError:
        pass  # without torchvision: making the model says what to install
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"architecture_options: do not make a network ({reason})") from error


def fast() -> dict[str, Any]:
    """What `--fast` sets."""
    return {
        "bf16": True,
        "use_cpu": not torch.accelerator.is_available(),  # bf16 without a GPU has to be asked for
        "channels_last": True,
        "torch_compile": True,
        "keep_decoded": True,
        "augment_on_device": True,
        "dataloader_num_workers": 0,  # picking decoded images out of memory is too little work to share
    }


def smoke(arguments: Arguments) -> dict[str, Any]:
    """What `--smoke` sets: a tiny network and a few images."""
    from adamnx_hf.models import nets

    tiny: dict[str, Any] = {
        "max_train_samples": 64,
        "max_eval_samples": 32,
        "image_size": min(arguments.image_size, 64),
    }
    if arguments.architecture:
        changes: Any = arguments.architecture_options or {}
        tiny["architecture_options"] = nets.tiny_options(arguments.architecture, changes)
    return tiny


class ImageDataset(torch.utils.data.Dataset):
    """A split of a `datasets` data set, whole batches at a time.

    Args:
        data: the split.
        image_column, label_column: their names.
        size: of the images, in pixels; others are resized, and grey ones made RGB.
        transform: applied to a uint8 batch (n, 3, size, size) and, with `random`, its rows' numbers. None:
            images stay as they are.
        keep_decoded: decode all images now and keep them, 3 · size² bytes each.
        split: its name, for messages.
        random: gives the numbers that images are augmented by.

    Raises:
        RecipeError: an image that cannot be read, when it is; names its row.

    Batches are `{"pixel_values": (n, 3, size, size), "labels": (n,) int64}` and, with `random` and without a
    transform, `"draws"`, the rows' numbers, for a transform on the device.
    """

    def __init__(
        self,
        data: Any,
        *,
        image_column: str,
        label_column: str,
        size: int,
        transform: Callable[..., Tensor] | None = None,
        keep_decoded: bool = False,
        split: str = "train",
        random: RowRandom | None = None,
    ) -> None:
        self.split, self.random = split, random
        self.images = data.select_columns([image_column])
        self.image_column, self.size, self.transform = image_column, size, transform
        self.labels = torch.as_tensor(np.asarray(data.with_format("numpy")[label_column][:], dtype=np.int64))
        self.decoded: Tensor | None = None
        if keep_decoded:
            self.decoded = torch.empty(len(data), 3, size, size, dtype=torch.uint8)
            with tqdm(total=len(data), desc="decoding", unit=" images", leave=False) as bar:
                for start in range(0, len(data), 500):
                    indices = range(start, min(start + 500, len(data)))
                    self.decoded[start : indices.stop] = self._decode(indices)
                    bar.update(len(indices))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch = self.__getitems__([index])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of these examples. torch's loader calls it where it is defined."""
        rows = torch.as_tensor(indices)
        pixels = self._decode(indices) if self.decoded is None else self.decoded[rows]
        batch = {"pixel_values": pixels, "labels": self.labels[rows]}
        draws = {} if self.random is None else {"draws": self.random.uniform(rows)}
        if self.transform is None:
            return batch | draws
        return batch | {"pixel_values": self.transform(pixels, *draws.values())}

    def _decode(self, indices: Sequence[int]) -> Tensor:
        from torchvision.transforms.v2 import functional

        images = []
        for image in pictures(self.images, self.image_column, indices, self.split):
            if image.size != (self.size, self.size):
                image = functional.resize(image, [self.size, self.size], antialias=True)
            images.append(functional.pil_to_tensor(image))
        return torch.stack(images)


def as_it_is(batch: Any) -> Any:
    """The collator: :class:`ImageDataset` hands out whole batches."""
    return batch


def make_trainer(recipe: Recipe) -> RecipeTrainer:
    """The model, the data and the metrics of `recipe` in a Trainer."""
    from adamnx_hf.tasks import transforms

    arguments: Arguments = recipe.task_arguments
    with recipe.training_arguments.main_process_first(desc="loading the data"):
        train, test = _synthetic(arguments) if recipe.synthetic_data else load_splits(arguments)
    check_columns(train, {"image_column": arguments.image_column, "label_column": arguments.label_column})
    check_columns(test, {"image_column": arguments.image_column, "label_column": arguments.label_column})
    for data in (train, test):
        check_images(data, "image_column", arguments.image_column)
    classes = _class_names(train, arguments.label_column)

    on_train = transforms.train_transform(
        mean=arguments.image_mean,
        std=arguments.image_std,
        jitter=arguments.jitter_probability,
        flip=arguments.flip_probability,
    )
    on_eval = transforms.eval_transform(mean=arguments.image_mean, std=arguments.image_std)

    def dataset(data: Any, split: str, transform: Any, random: RowRandom | None = None) -> ImageDataset:
        return ImageDataset(
            data,
            split=split,
            random=random,
            image_column=arguments.image_column,
            label_column=arguments.label_column,
            size=arguments.image_size,
            transform=None if arguments.augment_on_device else transform,
            keep_decoded=arguments.keep_decoded,
        )

    metric = metrics.load("top_k_error")
    k = [int(name.removeprefix("top").removesuffix("_error")) for name in METRICS]

    def compute_metrics(prediction: Any) -> dict[str, float]:
        scores: dict[str, float] = metric.compute(
            predictions=prediction.predictions, references=prediction.label_ids, k=k
        )
        return scores

    return RecipeTrainer(
        model=_model(arguments, classes, recipe),
        args=recipe.training_arguments,
        train_dataset=dataset(
            train,
            arguments.train_split,
            on_train,
            RowRandom(len(train), recipe.training_arguments.seed, on_train.draws),
        ),
        eval_dataset=dataset(test, arguments.eval_split, on_eval),
        data_collator=as_it_is,
        compute_metrics=compute_metrics,
        processing_class=_processor(arguments),
        train_transform=on_train if arguments.augment_on_device else None,
        eval_transform=on_eval if arguments.augment_on_device else None,
    )


def _model(arguments: Arguments, classes: list[str], recipe: Recipe) -> Any:
    from transformers import AutoModelForImageClassification, set_seed

    from adamnx_hf.models import TorchvisionNetConfig, TorchvisionNetForImageClassification

    labels = {
        "id2label": dict(enumerate(classes)),
        "label2id": {name: i for i, name in enumerate(classes)},
    }
    set_seed(recipe.training_arguments.seed)  # the same weights for every optimizer
    if arguments.model_name_or_path:
        check_pretrained(arguments.model_name_or_path)
        return AutoModelForImageClassification.from_pretrained(
            arguments.model_name_or_path,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            trust_remote_code=False,  # None would ask whoever sits at the terminal
            **labels,
        )
    config = TorchvisionNetConfig(
        arguments.architecture, arguments.architecture_options, image_size=arguments.image_size, **labels
    )
    return TorchvisionNetForImageClassification(config)


def _processor(arguments: Arguments) -> Any:
    """What prepares images for the saved model, in `pipeline` and elsewhere, as evaluation does here."""
    from transformers import ViTImageProcessor

    return ViTImageProcessor(
        size={"height": arguments.image_size, "width": arguments.image_size},
        image_mean=arguments.image_mean,
        image_std=arguments.image_std,
    )


def _class_names(data: Any, column: str) -> list[str]:
    feature = data.features[column]
    if hasattr(feature, "names"):
        return list(feature.names)
    if not str(getattr(feature, "dtype", "")).startswith(("int", "uint")):
        raise RecipeError(f"label_column: {column!r} does not hold class ids but {feature}")
    return [str(i) for i in range(int(max(data[column])) + 1)]


def _synthetic(arguments: Arguments, classes: int = 100) -> tuple[Any, Any]:
    """Random images of the recipe's columns, for smoke runs."""
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features(
        {
            arguments.image_column: Image(),
            arguments.label_column: ClassLabel(names=[f"class {i}" for i in range(classes)]),
        }
    )
    shape = (arguments.image_size, arguments.image_size, 3)

    def split(count: int, seed: int) -> Dataset:
        random = np.random.default_rng(seed)
        return Dataset.from_dict(
            {
                arguments.image_column: list(random.integers(0, 256, (count, *shape), dtype=np.uint8)),
                arguments.label_column: random.integers(0, classes, count),
            },
            features=features,
        )

    return split(arguments.max_train_samples or 64, 0), split(arguments.max_eval_samples or 32, 1)
