"""Calls of engines: on parameters as they are, or on copies of those that the engine cannot take."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from adamnx_hf.optim.engines.contract import Engine, Extras, Rule
from adamnx_hf.optim.formats import RandomBits, format_of, join, store_param
from adamnx_hf.optim.layout import ROLES, Columns, Layout, is_dense
from adamnx_hf.optim.step.batches import Batch, cut
from adamnx_hf.optim.step.plan import Bucket

__all__ = ["step_bucket"]


def step_bucket(bucket: Bucket, rule: Rule, extras: Extras) -> None:
    """Steps a bucket: at once the parameters that its engine can take as they are, copies of the others.

    Copies are made of few elements at a time. What is stored in a narrow format is rounded here, unless the
    engine takes it as it is and rounds itself.
    """
    engine, columns = bucket.engine, bucket.columns
    can = engine.ABILITIES
    taken = can.dtypes or {bucket.dtype}
    layout = Layout.of(columns) if bucket.layout is None else bucket.layout
    direct, others = _sort(columns, layout, taken)
    batches = [(Batch(direct), False)]
    if extras.grad_scale is not None and not can.unscales:  # divided gradients are copies, too
        batches = [(batch, False) for batch in cut(direct, columns)]
    # An engine that rounds has the random bits from where an element is in the whole parameter.
    batches += [(batch, True) for batch in cut(others, columns, by_rows=not can.rounds)]
    memo = {} if extras.memo is None else extras.memo
    for number, (batch, copied) in enumerate(batches):
        if not batch.places:
            continue
        originals = batch.of(columns)
        known = layout if not batch.rows and len(batch.places) == len(columns.params) else None
        own = extras.pick(batch.places, memo.setdefault(number, {}), known)
        if not copied:
            _run(engine, originals, rule.pick(batch.places), own)
            continue
        copies = _copy(originals, taken, bucket.dtype, join_residuals=not can.rounds)
        _run(engine, copies, rule.pick(batch.places), own)
        _write_back(copies, originals, batch, extras, engine_rounds=can.rounds)


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


def _run(engine: Engine, columns: Columns, rule: Rule, extras: Extras) -> None:
    """Calls an engine, with gradients divided by `grad_scale` unless it does that itself."""
    grads = columns.grads
    if not torch.compiler.is_compiling() and any(map(Tensor.is_neg, grads)):
        grads = [grad.resolve_neg() for grad in grads]  # the sign may only be noted down
    if extras.grad_scale is not None and not engine.ABILITIES.unscales:
        scale = extras.grad_scale.to(grads[0].device, non_blocking=True)
        grads = list(torch._foreach_div(grads, scale))
    if grads is not columns.grads:
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
        join_residuals: makes a float32 copy of a parameter and its residual.
    """
    lists = originals.given()
    for i, role in enumerate(ROLES[:4]):
        pairs = zip(lists[i], originals.params, strict=True)
        lists[i] = [_copy_tensor(tensor, param, role, taken, dtype) for tensor, param in pairs]
    if originals.residuals:
        lists[4] = [None if rest is None else rest.contiguous() for rest in originals.residuals]
        if join_residuals:
            rows = zip(originals.params, lists[0], lists[4], strict=True)
            lists[0] = [copy if rest is None else join(param, rest) for param, copy, rest in rows]
    return Columns(*lists)


def _copy_tensor(
    tensor: Tensor, param: Tensor, role: str, taken: Collection[torch.dtype], dtype: torch.dtype
) -> Tensor:
    if role.startswith("exp_avg") and tensor.dtype not in taken:
        tensor = format_of(tensor.dtype).load(tensor, param, role)
    return (tensor if tensor.dtype in taken else tensor.to(dtype)).contiguous()


def _write_back(
    copies: Columns, originals: Columns, batch: Batch, extras: Extras, *, engine_rounds: bool
) -> None:
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
            if new is old:
                continue
            if new.dtype == old.dtype:
                old.copy_(new)
            else:
                format_of(old.dtype).store(old, new, bits, role)
        if engine_rounds and rest is not None and copies.residuals and copies.residuals[i] is not rest:
            rest.copy_(copies.residuals[i])
