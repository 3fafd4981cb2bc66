"""Data sets by their Hub name or from a local folder, and made-up ones of the same schema."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from adamnx_hf.errors import RecipeError, nearest
from adamnx_hf.plain_values import read_json

__all__ = [
    "DataArguments",
    "ImageArguments",
    "check_class_names",
    "check_columns",
    "check_images",
    "doc",
    "load_splits",
]


def doc(text: str) -> dict[str, str]:
    """The `metadata` of a field whose help `text` is."""
    return {"help": text}


@dataclasses.dataclass
class DataArguments:
    """Fields of a recipe that say which data; every task has them."""

    dataset_name: str | None = dataclasses.field(
        default=None, metadata=doc("Hub name of a data set, or a local folder of the same schema.")
    )
    dataset_config_name: str | None = dataclasses.field(
        default=None, metadata=doc("Configuration of the data set.")
    )
    dataset_revision: str | None = dataclasses.field(
        default=None, metadata=doc("Branch, tag or commit of the data set on the Hub.")
    )
    data_files: dict | str | None = dataclasses.field(
        default=None,
        metadata=doc(
            "Files of each split in the data set's repository on the Hub, as load_dataset takes them, as "
            'JSON on the command line: {"train": ["a/*.parquet"], ...}. A local folder is read whole.'
        ),
    )
    train_split: str = dataclasses.field(
        default="train", metadata=doc("Split to train on, or a part of it: train[:90%%].")
    )
    eval_split: str = dataclasses.field(
        default="test", metadata=doc("Split to evaluate on, or a part of one: train[90%%:].")
    )
    max_train_samples: int | None = dataclasses.field(
        default=None, metadata=doc("Train on the first so many examples only.")
    )
    max_eval_samples: int | None = dataclasses.field(
        default=None, metadata=doc("Evaluate on the first so many examples only.")
    )
    hold_out: int = dataclasses.field(
        default=0, metadata=doc("Percent of the training rows, spread evenly, that are not trained on.")
    )
    eval_on_held_out: bool = dataclasses.field(
        default=False, metadata=doc("Evaluate on the rows that hold_out takes out, not on eval_split.")
    )

    def __post_init__(self) -> None:
        if isinstance(self.data_files, str):
            self.data_files = read_json(self.data_files)
        _check_data_files(self.data_files)
        for name in ("max_train_samples", "max_eval_samples"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name}: {count} is not a number of examples; at least 1")
        if not 0 <= self.hold_out <= 50:
            raise ValueError(f"hold_out: {self.hold_out} is not a percentage from 0 to 50")
        if self.eval_on_held_out and not self.hold_out:
            raise ValueError("eval_on_held_out: nothing is held out; set hold_out, too")


@dataclasses.dataclass
class ImageArguments(DataArguments):
    """What tasks on images have besides: their column, the network, and how images become its input."""

    image_column: str = dataclasses.field(default="image", metadata=doc("Column of the images."))
    architecture: str | None = dataclasses.field(default=None, metadata=doc("A network, from scratch."))
    architecture_options: dict | str | None = dataclasses.field(
        default=None, metadata=doc("What to change of the network, as JSON on the command line.")
    )
    model_name_or_path: str | None = dataclasses.field(
        default=None,
        metadata=doc("Instead of architecture: a model of the Hub, or a saved one, to fine-tune."),
    )
    image_mean: list[float] = dataclasses.field(
        default_factory=lambda: [0.5, 0.5, 0.5],
        metadata=doc("Subtracted from the channels of images in [0, 1]."),
    )
    image_std: list[float] = dataclasses.field(
        default_factory=lambda: [0.5, 0.5, 0.5], metadata=doc("What the channels are then divided by.")
    )
    flip_probability: float = dataclasses.field(
        default=0.5, metadata=doc("Probability of mirroring a training image.")
    )
    keep_decoded: bool = dataclasses.field(
        default=False, metadata=doc("Decode every image once and keep them all in memory.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.architecture_options, str):
            self.architecture_options = read_json(self.architecture_options)
        if bool(self.architecture) == bool(self.model_name_or_path):
            raise ValueError("give either architecture or model_name_or_path")
        for name, value in vars(self).items():
            if name.endswith("_probability") and not 0 <= value <= 1:
                raise ValueError(f"{name}: {value} is not a probability from 0 to 1")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3 or not all(map(math.isfinite, getattr(self, name))):
                raise ValueError(f"{name}: needs 3 numbers, one a channel, got {getattr(self, name)}")
        if min(self.image_std) <= 0:
            raise ValueError(
                f"image_std: the channels are divided by it; {min(self.image_std)} is not above 0"
            )


def _check_data_files(data_files: Any) -> None:
    """That they are files of the data set's repository, by split: `load_dataset` takes any from anywhere.

    Raises:
        ValueError: they are not.
    """
    if data_files is None:
        return
    if not isinstance(data_files, dict) or not data_files:
        raise ValueError(f"data_files: {data_files!r} does not name files by split")
    for split, patterns in data_files.items():
        for pattern in patterns if patterns and isinstance(patterns, list) else [patterns]:
            if (
                not isinstance(pattern, str)
                or ":" in pattern
                or pattern.startswith(("/", "~", "\\"))
                or ".." in PurePosixPath(pattern).parts
            ):
                raise ValueError(
                    f"data_files: {split}: {pattern!r} is no file or pattern in the data set's repository"
                )


def load_splits(arguments: DataArguments) -> tuple[Any, Any]:
    """The training and the evaluation split, as `datasets.Dataset`.

    Raises:
        RecipeError: the data set, or one of the splits, is not there.
    """
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as formats

    name = arguments.dataset_name
    if not name:
        raise RecipeError("dataset_name: the recipe names no data set; add --dataset_name NAME_OR_FOLDER")
    folder = Path(os.path.expanduser(name))
    if name in formats and not folder.is_dir():
        # load_dataset would read files of the current folder, and a recipe may be somebody else's.
        raise RecipeError(
            f"dataset_name: {name!r} is a format of files, no data set; pass the folder that they are in: "
            "--dataset_name path/to/folder"
        )
    options: dict[str, Any] = {"name": arguments.dataset_config_name}
    try:
        if folder.is_dir():
            # The recipe's are the Hub's: a folder without configurations has none to choose from.
            if datasets.get_dataset_config_names(str(folder)) == ["default"]:
                options = {}
            data = datasets.load_dataset(str(folder), **options)
        else:
            options |= {"revision": arguments.dataset_revision, "data_files": arguments.data_files}
            data = datasets.load_dataset(name, **options)
    except Exception as error:  # of many libraries' kinds: the Hub's, HTTP's, the reader's
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        if folder.is_dir():
            raise RecipeError(f"dataset_name: {name} cannot be read as a data set ({reason})") from error
        raise RecipeError(
            f"dataset_name: {name!r} is not a local folder and did not come from the Hub ({reason}); either "
            "connect to the Hub (and unset HF_HUB_OFFLINE), or pass a local copy of the same schema: "
            "--dataset_name path/to/folder"
        ) from error
    splits = []
    for field, most in (("train_split", "max_train_samples"), ("eval_split", "max_eval_samples")):
        split, count = getattr(arguments, field), getattr(arguments, most)
        chosen = _part(data, split, f"{field}: {name}")
        splits.append(chosen if count is None else chosen.select(range(min(count, len(chosen)))))
    train, evaluation = splits
    if arguments.hold_out:
        held_out = _spread(len(train), arguments.hold_out)
        if arguments.eval_on_held_out:
            evaluation = train.select(held_out)
        train = train.select(sorted(set(range(len(train))).difference(held_out)))
    return train, evaluation


def _spread(rows: int, percent: int) -> list[int]:
    """So many percent of `rows`, evenly spread: data sets may be sorted by class."""
    if rows < 2:
        raise RecipeError(f"hold_out: of {rows} training row none can be held out")
    count = max(1, round(rows * percent / 100))
    return [int((i + 0.5) * rows / count) for i in range(count)]


def _part(data: Any, spec: str, where: str) -> Any:
    """A split by its name, or rows of it as `datasets` writes them: `train[:90%]`, `train[100:200]`."""
    import datasets

    name, bracket, _ = spec.partition("[")
    if name not in data:
        raise RecipeError(f"{where} has no split {name!r}{nearest(name, data)}")
    if not bracket:
        return data[name]
    try:
        (part,) = datasets.ReadInstruction.from_spec(spec).to_absolute({name: len(data[name])})
    except (ValueError, AssertionError) as error:
        raise RecipeError(f"{where}: {spec!r} is not a part of a split, such as {name}[:90%]") from error
    rows = range(part.from_, part.to)
    if not rows:
        raise RecipeError(f"{where}: {spec!r} holds no rows; {name} has {len(data[name])}")
    return data[name].select(rows)


def check_class_names(names: Sequence[str]) -> None:
    """That each stands once.

    Raises:
        ValueError: one stands twice.
    """
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"class_names: {twice[0]!r} is given twice")


def check_columns(data: Any, columns: dict[str, str]) -> None:
    """That `data` has each column, by the recipe's field that names it.

    Raises:
        RecipeError: one is not there.
    """
    for field, column in columns.items():
        if column not in data.column_names:
            raise RecipeError(
                f"{field}: the data set has no column {column!r}{nearest(column, data.column_names)}"
            )


def check_images(data: Any, field: str, column: str) -> None:
    """That the column, which the recipe's `field` names, holds images.

    Raises:
        RecipeError: it does not; the message lists those that do.
    """
    from datasets import Image

    if not isinstance(data.features[column], Image):
        images = [name for name, feature in data.features.items() if isinstance(feature, Image)]
        raise RecipeError(
            f"{field}: {column!r} does not hold images; those that do: {', '.join(images) or 'none'}"
        )
