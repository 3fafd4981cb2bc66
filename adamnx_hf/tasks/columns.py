"""The columns of a data set and the classes in them: chosen and checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.tasks.data import ImageArguments

__all__ = [
    "HIGHEST_ID",
    "check_class_names",
    "check_columns",
    "check_same_classes",
    "choose_column",
    "choose_image_column",
]


#: Class ids without names are counted from 0 to the highest, which is at most this.
HIGHEST_ID = 100_000


def check_class_names(names: Sequence[str]) -> None:
    """Checks that no name is given twice.

    Raises:
        ValueError: a name is.
    """
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"class_names: {twice[0]!r} is given twice")


def check_same_classes(train: Sequence[str], evaluation: Sequence[str]) -> None:
    """Checks that the evaluation split numbers its classes as the training split does.

    Args:
        train, evaluation: the names of the classes 0, 1, ... Either split may have more of them.

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
    """Chooses a column of `data`: the recipe's or, if that is not there, the only column that fits.

    Args:
        data: the splits.
        field: the recipe's field that names the column.
        column: the name.
        given: the fields that flags gave. No other column takes the place of one that a flag names.
        fits: says whether a column can be chosen, by its name and feature.
        what: the contents of a column that fits, for messages.
        notes: gets a line that names the column chosen instead.

    Raises:
        RecipeError: the column is not there, and not exactly one other fits.
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
        arguments: the task's arguments.
        given, notes: see :func:`choose_column`.
        field: the field that names the column.
        other: a field that names another column of images. The two columns differ.

    Raises:
        RecipeError: there is no column of images, there are several, or the recipe's does not hold images.
    """
    taken = getattr(arguments, other) if other else None

    def fits(name: str, feature: Any) -> bool:
        return _holds_images(feature) and name != taken

    wanted = getattr(arguments, field)
    chosen = choose_column(data, field, wanted, given=given, fits=fits, what="images", notes=notes)
    setattr(arguments, field, chosen)
    for split in data:
        if not _holds_images(split.features[chosen]):
            images = [name for name, feature in split.features.items() if _holds_images(feature)]
            raise RecipeError(
                f"{field}: {chosen!r} does not hold images; those that do: {', '.join(images) or 'none'}"
            )


def _holds_images(feature: Any) -> bool:
    from datasets import Image

    return isinstance(feature, Image)


def check_columns(data: Any, columns: dict[str, str]) -> None:
    """Checks that `data` has each column.

    Args:
        data: a split.
        columns: the names, by the recipe's fields that hold them.

    Raises:
        RecipeError: a column is not there.
    """
    for field, column in columns.items():
        if column not in data.column_names:
            raise RecipeError(
                f"{field}: the data set has no column {column!r}{nearest(column, data.column_names)}"
            )
