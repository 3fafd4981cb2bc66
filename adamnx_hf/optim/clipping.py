"""Clipping as part of the step: the norm of all gradients, and the number to divide them by."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from adamnx_hf.optim.engines import triton
from adamnx_hf.optim.engines.contract import Case
from adamnx_hf.optim.layout import Memo, are_wrapped, find_dtensors, is_dense

__all__ = ["compute_clip_divisor", "compute_total_norm"]


def compute_total_norm(grads: list[Tensor], memo: Memo | None = None) -> Tensor:
    """Returns the 2-norm of all gradients together, as :func:`torch.nn.utils.clip_grad_norm_` does.

    DTensors count whole, not as this rank's shards, by one all-reduce of a number for each layout. Half
    precision is added up in float32. Nothing waits for the device.

    Args:
        grads: at least one gradient; devices, dtypes and shapes may differ.
        memo: an empty dict, to be passed again at each step, which saves host time.

    Returns:
        A 0-d tensor on the device of the first gradient, float32 or float64.
    """
    memo = {} if memo is None else memo
    norms = []
    for number, ((_, dtype, layout), members) in enumerate(_sort_gradients(grads).items()):
        norm = _compute_norm(members, dtype, memo.setdefault(number, {}))
        if layout is not None:
            distributed: Any = find_dtensors(grads)
            mesh, placements = layout
            parts = [
                distributed.Replicate() if placement.is_replicate() else distributed.Partial("sum")
                for placement in placements
            ]
            # The squares add up; in float64 they do not overflow.
            square = distributed.DTensor.from_local(norm.double().square(), mesh, parts, run_check=False)
            norm = square.full_tensor().sqrt().to(norm.dtype)
        norms.append(norm)
    if len(norms) == 1:
        return norms[0]
    device, dtype = norms[0].device, functools.reduce(torch.promote_types, (norm.dtype for norm in norms))
    return torch.linalg.vector_norm(
        torch.stack([norm.to(device, dtype, non_blocking=True) for norm in norms])
    )


def _sort_gradients(grads: list[Tensor]) -> dict[Any, list[Tensor]]:
    """Sorts gradients by device, dtype of their norm and, if they are DTensors, layout.

    A DTensor is listed as this rank's part of it.
    """
    distributed = find_dtensors(grads)
    if distributed is None and len(devices := {grad.device for grad in grads}) == 1:
        dtypes = {torch.promote_types(dtype, torch.float32) for dtype in {grad.dtype for grad in grads}}
        if len(dtypes) == 1:  # as nearly always; then no gradient is asked by itself
            return {(*devices, *dtypes, None): grads}
    groups: defaultdict[Any, list[Tensor]] = defaultdict(list)
    for grad in grads:
        layout = None
        if distributed is not None and isinstance(grad, distributed.DTensor):
            if any(placement.is_partial() for placement in grad.placements):
                whole = [
                    distributed.Replicate() if placement.is_partial() else placement
                    for placement in grad.placements
                ]
                grad = grad.redistribute(placements=whole)
            layout = (grad.device_mesh, grad.placements)
            grad = grad.to_local()
        groups[grad.device, torch.promote_types(grad.dtype, torch.float32), layout].append(grad)
    return groups


def _compute_norm(grads: list[Tensor], dtype: torch.dtype, memo: Memo) -> Tensor:
    """Returns the 2-norm of plain tensors of one device, computed in `dtype`, by our kernel if it can."""
    device = grads[0].device.type
    if not torch.compiler.is_compiling():
        case = Case(device, dtype, wrapped=are_wrapped(grads))
        if triton.why_not(case) is None and triton.why_no_norm(device) is None:
            if not all(map(Tensor.is_contiguous, grads)):
                grads = [grad if is_dense(grad) else grad.contiguous() for grad in grads]
            norm = triton.compute_norm(grads, memo)
            if norm is not None:
                return norm
    # `dtype` is for half precision alone: a complex one would make the norm complex.
    kwargs = {} if dtype.is_complex else {"dtype": dtype}
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2.0, **kwargs)))


def compute_clip_divisor(norm: Tensor, max_norm: float) -> Tensor | None:
    """Returns the divisor, 0-d and at least 1, that makes the norm of gradients at most `max_norm`.

    Returns None if `max_norm` is inf.
    """
    if math.isinf(max_norm):
        return None
    # 1e-6 as in torch.nn.utils.clip_grad_norm_, for the same result.
    return ((norm + 1e-6) / max_norm).clamp(min=1.0)
