"""The engines of a step: their choice, and their calls on parameters or, where they must, on copies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamnx_hf.optim.engines import choose_engine
from adamnx_hf.optim.engines.contract import Case, Engine, Extras, Rule
from adamnx_hf.optim.formats import (
    RandomBits,
    choose_piece_size,
    cut_rows,
    find_format,
    find_moment_dtype,
    join,
    store_param,
)
from adamnx_hf.optim.layout import ROLES, Columns, Layout, are_wrapped, is_dense

__all__ = ["Engines", "choose_engines", "group_places", "step_bucket"]

#: The engine for parameters of each device and dtype.
Engines = dict[tuple[torch.device, torch.dtype], Engine]


def choose_engines(
    columns: Columns,
    layout: Layout,
    *,
    host_schedule: bool,
    foreach: bool | None,
    fused: bool | None,
    differentiable: bool,
) -> Engines:
    """Returns the engine for each device and dtype among the parameters.

    Raises:
        RuntimeError: the implementation that was asked for cannot serve one of them.
    """
    kinds = {(device, dtype) for device in layout.devices for dtype in layout.dtypes[0]}
    if len(kinds) > 1:
        kinds = {(param.device, param.dtype) for param in columns.params}
    return {
        (device, dtype): choose_engine(
            Case(device.type, find_moment_dtype(dtype), host_schedule, differentiable, layout.wrapped),
            foreach=foreach,
            fused=fused,
        )
        for device, dtype in kinds
    }


def group_places(columns: Columns, engines: Engines, steps: list[float]) -> list[Sequence[int]]:
    """Returns groups of places: parameters that agree in what their engine does not mix.

    Args:
        columns: the step's tensors.
        engines: the result of :func:`choose_engines`.
        steps: the steps done so far for each parameter; empty where the device has them.
    """
    may_differ = next(iter(engines.values())).ABILITIES.steps_may_differ
    if len(engines) == 1 and (may_differ or len(set(steps)) <= 1):
        return [range(len(columns.params))]
    groups = defaultdict(list)
    for i, param in enumerate(columns.params):
        can = engines[param.device, param.dtype].ABILITIES
        dtype = find_moment_dtype(param.dtype) if can.dtypes else param.dtype
        step = steps[i] if steps and not can.steps_may_differ else None
        groups[param.device, dtype, step].append(i)
    return list(groups.values())


class Batch(NamedTuple):
    """Some parameters, or some rows of each, which are stepped at once."""

    places: Any
    rows: Any = ()
    """An index for each parameter, `...` for all rows. Empty: all parameters are whole."""
    starts: Any = ()
    """How many of a parameter's elements come before its rows."""

    def take(self, columns: Columns) -> Columns:
        """Returns the part of `columns` that this batch has."""
        if not self.rows:
            return columns.pick(self.places)
        return Columns(
            *[
                [
                    tensors[place] if tensors[place] is None or rows is ... else tensors[place][rows]
                    for place, rows in zip(self.places, self.rows, strict=True)
                ]
                for tensors in columns.given()
            ]
        )


def step_bucket(engine: Engine, columns: Columns, rule: Rule, extras: Extras) -> None:
    """Steps parameters by one engine: at once those that it can take as they are, copies of the others.

    Copies are made of few elements at a time. What is stored in a narrow format is rounded here, unless the
    engine takes it as it is and rounds itself.
    """
    can, dtype = engine.ABILITIES, find_moment_dtype(columns.params[0].dtype)
    taken = can.dtypes or {dtype}
    layout = Layout.read(columns) if extras.layout is None else extras.layout
    direct, others = _sort(columns, layout, taken)
    batches = [(Batch(direct), False)]
    if extras.grad_scale is not None and not can.unscales:  # divided gradients are copies, too
        batches = [(batch, False) for batch in _cut(direct, columns)]
    # An engine that rounds has the random bits from where an element is in the whole parameter.
    batches += [(batch, True) for batch in _cut(others, columns, by_rows=not can.rounds)]
    for number, (batch, copied) in enumerate(batches):
        if not batch.places:
            continue
        originals = working = batch.take(columns)
        own = extras
        if can.rounds or can.unscales:  # others do not look at what would be picked
            whole = not batch.rows and len(batch.places) == len(columns.params)
            own = extras.pick(batch.places, extras.memo.setdefault(number, {}), layout if whole else None)
        if copied:
            working = _copy(originals, taken, dtype, join_residuals=not can.rounds)
        _run(engine, working, rule.pick(batch.places), own)
        if copied:
            _write_back(working, originals, batch, extras)


