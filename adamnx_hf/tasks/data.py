"""Data sets by their Hub name or from a local folder, and made-up ones of the same schema."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.common.plain_values import read_json
from adamnx_hf.common.splits import PartOfSplit

__all__ = [
    "IMAGES_DISPLACE",
    "DataArguments",
    "ImageArguments",
    "check_class_names",
    "check_columns",
    "check_images",
    "check_same_classes",
    "choose_column",
    "choose_image_column",
    "doc",
    "load_splits",
    "local_data",
]

#: Fields of image tasks that leave others of the recipe without effect, where a flag gives them.
IMAGES_DISPLACE = {
    "architecture": ("model_name_or_path", "architecture_options"),
    "model_name_or_path": ("architecture", "architecture_options"),
}


def doc(text: str, data: bool = False, neutral: bool = False) -> dict[str, Any]:
    """The `metadata` of a field whose help `text` is.

    Args:
        text: of the help.
        data: whether the field says which data, or how they are read. Of a run with other values a title or
            a table for the recipe's own data would be untrue.
        neutral: whether the field only says where the same data are, so that another value may give the same
            run.
    """
    return {"help": text, "data": data, "neutral": neutral}


@dataclasses.dataclass
class DataArguments:
    """Fields of a recipe that say which data; every task has them."""

    dataset_name: str | None = dataclasses.field(
        default=None,
        metadata=doc(
            "Hub name of a data set, or a local one: a folder, or a file of CSV, JSON or Parquet.",
            data=True,
            neutral=True,
        ),
    )
    dataset_config_name: str | None = dataclasses.field(
        default=None, metadata=doc("Configuration of the data set.", data=True, neutral=True)
    )
    dataset_revision: str | None = dataclasses.field(
        default=None,
        metadata=doc("Branch, tag or commit of the data set on the Hub.", data=True, neutral=True),
    )
    data_files: dict | str | None = dataclasses.field(
        default=None,
        metadata=doc(
            "Files of each split in the data set's repository or folder, as load_dataset takes them, as JSON "
            'on the command line: {"train": ["a/*.parquet"], ...}.',
            data=True,
            neutral=True,
        ),
    )
    train_split: str = dataclasses.field(
        default="train",
        metadata=doc(
            "Split to train on, or a part of it by its rows: train[:90%%]; see also hold_out.", data=True
        ),
    )
    eval_split: str = dataclasses.field(
        default="test",
        metadata=doc("Split to evaluate on; of a data set without one, see hold_out.", data=True),
    )
    max_train_samples: int | None = dataclasses.field(
        default=None, metadata=doc("Train on the first so many examples only.", data=True)
    )
    max_eval_samples: int | None = dataclasses.field(
        default=None, metadata=doc("Evaluate on the first so many examples only.", data=True)
    )
    hold_out: int = dataclasses.field(
        default=0,
        metadata=doc(
            "Percent of the training rows that are not trained on: drawn at random, of each class its share.",
            data=True,
        ),
    )
    hold_out_seed: int = dataclasses.field(
        default=0,
        metadata=doc("Which rows hold_out draws. The seed of the run does not change them.", data=True),
    )
    eval_on_held_out: bool = dataclasses.field(
        default=False,
        metadata=doc("Evaluate on the rows that hold_out takes out, not on eval_split.", data=True),
    )

    sweep_hold_out: int = dataclasses.field(
        default=0,
        metadata=doc(
            "As hold_out, of the rows that it leaves: `compare` chooses settings by these.", data=True
        ),
    )
    eval_on_sweep_rows: bool = dataclasses.field(
        default=False,
        metadata=doc("Evaluate on the rows that sweep_hold_out takes out, not on eval_split.", data=True),
    )

    def __post_init__(self) -> None:
        if isinstance(self.data_files, str):
            self.data_files = read_json(self.data_files)
        _check_data_files(self.data_files)
        for name in ("max_train_samples", "max_eval_samples"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name}: {count} is not a number of examples; at least 1")
        for name in ("hold_out", "sweep_hold_out"):
            if not 0 <= getattr(self, name) <= 50:
                raise ValueError(f"{name}: {getattr(self, name)} is not a percentage from 0 to 50")
        if not 0 <= self.hold_out_seed < 2**32:
            raise ValueError(f"hold_out_seed: {self.hold_out_seed} is not from 0 to {2**32 - 1}")
        for name, rows in (("eval_on_held_out", "hold_out"), ("eval_on_sweep_rows", "sweep_hold_out")):
            if getattr(self, name) and not getattr(self, rows):
                raise ValueError(f"{name}: nothing is held out; set {rows}, too")

    @property
    def trained_split(self) -> str:
        """How messages name the rows that are trained on."""
        held_out = self.hold_out or self.sweep_hold_out
        name = f"{self.train_split} without the rows held out" if held_out else self.train_split
        return self._part_named(name, 0)

    @property
    def judged_split(self) -> str:
        """How messages name the rows that are judged on."""
        held_out = self.eval_on_held_out or self.eval_on_sweep_rows
        return self._part_named(f"{self.train_split}, the rows held out" if held_out else self.eval_split, 1)

    def _part_named(self, name: str, which: int) -> str:
        loaded: Any = getattr(self, "_loaded", None)
        return name if loaded is None else PartOfSplit(name, *loaded[which])


@dataclasses.dataclass
class ImageArguments(DataArguments):
    """What tasks on images have besides: their column, the network, and how images become its input."""

    image_column: str = dataclasses.field(
        default="image", metadata=doc("Column of the images.", data=True, neutral=True)
    )
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


def local_data(name: str) -> Path | None:
    """The local folder or file that the `dataset_name` `name` stands for; None if it is a name on the Hub."""
    path = Path(os.path.expanduser(name))
    return path if path.is_dir() or path.is_file() else None


def load_splits(
    arguments: DataArguments,
    *,
    labels: Callable[[Any], Sequence[Any]] | None = None,
    spread: bool = False,
    notes: list[str] | None = None,
) -> tuple[Any, Any]:
    """The training and the evaluation split, as `datasets.Dataset`.

    Args:
        arguments: say which. Their `trained_split` and `judged_split` know from then on which rows they are.
        labels: returns a class for each row of the training split. What is held out then has of each class
            its share.
        spread: `max_train_samples` and `max_eval_samples` take rows from all over a split, not its first.
        notes: gets a line on rows that the splits of the recipe leave out.

    Raises:
        RecipeError: the data set, or one of the splits, is not there or has no rows; or files of the data
            set number their classes differently.
    """
    data = _load(arguments)
    used: dict[str, set[int]] = {}

    def choose(field: str, most: str) -> tuple[str, np.ndarray]:
        name, rows = _part(data, getattr(arguments, field), field, arguments.dataset_name)
        used.setdefault(name, set()).update(rows)
        count = min(getattr(arguments, most) or len(rows), len(rows))
        return name, np.asarray(rows)[_spread(len(rows), count) if spread else slice(count)]

    split, train = choose("train_split", "max_train_samples")
    arguments._loaded = (split, train), (split, train)  # type: ignore[attr-defined]
    evaluation = None
    for field, judged_by in (("hold_out", "eval_on_held_out"), ("sweep_hold_out", "eval_on_sweep_rows")):
        if percent := getattr(arguments, field):
            classes = None if labels is None else labels(data[split].select(train))
            left, held_out = _hold_out(len(train), percent, field, arguments.hold_out_seed, classes)
            if getattr(arguments, judged_by):
                evaluation = split, train[held_out]
            train = train[left]
    if evaluation is None:
        evaluation = choose("eval_split", "max_eval_samples")
    arguments._loaded = (split, train), evaluation  # type: ignore[attr-defined]
    for name, rows in used.items():
        if notes is not None and (unused := len(data[name]) - len(rows)):
            notes.append(
                f"{unused:,} of the {len(data[name]):,} rows of the split {name!r} are neither trained nor "
                f"judged on: see --train_split ({arguments.train_split}) and --eval_split "
                f"({arguments.eval_split})"
            )
    chosen = [data[name].select(rows) for name, rows in ((split, train), evaluation)]
    if isinstance(arguments, ImageArguments):
        chosen = list(map(_with_images, chosen))
    return chosen[0], chosen[1]


def _hold_out(
    rows: int, percent: int, field: str, seed: int, classes: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the rows that are held out.

    Args:
        rows: how many there are.
        percent: of them are held out, at least one.
        field: says so, for messages.
        seed: of the draw.
        classes: of the rows; each has its share of what is held out. None: rows have none.

    Returns:
        The places of the rows that are left, and of those that are held out, in their order.

    Raises:
        RecipeError: there is one row or none.
    """
    if rows < 2:
        raise RecipeError(f"{field}: of {rows} training row none can be held out")
    order = np.random.default_rng(seed).permutation(rows)
    if classes is not None:  # one class after the other: rows at even distances are of each class its share
        _, ids = np.unique(np.asarray(classes), return_inverse=True)
        order = order[np.argsort(ids[order], kind="stable")]
    held_out = np.sort(order[_spread(rows, max(1, round(rows * percent / 100)))])
    return np.setdiff1d(order, held_out), held_out


