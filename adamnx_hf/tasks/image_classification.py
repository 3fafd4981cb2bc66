"""Image classification: images and class ids to a trained classifier, judged by its top-k error."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adamnx_hf import metrics
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.images import named, pictures
from adamnx_hf.tasks.base import Metric, as_rest
from adamnx_hf.tasks.data import (
    IMAGES_DISPLACE,
    ImageArguments,
    check_same_classes,
    choose_column,
    choose_image_column,
    doc,
    load_splits,
)
from adamnx_hf.tasks.pretrained import check_pretrained
from adamnx_hf.tasks.randomness import RowRandom
from adamnx_hf.tasks.trainer import RecipeTrainer

if TYPE_CHECKING:
    from adamnx_hf.tasks.base import Recipe

__all__ = ["DISPLACES", "METRICS", "UNIT", "Arguments", "ImageDataset", "fast", "make_trainer", "smoke"]

#: Reported best and last; the best is the lowest.
METRICS = {
    "top1_error": Metric("min", "accuracy", "Accuracy", as_rest),
    "top5_error": Metric("min", "accuracy", "Top-5 accuracy", as_rest),
}

UNIT = "images"

DISPLACES = IMAGES_DISPLACE

#: The highest class id without a name: a network has an output for each.
HIGHEST_ID = 100_000

#: Names of columns that hold classes, where nothing else tells.
LABEL_COLUMNS = ("label", "labels", "class", "category", "target")


@dataclasses.dataclass
class Arguments(ImageArguments):
    """The fields of a recipe for image classification."""

    label_column: str = dataclasses.field(
        default="label", metadata=doc("Column of the classes: ids from 0, or names.", data=True, neutral=True)
    )
    architecture: str | None = dataclasses.field(
        default=None,
        metadata=doc(
            "A torchvision network, from scratch, one of adamnx_hf.models.torchvision_net.nets.NETS."
        ),
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
    from adamnx_hf.models.torchvision_net import nets

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
    from adamnx_hf.models.torchvision_net import nets

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
        image_column: its name.
        labels: the class id of each row.
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
    notes: list[str] = []

    def labels_of(data: Any) -> list[Any]:
        column = _choose_label_column([data], arguments, recipe.given, [])
        return list(_read_labels(data, column, arguments.trained_split))

    with recipe.training_arguments.main_process_first(desc="loading the data"):
        if recipe.synthetic_data:
            splits = _synthetic(arguments)
        else:
            splits = load_splits(arguments, labels=labels_of, spread=recipe.arguments.smoke, notes=notes)
    choose_image_column(splits, arguments, recipe.given, notes)
    arguments.label_column = _choose_label_column(splits, arguments, recipe.given, notes)
    train, test = splits
    classes, train_labels, test_labels = _number_classes(splits, arguments, recipe.arguments.smoke)
    notes += _tell_unseen(classes, train_labels, test_labels, arguments.judged_split)

    on_train = transforms.train_transform(
        mean=arguments.image_mean,
        std=arguments.image_std,
        jitter=arguments.jitter_probability,
        flip=arguments.flip_probability,
    )
    on_eval = transforms.eval_transform(mean=arguments.image_mean, std=arguments.image_std)

    def dataset(
        data: Any, labels: Any, split: str, transform: Any, random: RowRandom | None = None
    ) -> ImageDataset:
        return ImageDataset(
            data,
            split=split,
            random=random,
            image_column=arguments.image_column,
            labels=labels,
            size=arguments.image_size,
            transform=None if arguments.augment_on_device else transform,
            keep_decoded=arguments.keep_decoded,
        )

    metric = metrics.load("top_k_error")
    k = [int(name.removeprefix("top").removesuffix("_error")) for name in METRICS]
    learned = len(np.unique(train_labels))
    k = [most for most in k if most < learned]  # the others are never wrong
    by = (recipe.training_arguments.metric_for_best_model or "").removeprefix("eval_")
    if by in METRICS and by not in [f"top{most}_error" for most in k]:
        raise RecipeError(
            f"metric_for_best_model: {by} is always 0 with {learned} classes; pass "
            "--metric_for_best_model top1_error"
        )

    def compute_metrics(prediction: Any) -> dict[str, float]:
        scores: dict[str, float] = metric.compute(
            predictions=prediction.predictions, references=prediction.label_ids, k=k
        )
        return scores

    trainer = RecipeTrainer(
        model=_model(arguments, classes, recipe),
        args=recipe.training_arguments,
        train_dataset=dataset(
            train,
            train_labels,
            arguments.trained_split,
            on_train,
            RowRandom(len(train), recipe.training_arguments.seed, on_train.draws),
        ),
        eval_dataset=dataset(test, test_labels, arguments.judged_split, on_eval),
        data_collator=as_it_is,
        compute_metrics=compute_metrics,
        processing_class=_processor(arguments),
        train_transform=on_train if arguments.augment_on_device else None,
        eval_transform=on_eval if arguments.augment_on_device else None,
    )
    trainer.notes += notes
    return trainer


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
        model = AutoModelForImageClassification.from_pretrained(
            arguments.model_name_or_path,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            trust_remote_code=False,  # None would ask whoever sits at the terminal
            **labels,
        )
        _check_size(model, arguments.image_size)
        return model
    config = TorchvisionNetConfig(
        arguments.architecture, arguments.architecture_options, image_size=arguments.image_size, **labels
    )
    return TorchvisionNetForImageClassification(config)


@torch.no_grad()
def _check_size(model: Any, size: int) -> None:
    """Checks that a model takes images of `size` pixels, which not every one does.

    Raises:
        RecipeError: it does not.
    """
    try:
        model.eval()(pixel_values=torch.zeros(1, 3, size, size))
    except (ValueError, RuntimeError) as error:
        own = getattr(model.config, "image_size", None)
        remedy = f"pass --image_size {own}" if isinstance(own, int) and own != size else "choose another size"
        raise RecipeError(
            f"image_size: the model does not take images of {size} x {size} pixels; {remedy} ({error})"
        ) from error
    finally:
        model.train()


def _processor(arguments: Arguments) -> Any:
    """What prepares images for the saved model, in `pipeline` and elsewhere, as evaluation does here."""
    from transformers import ViTImageProcessor

    return ViTImageProcessor(
        size={"height": arguments.image_size, "width": arguments.image_size},
        image_mean=arguments.image_mean,
        image_std=arguments.image_std,
    )


def _choose_label_column(
    data: Sequence[Any], arguments: Arguments, given: Collection[str], notes: list[str]
) -> str:
    """Chooses the column of classes; see :func:`adamnx_hf.tasks.data.choose_column`."""
    from datasets import ClassLabel

    features = data[0].features
    named_ones = any(isinstance(feature, ClassLabel) for feature in features.values())

    def fits(name: str, feature: Any) -> bool:
        return isinstance(feature, ClassLabel) if named_ones else name.lower() in LABEL_COLUMNS

    column = arguments.label_column
    return choose_column(data, "label_column", column, given=given, fits=fits, what="classes", notes=notes)


def _read_labels(data: Any, column: str, split: str) -> np.ndarray:
    """Reads a column of class ids or names.

    Raises:
        RecipeError: it holds something else, or a row has none; names the row.
    """
    feature = data.features[column]
    kind = str(getattr(feature, "dtype", ""))
    if not kind.startswith(("int", "uint", "string", "large_string", "bool")):
        raise RecipeError(f"label_column: {column!r} does not hold class ids or names but {feature}")
    values = data[column][:]
    for row, value in enumerate(values):
        if value is None or value == -1 or value == "":
            shown = "no class" if value is None else f"the class {value!r}, which stands for none"
            raise RecipeError(
                f"{named(column, row, split)} has {shown}; leave the row out, or give it its class"
            )
    return np.asarray(values)


def _number_classes(
    splits: Sequence[Any], arguments: Arguments, smoke: bool
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Numbers the classes from 0.

    Args:
        splits: what is trained on and what is judged.
        arguments: name the column.
        smoke: whether the rows are a handful, in which classes may be missing.

    Returns:
        The classes' names, and the class id of each row of both splits. Names that stand in the rows
        themselves are numbered in their order; numbers without names are the ids, up to the highest.

    Raises:
        RecipeError: a row has no class, or one that no row to train on has and that has no name; both splits
            number their classes differently; or there is one class alone.
    """
    column, names = arguments.label_column, (arguments.trained_split, arguments.judged_split)
    labels = [_read_labels(data, column, name) for data, name in zip(splits, names, strict=True)]
    own = [list(getattr(data.features[column], "names", None) or ()) for data in splits]
    check_same_classes(*own)
    classes = own[0]
    if any(ids.dtype.kind not in "iu" for ids in labels):
        for i, name in enumerate(names):
            if labels[i].dtype.kind in "iu":  # of a split in which the other's names are numbers
                if not own[i]:
                    raise RecipeError(
                        f"label_column: {column!r} holds numbers in the split {name!r}, and names in the "
                        "other; write both alike"
                    )
                labels[i] = np.asarray(own[i])[labels[i]]
        classes = classes or [str(name) for name in np.unique(np.concatenate(labels) if smoke else labels[0])]
        labels = [_as_ids(words, classes, column, name) for words, name in zip(labels, names, strict=True)]
    elif not classes:
        highest = int(max(ids.max() for ids in labels) if smoke else labels[0].max())
        if highest > HIGHEST_ID:
            raise RecipeError(
                f"label_column: {column!r} goes up to {highest}, and class ids are counted from 0; count "
                "them anew, or is it another column: --label_column NAME?"
            )
        classes = [str(i) for i in range(highest + 1)]
    for ids, name in zip(labels, names, strict=True):
        strange = np.flatnonzero((ids < 0) | (ids >= len(classes)))
        if len(strange):
            row = int(strange[0])
            raise RecipeError(
                f"{named(column, row, name)} has the class {ids[row]}; those of {names[0]!r} are 0 to "
                f"{len(classes) - 1}"
            )
    train, test = labels
    if not smoke and len(np.unique(train)) == 1:
        raise RecipeError(
            f"label_column: every row of {names[0]!r} is of one class, {classes[train[0]]!r}; if the rows "
            "are sorted by class, pass the whole split with --hold_out 20 --eval_on_held_out true"
        )
    return classes, train, test