def _sort(
    columns: Columns, layout: Layout, taken: Collection[torch.dtype]
) -> tuple[Sequence[int], Sequence[int]]:
    """Returns the places of the parameters that an engine can take as they are, and of the others.

    The tensors of one parameter have to share a dense layout, as kernels that walk memory need. torch's fused
    AdamW does not check this on the CPU: it computes nonsense for strided views.
    """
    everyone = range(len(columns.params))
    if layout.contiguous and all(dtype in taken for dtypes in layout.dtypes for dtype in dtypes):
        return everyone, []
    rows = [[tensors[i] for tensors in columns.four()] for i in everyone]
    direct = [i for i in everyone if all(t.dtype in taken for t in rows[i]) and is_dense(*rows[i])]
    return (everyone, []) if len(direct) == len(rows) else (direct, sorted(set(everyone).difference(direct)))


def _cut(places: Sequence[int], columns: Columns, *, by_rows: bool = True) -> Iterator[Batch]:
    """Yields batches of few elements each, for parameters that are copied.

    A larger parameter is cut into batches of rows. If it cannot be cut, it is a batch by itself.

    Args:
        places: the places of the parameters.
        columns: the step's tensors.
        by_rows: whether parameters may be cut.
    """
    if not places:
        return
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or are_wrapped(*columns.four()):
        by_rows = False
    most = choose_piece_size(columns.params[places[0]].device)
    batch, elements = Batch([], [], []), 0
    for place in places:
        param = columns.params[place]
        for rows, start, count in cut_rows(param, most) if by_rows else [(..., 0, param.numel())]:
            if batch.places and elements + count > most:
                yield batch
                batch, elements = Batch([], [], []), 0
            for column, entry in zip(batch, (place, rows, start), strict=True):
                column.append(entry)
            elements += count
    if batch.places:
        yield batch


def _run(engine: Engine, columns: Columns, rule: Rule, extras: Extras) -> None:
    """Calls an engine, with gradients divided by `grad_scale` unless it does that itself."""
    grads = columns.grads
    if not torch.compiler.is_compiling() and any(map(Tensor.is_neg, grads)):
        grads = [grad.resolve_neg() for grad in grads]  # the sign may only be noted down
    if extras.grad_scale is not None and not engine.ABILITIES.unscales:
        scale = extras.grad_scale.to(grads[0].device, non_blocking=True)
        grads = list(torch._foreach_div(grads, scale))
    columns = Columns(columns.params, grads, columns.exp_avgs, columns.exp_avg_sqs, columns.residuals)
    engine.step_(columns, rule, extras)


def _copy(
    originals: Columns, taken: Collection[torch.dtype], dtype: torch.dtype, *, join_residuals: bool
) -> Columns:
    """Returns columns as an engine can take them; a tensor that is right already is not copied.

    Args:
        originals: the columns to copy.
        taken: dtypes that the engine takes.
        dtype: the dtype of copies of tensors that have another.
        join_residuals: makes a float32 copy of a parameter and its residual, which then has no copy.
    """
    lists = originals.four()
    for i, role in enumerate(ROLES[:4]):
        pairs = zip(lists[i], originals.params, strict=True)
        lists[i] = [_copy_tensor(tensor, param, role, taken, dtype) for tensor, param in pairs]
    rests = originals.residuals
    if rests and join_residuals:
        rows = zip(originals.params, lists[0], rests, strict=True)
        lists[0] = [copy if rest is None else join(param, rest) for param, copy, rest in rows]
    elif rests:
        lists.append([None if rest is None else rest.contiguous() for rest in rests])
    return Columns(*lists)


def _copy_tensor(
    tensor: Tensor, param: Tensor, role: str, taken: Collection[torch.dtype], dtype: torch.dtype
) -> Tensor:
    if role.startswith("exp_avg") and tensor.dtype not in taken:
        tensor = find_format(tensor.dtype).load(tensor, param, role)
    return (tensor if tensor.dtype in taken else tensor.to(dtype)).contiguous()


def _write_back(copies: Columns, originals: Columns, batch: Batch, extras: Extras) -> None:
    """Stores `copies` after the step in their originals, each in its own format."""
    for i, place in enumerate(batch.places):
        t = extras.step if isinstance(extras.step, float) else extras.step[place]
        bits = RandomBits(t, extras.numbers[place], batch.starts[i])
        rest = originals.residuals[i] if originals.residuals else None
        if copies.params[i] is not originals.params[i]:
            store_param(originals.params[i], copies.params[i], extras.rounding, bits, rest)
        for role, old, new in (
            ("exp_avg", originals.exp_avgs[i], copies.exp_avgs[i]),
            ("exp_avg_sq", originals.exp_avg_sqs[i], copies.exp_avg_sqs[i]),
        ):
            if new.dtype != old.dtype:
                find_format(old.dtype).store(old, new, bits, role)
            elif new is not old:
                old.copy_(new)
        if rest is not None and copies.residuals and copies.residuals[i] is not rest:
            rest.copy_(copies.residuals[i])
