"""The functional form: lists of tensors in, one AdamNX step of all of them, in place.

What users bring (complex numbers, half precision, strided views, several devices, `step` counters that
differ) is turned into what engines take in stages: the modules of :mod:`adamnx_hf.optim.step`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adamnx_hf.optim.engines.contract import Extras, Rule
from adamnx_hf.optim.formats import PARAM_ROUNDINGS
from adamnx_hf.optim.layout import Columns, Layout, Memo, look_at, pick
from adamnx_hf.optim.schedules import BETA2_SCHEDULES, adam
from adamnx_hf.optim.step.clock import Clock, read_rates, weigh
from adamnx_hf.optim.step.execute import choose_engines, group_places, step_bucket
from adamnx_hf.optim.step.inputs import check_choice, check_lists, make_plain

__all__ = ["adamnx"]


def adamnx(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    *,
    beta1: float | Tensor,
    beta2: float | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool = False,
    beta2_schedule: str = "adamnx",
    param_rounding: str = "nearest",
    param_residuals: list[Tensor | None] | None = None,
    numbers: Sequence[int] | None = None,
    memo: Memo | None = None,
    layout: Layout | None = None,
) -> None:
    """Performs one AdamNX step in place; the functional form of :class:`adamnx_hf.AdamNX`.

    Args:
        params: θ, floating-point or complex tensors of any device and strides, and DTensors; a list may mix
            them.
        grads: g, of the shapes of `params`, in any floating dtype.
        exp_avgs: m, float32 beside float16 and bfloat16 parameters, or in another format of
            :data:`adamnx_hf.optim.formats.FORMATS`.
        exp_avg_sqs: v, likewise. For complex parameters v holds the squares of the real and the imaginary
            part.
        state_steps: 0-d tensors, the steps done so far; each is raised by 1. Those of float64 count for ever,
            those of float32 to 2^24. The schedule is computed where they are: on the CPU, or on the device
            without waiting for their values.
        foreach, fused: the implementation, as in torch.optim; if both are None, the fastest that applies.
        capturable: keeps the schedule on the device, so that a step can be captured in a CUDA graph.
        differentiable: lets autograd through the step; `lr` and betas may be tensors that require grad.
        grad_scale: a 0-d tensor by which gradients are divided for the step; `grads` stay as they are. This
            and `found_inf` are :class:`torch.amp.GradScaler`'s.
        found_inf: a 0-d tensor. If it is not 0 nothing is changed, and no step is counted.
        beta1, beta2, lr, weight_decay, eps, maximize, beta2_schedule, param_rounding: see
            :class:`adamnx_hf.AdamNX`.
        param_residuals: needed with param_rounding="kahan": for each bfloat16 parameter a tensor of its shape
            and dtype with what rounding cut off (:func:`adamnx_hf.optim.formats.split`), for others None.
            Residuals belong to the weights that the last step has left: set them to 0 where you set weights.
        numbers: a number for each parameter, the same at every step, by which its random bits differ from
            those of others where something is rounded stochastically. Default: places in `params`.
        memo: an empty dict, to be passed again at each step of the same group, which saves host time.
        layout: the result of :func:`adamnx_hf.optim.layout.look_at` for these tensors and this `memo`, if
            they have not changed since. Default: `look_at` is called here.

    Raises:
        ValueError: there is no such schedule or rounding; lists have different lengths; "kahan" lacks
            residuals; a float32 `step` on the CPU has come to its end.
        TypeError: parameters are integers.
        RuntimeError: a tensor has another shape than its parameter, or is on another device; the
            implementation that was asked for cannot serve these tensors. Nothing has been modified then.
    """
    check_choice("beta2_schedule", beta2_schedule, BETA2_SCHEDULES)
    check_choice("param_rounding", param_rounding, PARAM_ROUNDINGS)
    if not any((params, grads, exp_avgs, exp_avg_sqs, state_steps)):
        return
    columns = Columns(params, grads, exp_avgs, exp_avg_sqs, param_residuals)
    layout = look_at(columns, memo) if layout is None else layout
    memo = {} if memo is None else memo
    check_lists(columns, layout, state_steps, numbers, param_rounding)
    columns, layout = make_plain(columns, layout, memo, differentiable=differentiable)

    # This frame asks: where Dynamo cannot compile the frame, it may still compile the functions called below.
    compiling = torch.compiler.is_compiling()
    clock = Clock.read(state_steps, memo, on_device=capturable or compiling)
    on_host = clock.on_host and not differentiable
    lr, beta1, beta2 = read_rates(lr, beta1, beta2, on_host=on_host, compiling=compiling)
    engines = choose_engines(
        columns,
        layout,
        host_schedule=clock.on_host,
        foreach=foreach,
        fused=fused,
        differentiable=differentiable,
    )
    if found_inf is not None:
        found_inf = found_inf.reshape(())  # FSDP's ShardedGradScaler has it in one dimension
        if clock.on_host:
            if found_inf.item():
                return
            found_inf = None
        elif not all(engine.ABILITIES.unscales for engine in engines.values()):
            raise RuntimeError("AdamNX: found_inf with `step` on the device needs fused=True on CUDA")

    numbers = range(len(params)) if numbers is None else numbers
    steps = clock.read_steps()
    groups = group_places(columns, engines, steps)
    # All are found before the first parameter is changed: this may fail.
    nexts = [clock.find_next(steps, columns.params[places[0]].device, places) for places in groups]
    for number, places in enumerate(groups):
        bucket, step, count = columns.pick(places), nexts[number], len(places)
        first = bucket.params[0]
        weight1 = weigh(adam, step, beta1, count)
        weight2 = weigh(BETA2_SCHEDULES[beta2_schedule], step, beta2, count)
        rule = Rule(weight1, weight2, lr, weight_decay, eps, maximize)
        own, own_memo = pick(numbers, places), memo.setdefault(number, {})
        known = layout if count == len(params) else None
        extras = Extras(own_memo, step, own, param_rounding, grad_scale, found_inf, known)
        step_bucket(engines[first.device, first.dtype], bucket, rule, extras)
    clock.advance(found_inf)