def _as_ids(labels: np.ndarray, classes: Sequence[str], column: str, split: str) -> np.ndarray:
    """The places of names among `classes`."""
    places = {name: i for i, name in enumerate(classes)}
    for row, name in enumerate(labels):
        if str(name) not in places:
            raise RecipeError(
                f"{named(column, row, split)} has the class {str(name)!r}, which no row to train on has"
            )
    return np.array([places[str(name)] for name in labels], dtype=np.int64)


def _tell_unseen(classes: Sequence[str], train: np.ndarray, test: np.ndarray, judged: str) -> list[str]:
    """What a judgement on other classes than those learned says too little about, in a line each."""
    learned, asked = np.bincount(train, minlength=len(classes)), np.bincount(test, minlength=len(classes))
    unseen = np.flatnonzero((learned == 0) & (asked > 0))
    remedy = "if the rows are sorted by class, pass the whole split with --hold_out 20 --eval_on_held_out"
    notes = []
    without = np.flatnonzero(learned == 0)
    if len(without):
        notes.append(
            f"{len(without):,} of the {len(classes):,} classes have no row to train on: "
            f"{_list_some([classes[i] for i in without.tolist()])}"
        )
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(" ".join(name.split()).casefold(), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            notes.append(f"these are different classes: {_list_some(names)}")
    if len(unseen):
        shown = _list_some([classes[i] for i in unseen.tolist()])
        notes.append(
            f"{asked[unseen].sum():,} of the {len(test):,} rows of {judged} are of classes that no row to "
            f"train on has: {shown}; {remedy}"
        )
    if np.count_nonzero(asked) == 1 < np.count_nonzero(learned):
        notes.append(f"every row of {judged} is of one class, {classes[int(asked.argmax())]!r}; {remedy}")
    return notes


def _list_some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


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