def _spread(rows: int, count: int) -> list[int]:
    """`count` of `rows`, at even distances."""
    return [int((i + 0.5) * rows / count) for i in range(count)]


def _load(arguments: DataArguments) -> Mapping[str, Any]:
    """The data set by its splits.

    Raises:
        RecipeError: it is not there, or its files number their classes differently.
    """
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as formats

    name = arguments.dataset_name
    if not name:
        raise RecipeError("dataset_name: the recipe names no data set; add --dataset_name NAME_OR_FOLDER")
    local = local_data(name)
    if name in formats and not (local and local.is_dir()):
        # load_dataset would read files of the current folder, and a recipe may be somebody else's.
        raise RecipeError(
            f"dataset_name: {name!r} is a format of files, no data set; pass the folder that they are in: "
            "--dataset_name path/to/folder"
        )
    options: dict[str, Any] = {"name": arguments.dataset_config_name, "data_files": arguments.data_files}
    try:
        if local and local.is_dir() and _saved_to_disk(local):
            saved = datasets.load_from_disk(str(local))
            return dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        if local and local.is_file():
            builder = datasets.load_dataset_builder(str(local.parent), data_files=local.name)
        elif local:
            # The recipe's are the Hub's: a folder without configurations has none to choose from.
            if datasets.get_dataset_config_names(str(local)) == ["default"]:
                options["name"] = None
            builder = datasets.load_dataset_builder(str(local), **options)
        else:
            builder = datasets.load_dataset_builder(name, revision=arguments.dataset_revision, **options)
        builder.download_and_prepare()
        data = {  # as_dataset refuses one without rows
            split: builder.as_dataset(split) if info.num_examples else []
            for split, info in builder.info.splits.items()
        }
        files = list(_class_names_by_file(builder))
    except Exception as error:  # of many libraries' kinds: the Hub's, HTTP's, the reader's
        cause: BaseException = error
        while local and cause.__cause__:  # datasets' own says no more than that there was one
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split())[:160]}"
        if local:
            raise RecipeError(f"dataset_name: {name} cannot be read as a data set ({reason})") from error
        raise RecipeError(
            f"dataset_name: {name!r} is not a local folder and did not come from the Hub ({reason}); either "
            "connect to the Hub (and unset HF_HUB_OFFLINE), or pass a local copy of the same schema: "
            "--dataset_name path/to/folder"
        ) from error
    _check_numbering(files)
    return data


