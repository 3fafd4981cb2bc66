"""Data sets from the Hub or a local folder, split into rows to train on and rows to judge by."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.tasks.base import Recipe
from adamnx_hf.tasks.data import DataArguments, ImageArguments

__all__ = ["find_local_data", "load_data", "load_splits"]


def load_data(
    recipe: Recipe,
    make_up: Callable[[Any], tuple[Any, Any]],
    labels: Callable[[Any], Sequence[Any]] | None = None,
) -> tuple[tuple[Any, Any], list[str]]:
    """Loads a recipe's training and evaluation split. The first of several processes goes ahead.

    Args:
        recipe: the recipe, which names the data.
        make_up: makes up both splits from the task's arguments, for a smoke run without a data set.
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


def find_local_data(name: str) -> Path | None:
    """Finds the local folder or file that a `dataset_name` stands for; returns None for a name on the Hub."""
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
        arguments: the fields that choose the data. Afterwards their `trained_split` and `judged_split` know
            the numbers of their rows.
        labels: returns a class for each row of the training split. The rows held out then have the same
            share of each class.
        spread: whether `max_train_samples` and `max_eval_samples` take rows from all over a split, not the
            first rows.
        notes: gets a line for each split with rows that are neither trained nor judged on.

    Raises:
        RecipeError: the data set or a split is not there, a split has no rows, or files of the data set
            number their classes differently.
    """
    data = _load_dataset(arguments)
    used: dict[str, set[int]] = {}

    def choose(field: str, most: str) -> tuple[str, np.ndarray]:
        name, rows = _parse_part(data, getattr(arguments, field), field, arguments.dataset_name)
        used.setdefault(name, set()).update(rows)
        count = min(getattr(arguments, most) or len(rows), len(rows))
        return name, np.asarray(rows)[_space_out(len(rows), count) if spread else slice(count)]

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
        chosen = list(map(_cast_images, chosen))
    return chosen[0], chosen[1]


def _hold_out(
    rows: int, percent: int, field: str, seed: int, classes: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the rows that are held out.

    Args:
        rows: the number of rows.
        percent: the percentage of rows to hold out. At least one row is.
        field: the recipe's field that holds `percent`, for messages.
        seed: the seed of the draw.
        classes: the class of each row. The same share of each class is held out. None: rows have no class.

    Returns:
        The places of the rows that are left, and of those that are held out, both in ascending order.

    Raises:
        RecipeError: there are fewer than two rows.
    """
    if rows < 2:
        raise RecipeError(f"{field}: of {rows} training row none can be held out")
    order = np.random.default_rng(seed).permutation(rows)
    if classes is not None:  # one class after the other: rows at even distances hold each class's share
        _, ids = np.unique(np.asarray(classes), return_inverse=True)
        order = order[np.argsort(ids[order], kind="stable")]
    held_out = np.sort(order[_space_out(rows, max(1, round(rows * percent / 100)))])
    return np.setdiff1d(order, held_out), held_out


def _space_out(rows: int, count: int) -> list[int]:
    """Returns the numbers of `count` of `rows` rows, at even distances."""
    return [int((i + 0.5) * rows / count) for i in range(count)]


def _parse_part(data: Mapping[str, Any], spec: str, field: str, dataset: str | None) -> tuple[str, range]:
    """Parses a split and its rows, as `datasets` writes them: `train`, `train[:90%]`, `train[100:200]`.

    Raises:
        RecipeError: there is no such split, or it has no such rows.
    """
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


def _load_dataset(arguments: DataArguments) -> Mapping[str, Any]:
    """Loads the splits of the data set, by their names.

    Raises:
        RecipeError: the data set is not there, or its files number their classes differently.
    """
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as formats

    name = arguments.dataset_name
    if not name:
        raise RecipeError("dataset_name: the recipe names no data set; add --dataset_name NAME_OR_FOLDER")
    local = find_local_data(name)
    if name in formats and not (local and local.is_dir()):
        # load_dataset would read files of the current folder, and a recipe may be somebody else's.
        raise RecipeError(
            f"dataset_name: {name!r} is a format of files, no data set; pass the folder that they are in: "
            "--dataset_name path/to/folder"
        )
    options: dict[str, Any] = {"name": arguments.dataset_config_name, "data_files": arguments.data_files}
    try:
        if local and any((local / file).is_file() for file in ("dataset_dict.json", "state.json")):
            # save_to_disk of a DatasetDict or of a Dataset has written the folder.
            saved = datasets.load_from_disk(str(local))
            return dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        if local and local.is_file():
            builder = datasets.load_dataset_builder(str(local.parent), data_files=local.name)
        elif local:
            # dataset_config_name is one of the Hub: a folder without configurations has the default alone.
            if datasets.get_dataset_config_names(str(local)) == ["default"]:
                options["name"] = None
            builder = datasets.load_dataset_builder(str(local), **options)
        else:
            builder = datasets.load_dataset_builder(name, revision=arguments.dataset_revision, **options)
        builder.download_and_prepare()
        data = {  # as_dataset refuses a split without rows
            split: builder.as_dataset(split) if info.num_examples else []
            for split, info in builder.info.splits.items()
        }
        files = list(_read_class_names(builder))
    except Exception as error:  # the Hub, HTTP and the files' readers raise errors of many kinds
        cause: BaseException = error
        while local and cause.__cause__:  # datasets' own error says only that there was one
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


def _cast_images(data: Any) -> Any:
    """Casts columns of image files' bytes, as Parquet files from other libraries have them, to images."""
    from datasets import Image

    for name, feature in data.features.items():
        stored = isinstance(feature, dict) and {"bytes"} <= feature.keys() <= {"bytes", "path"}
        if stored or getattr(feature, "dtype", None) in ("binary", "large_binary"):
            data = data.cast_column(name, Image())
    return data


def _read_class_names(builder: Any) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yields the name of each Parquet file of a data set, and the file's own class names by column.

    `datasets` takes the first file's names for all files, and keeps the other files' numbers.
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
            yield PurePosixPath(str(file)).name, dict(_find_class_names(features))


def _find_class_names(feature: Any, column: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yields the names of each ClassLabel within `feature`, with the path of columns and fields to it."""
    if isinstance(feature, dict):
        for name, inner in feature.items():
            yield from _find_class_names(inner, f"{column}.{name}" if column else name)
    elif hasattr(feature, "feature"):
        yield from _find_class_names(feature.feature, column)
    elif getattr(feature, "names", None):
        yield column, list(feature.names)


def _check_numbering(files: Sequence[tuple[str, dict[str, list[str]]]]) -> None:
    """Checks that a number is the same class in all files.

    Raises:
        RecipeError: two files have different classes for a number.
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
