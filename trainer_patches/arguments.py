"""Values that an optimizer writes into TrainingArguments, kept apart from those that the user set there.

`args._written_for_optim` holds `{field: (written, before)}`, and `args._written_for_run` the fields that are
taken back when `train()` ends. Both are pickled with the arguments, so they hold plain Python objects alone.
"""

from __future__ import annotations

from typing import Any

__all__ = ["read_optim", "take_back", "write"]


def read_optim(args: Any) -> str | None:
    """Returns `args.optim` as text, also where it is a member of OptimizerNames; None if it is missing."""
    optim = getattr(args, "optim", None)
    return getattr(optim, "value", optim)


def write(args: Any, field: str, value: float, *, for_run: bool = False) -> None:
    """Sets a field of `args` to the optimizer's value and remembers the value before.

    Args:
        args: TrainingArguments.
        field: the name of the field.
        value: the field's value until :func:`take_back`.
        for_run: whether `take_back(args, run_only=True)`, which ends a `train()`, undoes it too.
    """
    written, run_fields = _read_written(args)
    _, before = written.get(field, (None, getattr(args, field)))
    args._written_for_optim = {**written, field: (value, before)}
    args._written_for_run = run_fields | {field} if for_run else run_fields - {field}
    setattr(args, field, value)


def take_back(args: Any, *, run_only: bool = False) -> None:
    """Undoes :func:`write`, so that the arguments can be used for another optimizer or another run.

    A field that the user has set since stays as it is. That is told by identity. So a pickled copy of `args`
    keeps all its values: unpickled objects are new ones.

    Args:
        args: TrainingArguments.
        run_only: undoes only what was written for one run.
    """
    written, run_fields = _read_written(args)
    undone = {field: pair for field, pair in written.items() if field in run_fields or not run_only}
    if not undone:
        return
    for field, (value, before) in undone.items():
        if getattr(args, field) is value:
            setattr(args, field, before)
    # New objects, because a shallow copy of the arguments holds the old ones.
    args._written_for_optim = {field: pair for field, pair in written.items() if field not in undone}
    args._written_for_run = run_fields.difference(undone)


def _read_written(args: Any) -> tuple[dict[str, tuple[Any, Any]], frozenset[str]]:
    """Returns `(written, before)` by field, and the fields that were written for one run."""
    return vars(args).get("_written_for_optim", {}), vars(args).get("_written_for_run", frozenset())