def _with_images(data: Any) -> Any:
    """Casts columns of image files' bytes to images: Parquet that others than `datasets` wrote has them."""
    from datasets import Image

    for name, feature in data.features.items():
        stored = isinstance(feature, dict) and {"bytes"} <= feature.keys() <= {"bytes", "path"}
        if stored or getattr(feature, "dtype", None) in ("binary", "large_binary"):
            data = data.cast_column(name, Image())
    return data


def _saved_to_disk(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` has written `folder`."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _class_names_by_file(builder: Any) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yields each Parquet file of a data set with its own class names, by column.

    `datasets` takes the names of the first file for all, and keeps the others' numbers.
    """
    import pyarrow.parquet  # type: ignore[import-untyped]
    from datasets import DownloadManager, Features
    from datasets.packaged_modules.parquet.parquet import Parquet

    if not isinstance(builder, Parquet) or not builder.config.data_files:
        return
    for files in builder.config.data_files.values():
        # Those of the Hub are in the cache by now.
        for file, path in zip(files, DownloadManager().download(list(files)), strict=True):
            features = Features.from_arrow_schema(pyarrow.parquet.read_schema(path))
            yield PurePosixPath(str(file)).name, dict(_class_names(features))


def _class_names(feature: Any, column: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yields the names of each ClassLabel within `feature`, with the path of columns and fields to it."""
    if isinstance(feature, dict):
        for name, inner in feature.items():
            yield from _class_names(inner, f"{column}.{name}" if column else name)
    elif hasattr(feature, "feature"):
        yield from _class_names(feature.feature, column)
    elif getattr(feature, "names", None):
        yield column, list(feature.names)


def _check_numbering(files: Sequence[tuple[str, dict[str, list[str]]]]) -> None:
    """Checks that a number is the same class in all files.

    Raises:
        RecipeError: it is not.
    """
    first: dict[str, tuple[str, list[str]]] = {}
    for file, columns in files:
        for column, names in columns.items():
            other, known = first.setdefault(column, (file, names))
            for i, (name, there) in enumerate(zip(names, known, strict=False)):
                if name != there:
                    raise RecipeError(
                        f"dataset_name: {column} {i} is {name!r} in {file}, and {there!r} in {other}; write "
                        "them anew with the same names in the same order (Dataset.align_labels_with_mapping)"
                    )
            if len(names) > len(known):
                first[column] = (file, names)


def _part(data: Mapping[str, Any], spec: str, field: str, dataset: str | None) -> tuple[str, range]:
    """A split and rows of it, as `datasets` writes them: `train`, `train[:90%]`, `train[100:200]`."""
    import datasets

    where = f"{field}: {dataset}"
    name, bracket, _ = spec.partition("[")
    if name not in data:
        remedy = ""
        if field == "eval_split":
            remedy = "; to judge by a part of the training rows: --hold_out 20 --eval_on_held_out true"
        raise RecipeError(f"{where} has no split {name!r}{nearest(name, data)}{remedy}")
    if not len(data[name]):
        raise RecipeError(f"{where}: the split {name!r} has no rows")
    if not bracket:
        return name, range(len(data[name]))
    try:
        (part,) = datasets.ReadInstruction.from_spec(spec).to_absolute({name: len(data[name])})
    except (ValueError, AssertionError) as error:
        raise RecipeError(f"{where}: {spec!r} is not a part of a split, such as {name}[:90%]") from error
    rows = range(part.from_, part.to)
    if not rows:
        raise RecipeError(f"{where}: {spec!r} holds no rows; {name} has {len(data[name])}")
    return name, rows


def check_class_names(names: Sequence[str]) -> None:
    """That each stands once.

    Raises:
        ValueError: one stands twice.
    """
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"class_names: {twice[0]!r} is given twice")


def check_same_classes(train: Sequence[str], evaluation: Sequence[str]) -> None:
    """Checks that the evaluation split numbers its classes as the training split does.

    Args:
        train, evaluation: the names of the classes 0, 1, ... Either may have more than the other.

    Raises:
        RecipeError: a number is another class in the evaluation split.
    """
    for i, (known, name) in enumerate(zip(train, evaluation, strict=False)):
        if known != name:
            raise RecipeError(
                f"eval_split: class {i} is {name!r} there, and {known!r} in train_split; write both with the "
                "same names in the same order (Dataset.align_labels_with_mapping)"
            )


def choose_column(
    data: Sequence[Any],
    field: str,
    column: str,
    *,
    given: Collection[str],
    fits: Callable[[str, Any], bool],
    what: str,
    notes: list[str],
) -> str:
    """Chooses the column of `data`: the recipe's or, where it is not there, the only one that fits.

    Args:
        data: the splits.
        field: of the recipe, which names the column.
        column: that name.
        given: the fields that flags gave. Nothing is put in the place of those.
        fits: whether a column can be it, by name and feature.
        what: such columns hold, for messages.
        notes: gets a line that says what was put in its place.

    Raises:
        RecipeError: no column, or more than one, fits.
    """
    for split in data:
        if column not in split.column_names:
            there = [name for name, feature in split.features.items() if fits(name, feature)]
            if field in given or len(there) != 1:
                near = nearest(column, split.column_names, most=0 if there else 12)
                remedy = f"; pass --{field} with one of those that hold {what}: {', '.join(there)}"
                raise RecipeError(f"{field}: the data set has no column {column!r}{near or remedy}")
            notes.append(f"{field}: the data set has no {column!r}; {there[0]!r} holds {what}")
            return choose_column(
                data, field, there[0], given=(*given, field), fits=fits, what=what, notes=notes
            )
    return column


def choose_image_column(
    data: Sequence[Any],
    arguments: ImageArguments,
    given: Collection[str],
    notes: list[str],
    field: str = "image_column",
    other: str | None = None,
) -> None:
    """Sets a field of `arguments` to the only column of images where the recipe's is not there.

    Args:
        data: the splits.
        arguments: the task's.
        given, notes: see :func:`choose_column`.
        field: names the column.
        other: a field that names another column of images, which this one cannot be.

    Raises:
        RecipeError: none is there, several are, or the column does not hold images.
    """
    taken = getattr(arguments, other) if other else None

    def fits(name: str, feature: Any) -> bool:
        return _holds_images(feature) and name != taken

    wanted = getattr(arguments, field)
    chosen = choose_column(data, field, wanted, given=given, fits=fits, what="images", notes=notes)
    setattr(arguments, field, chosen)
    for split in data:
        check_images(split, field, chosen)


def _holds_images(feature: Any) -> bool:
    from datasets import Image

    return isinstance(feature, Image)


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
    if not _holds_images(data.features[column]):
        images = [name for name, feature in data.features.items() if _holds_images(feature)]
        raise RecipeError(
            f"{field}: {column!r} does not hold images; those that do: {', '.join(images) or 'none'}"
        )
