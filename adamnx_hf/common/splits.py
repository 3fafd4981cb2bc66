"""Rows of splits: their numbers in the split itself, and whether some are both trained and judged on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["PartOfSplit", "find_row", "judged_on_training_rows", "name_row", "overlap", "training_rows"]


class PartOfSplit(str):
    """The name of a part of a split, with the rows that the part has.

    Args:
        name: the part, as messages call it.
        split: the name of the split.
        rows: the number in the split of each row of the part.
    """

    whole: str
    rows: Sequence[int]

    def __new__(cls, name: str, split: str, rows: Sequence[int]) -> PartOfSplit:
        """Makes the name with its rows."""
        part = super().__new__(cls, name)
        part.whole, part.rows = split, rows
        return part

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Returns what pickle makes the name of, in a worker of a data loader."""
        return str(self), self.whole, self.rows


def find_row(part: str, row: int) -> tuple[str, int]:
    """Finds a row of a part of a split in the split itself.

    Args:
        part: the part; of a plain text nothing is known, and row and part are returned as they are.
        row: the number of the row in the part.

    Returns:
        The split, and the number of the row there.
    """
    return (part.whole, int(part.rows[row])) if isinstance(part, PartOfSplit) else (part, row)


def name_row(column: str, row: int, split: str) -> str:
    """Returns how messages name the value of a row; see :func:`find_row`."""
    name, number = find_row(split, row)
    return f"{column}: row {number} of the split {name!r}"


def overlap(first: str, second: str, most: tuple[int | None, int | None] = (None, None)) -> bool:
    """Returns whether two parts of splits have rows in common, as far as their texts tell.

    Args:
        first, second: the parts, as `datasets` writes them: `train`, `train[:90%]`, `train[100:200]`.
        most: how many rows of each are used, from its first on; None: all.
    """
    import datasets

    names = [spec.partition("[")[0] for spec in (first, second)]
    if names[0] != names[1]:
        return False
    try:
        parts = [
            datasets.ReadInstruction.from_spec(spec).to_absolute({names[0]: 10**9})[0]
            for spec in (first, second)
        ]
    except (ValueError, AssertionError):
        return False  # loading will say what is wrong with it
    ends = [
        part.to if count is None else min(part.to, part.from_ + count)
        for part, count in zip(parts, most, strict=True)
    ]
    return bool(max(part.from_ for part in parts) < min(ends))


def judged_on_training_rows(recipe: Any) -> bool:
    """Returns whether a run is judged on rows that it is trained on, as far as its splits' texts tell.

    Args:
        recipe: the run's, a :class:`adamnx_hf.tasks.base.Recipe`.
    """
    data = recipe.task_arguments
    if recipe.synthetic_data or data.eval_on_held_out or data.eval_on_sweep_rows:  # these are other rows
        return False
    return overlap(data.train_split, data.eval_split, (data.max_train_samples, data.max_eval_samples))


def training_rows(arguments: Any) -> str:
    """Returns a note on a run that is judged on rows that it is trained on.

    Args:
        arguments: the run's fields about data, a :class:`adamnx_hf.tasks.data.DataArguments`.
    """
    return (
        f"eval_split: {arguments.eval_split} has rows of train_split ({arguments.train_split}): what is "
        "judged on has been trained on, and the figures say nothing of other rows"
    )
