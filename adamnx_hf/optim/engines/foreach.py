"""The engine "foreach": torch's foreach kernels, on any device, at the cost of temporaries."""

from __future__ import annotations

import torch
from torch import Tensor

from adamnx_hf.optim.engines.contract import Abilities, Case, Extras, Rule
from adamnx_hf.optim.layout import Columns

ABILITIES = Abilities(flag="foreach", compiled="traced")


def why_not(case: Case) -> str | None:
    """Returns why foreach cannot serve: it can everywhere but under autograd."""
    if case.differentiable:
        return "torch's foreach operations do not support differentiable=True"
    return None


def step_(columns: Columns, rule: Rule, extras: Extras) -> None:
    """Steps the parameters in place."""
    params, grads, exp_avgs, exp_avg_sqs = columns.four()
    weight1, weight2, lr, weight_decay, eps, maximize = rule
    if maximize:
        grads = list(torch._foreach_neg(grads))
    if weight_decay != 0:
        torch._foreach_mul_(params, 1 - lr * weight_decay)
    if isinstance(weight1, float) and isinstance(weight2, float):
        torch._foreach_lerp_(exp_avgs, grads, weight1)
        torch._foreach_mul_(exp_avg_sqs, 1 - weight2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, weight2)
    else:
        # The weights are on the device. As 0-d tensors they are broadcast.
        assert isinstance(weight1, Tensor) and isinstance(weight2, Tensor)
        for averages, news, weights in (
            (exp_avgs, grads, weight1),
            (exp_avg_sqs, torch._foreach_mul(grads, grads), weight2),
        ):
            torch._foreach_mul_(averages, list((1 - weights).unbind()))
            torch._foreach_add_(averages, torch._foreach_mul(news, list(weights.unbind())))
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_add_(denominators, eps)
    if isinstance(lr, Tensor):
        torch._foreach_div_(denominators, -lr)
        torch._foreach_addcdiv_(params, exp_avgs, denominators)
    else:
        torch._foreach_addcdiv_(params, exp_avgs, denominators, -lr)
