"""The classes of a data set's rows: read, checked and numbered."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.splits import name_row
from adamnx_hf.tasks.columns import HIGHEST_ID, check_same_classes, choose_column
from adamnx_hf.tasks.image_classification.arguments import Arguments

__all__ = ["choose_label_column", "describe_gaps", "number_classes", "read_labels"]


#: Names of columns that hold classes if no column has names of classes.
LABEL_COLUMNS = ("label", "labels", "class", "category", "target")


def choose_label_column(
    data: Sequence[Any], arguments: Arguments, given: Collection[str], notes: list[str]
) -> str:
    """Chooses the column of classes; see :func:`adamnx_hf.tasks.columns.choose_column`."""
    from datasets import ClassLabel

    features = data[0].features
    named_ones = any(isinstance(feature, ClassLabel) for feature in features.values())

    def fits(name: str, feature: Any) -> bool:
        return isinstance(feature, ClassLabel) if named_ones else name.lower() in LABEL_COLUMNS

    column = arguments.label_column
    return choose_column(data, "label_column", column, given=given, fits=fits, what="classes", notes=notes)


def read_labels(data: Any, column: str, split: str) -> np.ndarray:
    """Reads a column of class ids or names.

    Raises:
        RecipeError: the column holds something else, or a row has no class. The message names the row.
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
                f"{name_row(column, row, split)} has {shown}; leave the row out, or give it its class"
            )
    return np.asarray(values)


def number_classes(
    splits: Sequence[Any], arguments: Arguments, smoke: bool
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Numbers the classes from 0.

    Args:
        splits: the training and the evaluation split.
        arguments: the task's arguments, which name the column.
        smoke: whether there are only a few rows, which may lack classes.

    Returns:
        The classes' names, and the class id of each row of both splits. Names in the rows themselves are
        numbered in alphabetical order. Numbers without names are the ids, up to the highest.

    Raises:
        RecipeError: a row has no class, or an unnamed one that no training row has; the splits number their
            classes differently; or there is only one class.
    """
    column, names = arguments.label_column, (arguments.trained_split, arguments.judged_split)
    labels = [read_labels(data, column, name) for data, name in zip(splits, names, strict=True)]
    own = [list(getattr(data.features[column], "names", None) or ()) for data in splits]
    check_same_classes(*own)
    classes = own[0]
    if any(ids.dtype.kind not in "iu" for ids in labels):
        for i, name in enumerate(names):
            if labels[i].dtype.kind in "iu":  # this split has numbers, the other one names
                if not own[i]:
                    raise RecipeError(
                        f"label_column: {column!r} holds numbers in the split {name!r}, and names in the "
                        "other; write both alike"
                    )
                labels[i] = np.asarray(own[i])[labels[i]]
        classes = classes or [str(name) for name in np.unique(np.concatenate(labels) if smoke else labels[0])]
        labels = [_find_ids(words, classes, column, name) for words, name in zip(labels, names, strict=True)]
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
                f"{name_row(column, row, name)} has the class {ids[row]}; those of {names[0]!r} are 0 to "
                f"{len(classes) - 1}"
            )
    train, test = labels
    if not smoke and len(np.unique(train)) == 1:
        raise RecipeError(
            f"label_column: every row of {names[0]!r} is of one class, {classes[train[0]]!r}; if the rows "
            "are sorted by class, pass the whole split with --hold_out 20 --eval_on_held_out true"
        )
    return classes, train, test


def _find_ids(labels: np.ndarray, classes: Sequence[str], column: str, split: str) -> np.ndarray:
    """Finds the class id of each name.

    Raises:
        RecipeError: a name is not among the classes. The message names the row.
    """
    places = {name: i for i, name in enumerate(classes)}
    for row, name in enumerate(labels):
        if str(name) not in places:
            raise RecipeError(
                f"{name_row(column, row, split)} has the class {str(name)!r}, which no row to train on has"
            )
    return np.array([places[str(name)] for name in labels], dtype=np.int64)


def describe_gaps(classes: Sequence[str], train: np.ndarray, test: np.ndarray, judged: str) -> list[str]:
    """Describes, in a line each, classes without training rows, similar names, and a split of one class.

    Args:
        classes: the classes' names.
        train, test: the class id of each row to train on and to judge by.
        judged: the name of the evaluation split.
    """
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


def _list_some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
