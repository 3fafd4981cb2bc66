"""Rows of splits: their numbers in the split itself, and whether some are both trained and judged on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["PartOfSplit", "judged_on_training_rows", "overlap", "place", "training_rows"]


class PartOfSplit(str):
    """The name of a part of a split, which knows its rows.

    Args:
        name: what messages call the part.
        split: the name of the split.
        rows: the number in the split of each row of the part.
    """

    whole: str
    rows: Sequence[int]

    def __new__(cls, name: str, split: str, rows: Sequence[int]) -> PartOfSplit:
        """Makes the name; see the class."""
        part = super().__new__(cls, name)
        part.whole, part.rows = split, rows
        return part

    def __getnewargs__(self) -> tuple[Any, ...]:
        """What a worker of a data loader makes it of."""
        return str(self), self.whole, self.rows


def place(part: str, row: int) -> tuple[str, int]:
    """The split, and the number there, of a row of a part of it; both as they are where that is not known."""
    return (part.whole, int(part.rows[row])) if isinstance(part, PartOfSplit) else (part, row)


def overlap(first: str, second: str, most: tuple[int | None, int | None] = (None, None)) -> bool:
    """Whether two parts of splits have rows in common, as far as their texts tell.

    Args:
        first, second: as `datasets` writes them: `train`, `train[:90%]`, `train[100:200]`.
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
    """Whether a run of `recipe` is judged on rows that it is trained on, as far as its splits' texts tell.

    Args:
        recipe: a :class:`adamnx_hf.tasks.base.Recipe`.
    """
    data = recipe.task_arguments
    if recipe.synthetic_data or data.eval_on_held_out or data.eval_on_sweep_rows:  # rows of their own
        return False
    return overlap(data.train_split, data.eval_split, (data.max_train_samples, data.max_eval_samples))


def training_rows(arguments: Any) -> str:
    """What is to be said of a run that is judged on rows that it is trained on.

    Args:
        arguments: a task's, see :class:`adamnx_hf.tasks.data.DataArguments`.
    """
    return (
        f"eval_split: {arguments.eval_split} has rows of train_split ({arguments.train_split}): what is "
        "judged on has been trained on, and the figures say nothing of other rows"
    )
