"""The engine "aten": torch's own fused AdamW, made to compute AdamNX, on CPU, CUDA, MPS and XPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from adamnx_hf.optim.engines.contract import Abilities, Case, Extras, Rule
from adamnx_hf.optim.layout import Columns

ABILITIES = Abilities(flag="fused")

# Adam's second bias correction is 1 − β2^step. With step = inf that is 1, as AdamNX wants, unless β2 has
# been rounded to 1: then it would be 0. So β2 is kept below 1 by its last bit, which v does not notice.
_BELOW_ONE = math.nextafter(1.0, 0.0)


def why_not(case: Case) -> str | None:
    """Returns why torch's kernel cannot serve: it must exist for the device, and takes β̂_t from the host."""
    if case.differentiable:
        return "`fused` does not support `differentiable`"
    if not case.host_schedule:
        return (
            "torch's fused AdamW takes the decay rates from the host, "
            "which capturable=True and torch.compile keep on the device"
        )
    if case.device not in (supported := _get_fused_kernels_supported_devices()):
        return f"torch has fused kernels for {', '.join(supported)}, not for {case.device}"
    return None


def step_(columns: Columns, rule: Rule, extras: Extras) -> None:
    """Steps the parameters in place."""
    params, grads, exp_avgs, exp_avg_sqs = columns.four()
    weight1, weight2, lr, weight_decay, eps, maximize = rule
    assert isinstance(weight1, float) and isinstance(weight2, float)  # why_not saw to it
    device = params[0].device
    if isinstance(lr, Tensor) and lr.device.type != "cpu":
        lr = lr.to(device, non_blocking=True)
    bias_corrected = torch.full((), math.inf, dtype=torch.float32, device=device)
    torch._fused_adamw_(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        [bias_corrected] * len(params),
        amsgrad=False,
        lr=lr,
        beta1=min(1 - weight1, _BELOW_ONE),
        beta2=min(1 - weight2, _BELOW_ONE),
        weight_decay=weight_decay,
        eps=eps,
        maximize=maximize,
    )
