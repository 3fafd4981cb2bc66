"""The slow twin: the algorithm itself, tensor by tensor. Every other engine is tested against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adamnx_hf.optim.update import adamnx_update

if TYPE_CHECKING:
    from adamnx_hf.optim.engines import Weight


MIXES: frozenset[torch.dtype] = frozenset()
SCALES = False


def why_not(
    device: str, dtype: torch.dtype, *, host_schedule: bool, differentiable: bool, wrapped: bool
) -> str | None:
    """Applies everywhere."""
    return None


def step_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    weight1: Weight,
    weight2: Weight,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
) -> None:
    """One step in place; see :mod:`adamnx_hf.optim.engines`."""
    for i, (param, grad, exp_avg, exp_avg_sq) in enumerate(
        zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)
    ):
        old = (param, exp_avg, exp_avg_sq)
        if torch.is_grad_enabled():
            # Autograd (differentiable=True) may keep the old values, which copy_ is about to overwrite.
            old = (param.clone(), exp_avg.clone(), exp_avg_sq.clone())
        new = adamnx_update(
            old[0],
            -grad if maximize else grad,
            *old[1:],
            weight1=weight1 if isinstance(weight1, float) else weight1[i],
            weight2=weight2 if isinstance(weight2, float) else weight2[i],
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
        )
        for tensor, value in zip((param, exp_avg, exp_avg_sq), new, strict=True):
            tensor.copy_(value)
