"""Engines: ways to carry out one AdamNX step on many tensors at once.

An engine is a module with

- `MIXES`: the dtypes that the tensors of one call may have in any mixture, each parameter with a `step` of
  its own. Empty: the parameters of a call agree in dtype and step, and all tensors have the dtype of the
  moments (float32 or float64);
- `SCALES`: whether it divides gradients by `grad_scale` and obeys `found_inf` itself;
- `why_not(device, dtype, *, host_schedule, differentiable, wrapped) -> str | None`: the reason it cannot
  serve tensors of that device type in arithmetic of that dtype, or None if it can. `wrapped`: they may be
  subclasses that wrap other tensors and have no memory of their own;
- `step_(params, grads, exp_avgs, exp_avg_sqs, *, weight1, weight2, lr, weight_decay, eps, maximize, ...)`:
  the step of :func:`adamnx_hf.optim.update.adamnx_update` in place on four lists of tensors.

It is given real tensors of one device, those of one parameter laid out alike in dense memory, and knows
nothing of param_groups, `step` counters, complex numbers or DTensors: see
:func:`adamnx_hf.optim.functional.adamnx`. `weight1` and `weight2` are numbers, or tensors with one element
for each parameter. An engine is added here, in :data:`ENGINES`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from adamnx_hf.optim.engines import aten, foreach, reference, triton

__all__ = ["ENGINES", "Engine", "Weight", "choose_engine"]

#: A schedule's weight: one number for the whole list, or a tensor with one element for each of its tensors.
Weight = float | Tensor


class Engine(Protocol):
    """What an engine module offers."""

    MIXES: frozenset[torch.dtype]
    SCALES: bool

    def why_not(
        self, device: str, dtype: torch.dtype, *, host_schedule: bool, differentiable: bool, wrapped: bool
    ) -> str | None:
        """The reason it cannot serve, or None."""

    def step_(
        self,
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
        **own: Any,
    ) -> None:
        """One step, in place.

        An engine that :attr:`SCALES` is also given `grad_scale` and `found_inf` (0-d tensors on the device,
        or None), `step` (t, as `weight1` is given), `numbers`, `rounding` and `residuals` (see
        :func:`adamnx_hf.adamnx`), `memo` (a dict that is the same at each step, for what it
        wants to keep) and `layout` (of the four lists, or None).
        """


#: By name, the fastest first: the default is the first that applies.
ENGINES: dict[str, Engine] = {
    "triton": cast(Engine, triton),
    "aten": cast(Engine, aten),
    "foreach": cast(Engine, foreach),
    "reference": cast(Engine, reference),
}

#: The engines that `fused=True` asks for, the fastest first.
_FUSED = ("triton", "aten")

#: Those that torch.compile sees into, and fuses itself.
_TRACED = ("foreach", "reference")

#: What `fused=True` asks for within torch.compile, which has an operator for the kernel, but none for aten's.
_FUSED_AND_TRACED = ("triton", "foreach")


def choose_engine(
    device: str,
    dtype: torch.dtype,
    *,
    foreach: bool | None,
    fused: bool | None,
    host_schedule: bool,
    differentiable: bool,
    wrapped: bool = False,
) -> Engine:
    """The engine for tensors of a device type and dtype, by torch.optim's rules for `foreach` and `fused`.

    Both None: the fastest that applies. One True: that kind, or an error. Otherwise: the reference. Within
    torch.compile `fused=True` is also served by what the compiler itself fuses.

    Raises:
        RuntimeError: what was asked for cannot serve; the message gives each engine's reason.
    """
    compiling = torch.compiler.is_compiling()
    if fused:
        names: Sequence[str] = _FUSED_AND_TRACED if compiling else _FUSED
    elif foreach:
        names = ("foreach",)
    elif fused is None and foreach is None:
        names = _TRACED if compiling else tuple(ENGINES)
    else:
        names = ("reference",)

    reasons = {}
    for name in names:
        reason = ENGINES[name].why_not(
            device, dtype, host_schedule=host_schedule, differentiable=differentiable, wrapped=wrapped
        )
        if reason is None:
            return ENGINES[name]
        reasons[name] = reason
    asked = "fused=True" if fused else "foreach=True"
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise RuntimeError(
        f"AdamNX: {asked} cannot be used here ({why}). Leave it at None for the fastest that can."
    )
