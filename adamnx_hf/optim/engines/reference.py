"""The slow twin: the algorithm itself, tensor by tensor. Every other engine is tested against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adamnx_hf.optim.update import adamnx_update

if TYPE_CHECKING:
    from adamnx_hf.optim.engines import Weight


def why_not(device: str, dtype: torch.dtype, *, host_schedule: bool, differentiable: bool) -> str | None:
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
        new_param, new_exp_avg, new_exp_avg_sq = adamnx_update(
            # Autograd (differentiable=True) may keep the old value, which copy_ is about to overwrite.
            param.clone() if torch.is_grad_enabled() else param,
            -grad if maximize else grad,
            exp_avg,
            exp_avg_sq,
            weight1=weight1 if isinstance(weight1, float) else weight1[i],
            weight2=weight2 if isinstance(weight2, float) else weight2[i],
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
        )
        param.copy_(new_param)
        exp_avg.copy_(new_exp_avg)
        exp_avg_sq.copy_(new_exp_avg_sq)
