"""The engine "reference": the algorithm itself, tensor by tensor, that others are tested against."""

from __future__ import annotations

import torch

from adamnx_hf.optim.engines.contract import Abilities, Case, Extras, Rule
from adamnx_hf.optim.layout import Columns
from adamnx_hf.optim.update import adamnx_update

ABILITIES = Abilities(compiled="traced")


def why_not(case: Case) -> str | None:
    """Returns None: the reference can serve everywhere."""
    return None


def step_(columns: Columns, rule: Rule, extras: Extras) -> None:
    """Steps the parameters in place."""
    weight1, weight2, lr, weight_decay, eps, maximize = rule
    for i, (param, grad, exp_avg, exp_avg_sq) in enumerate(zip(*columns.four(), strict=True)):
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
