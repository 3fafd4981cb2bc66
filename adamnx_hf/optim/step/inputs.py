"""Checks of a step's arguments, and plain real tensors in the place of DTensors and complex tensors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from adamnx_hf.optim.layout import ROLES, Columns, Layout, Memo, find_dtensors, look_at

__all__ = ["check_choice", "check_lists", "make_plain"]


def check_choice(option: str, value: Any, choices: Collection[str]) -> None:
    """Raises ValueError where `value` is none of the `choices` of an option."""
    if value not in [*choices]:  # a list, as what was given may have no hash
        raise ValueError(f"Invalid {option}: {value!r}; choose one of {', '.join(choices)}")


def check_lists(
    columns: Columns, layout: Layout, state_steps: list[Tensor], numbers: Sequence[int] | None, rounding: str
) -> None:
    """Raises ValueError where parameters lack a counter, a number or the list of residuals."""
    count = len(columns.params)
    if len(state_steps) != count:
        raise ValueError(f"AdamNX: {len(state_steps)} state_steps for {count} parameters")
    if numbers is not None and len(numbers) != count:
        raise ValueError(f"AdamNX: {len(numbers)} numbers for {count} parameters")
    if rounding == "kahan" and columns.residuals is None and torch.bfloat16 in layout.dtypes[0]:
        raise ValueError("AdamNX: param_rounding='kahan' needs param_residuals for bfloat16 parameters")


def make_plain(
    columns: Columns, layout: Layout, memo: Memo, *, differentiable: bool
) -> tuple[Columns, Layout]:
    """Returns columns of plain real tensors that share the memory of the given ones, and their layout.

    Args:
        columns: the step's tensors, which may be DTensors and complex.
        layout: the layout of `columns`.
        memo: the same dict at each step.
        differentiable: leaves DTensors as they are.

    Raises:
        TypeError: parameters are integers.
        RuntimeError: a state is placed in another way than its DTensor parameter.
    """
    given = columns
    if layout.wrapped and not differentiable:
        columns = _take_local_shards(columns)
    for dtype in layout.dtypes[0]:
        if not (dtype.is_floating_point or dtype.is_complex):
            raise TypeError(f"AdamNX steps parameters of floating-point or complex numbers, not {dtype}")
    if any(dtype.is_complex for dtype in layout.dtypes[0]):
        columns = _view_as_real(columns)
    return columns, layout if columns is given else look_at(columns, memo.setdefault("worked on", {}))


def _view_as_real(columns: Columns) -> Columns:
    """Returns columns in which a complex tensor has become a real one with a dimension of 2 more."""
    lists = columns.given()
    lists[1] = [grad.resolve_conj() for grad in lists[1]]
    # A residual may be None, and is bfloat16's.
    return Columns(
        *[
            [torch.view_as_real(t) if t is not None and t.is_complex() else t for t in tensors]
            for tensors in lists
        ]
    )


def _take_local_shards(columns: Columns) -> Columns:
    """Returns columns with this rank's part of each DTensor, for kernels to work on."""
    distributed = find_dtensors(columns.params)
    if distributed is None:
        return columns
    rows = [list(row) for row in zip(*columns.given(), strict=True)]
    for row in rows:
        if not isinstance(param := row[0], distributed.DTensor):
            continue
        for i, (role, tensor) in enumerate(zip(ROLES, row, strict=False)):
            if tensor is None:
                continue
            placements = getattr(tensor, "placements", None)
            if placements is not None and placements != param.placements and role == "grad":
                tensor = tensor.redistribute(placements=param.placements)
            elif placements != param.placements:
                raise RuntimeError(
                    f"AdamNX: {role} of a DTensor parameter is placed {placements or 'as a plain tensor'}, "
                    f"the parameter {param.placements}. Load the state with torch.distributed.checkpoint or "
                    "set_optimizer_state_dict, which place it as the parameters are"
                )
            row[i] = tensor.to_local()
    return Columns(*[list(column) for column in zip(*rows, strict=True)])
