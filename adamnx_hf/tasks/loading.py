"""Data sets by their Hub name or from a local folder, split into rows to train on and rows to judge."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.tasks.base import Recipe
from adamnx_hf.tasks.data import DataArguments, ImageArguments

__all__ = ["load_data", "load_splits", "local_data"]


def load_data(
    recipe: Recipe,
    make_up: Callable[[Any], tuple[Any, Any]],
    labels: Callable[[Any], Sequence[Any]] | None = None,
) -> tuple[tuple[Any, Any], list[str]]:
    """Loads the training and the evaluation split of a recipe; of several processes the first one goes ahead.

    Args:
        recipe: says which.
        make_up: returns made-up splits for the task's arguments, where a smoke run needs them.
        labels: see :func:`load_splits`.

    Returns:
        The splits as `datasets.Dataset`, and notes for the user.

    Raises:
        RecipeError: see :func:`load_splits`.
    """
    arguments, notes = recipe.task_arguments, list[str]()
    with recipe.training_arguments.main_process_first(desc="loading the data"):
        if recipe.synthetic_data:
            return make_up(arguments), notes
        return load_splits(arguments, labels=labels, spread=recipe.arguments.smoke, notes=notes), notes


def local_data(name: str) -> Path | None:
    """Returns the local folder or file that a `dataset_name` stands for; None if it is a name on the Hub."""
    path = Path(os.path.expanduser(name))
    return path if path.is_dir() or path.is_file() else None


def load_splits(
    arguments: DataArguments,
    *,
    labels: Callable[[Any], Sequence[Any]] | None = None,
    spread: bool = False,
    notes: list[str] | None = None,
) -> tuple[Any, Any]:
    """Loads the training and the evaluation split, as `datasets.Dataset`.

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
    """Returns `count` of `rows`, at even distances."""
    return [int((i + 0.5) * rows / count) for i in range(count)]


def _part(data: Mapping[str, Any], spec: str, field: str, dataset: str | None) -> tuple[str, range]:
    """Parses a split and rows of it, as `datasets` writes them: `train`, `train[:90%]`, `train[100:200]`."""
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


def _load(arguments: DataArguments) -> Mapping[str, Any]:
    """Loads the data set by its splits.

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
        if local and any((local / file).is_file() for file in ("dataset_dict.json", "state.json")):
            # What save_to_disk of a DatasetDict or of a Dataset has written.
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
        # Data sets of the Hub are in the cache by now.
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
