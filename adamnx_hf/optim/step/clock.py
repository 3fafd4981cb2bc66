"""The counters of steps, the weights that schedules give at the next step, and counting on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import _to_scalar

from adamnx_hf.optim.engines import ENGINES
from adamnx_hf.optim.engines.contract import Case, Weight
from adamnx_hf.optim.formats import find_moment_dtype
from adamnx_hf.optim.layout import Memo, pick
from adamnx_hf.optim.schedules import Scalar

__all__ = ["Clock", "count_on_device", "find_step_dtype", "pack_steps", "read_rates", "weigh"]

# The next whole number is not one of float32's.
_LAST_IN_FLOAT32 = 2**24


class Clock(NamedTuple):
    """The `step` counters of all parameters."""

    state_steps: list[Tensor]
    packed: Tensor | None
    """The tensor whose elements, all of them and in this order, are `state_steps`; None if there is none."""
    on_host: bool
    """Whether the schedule is computed on the host, which then reads the counters."""

    @classmethod
    def read(cls, state_steps: list[Tensor], memo: Memo, *, on_device: bool) -> Clock:
        """Returns the clock of 0-d tensors, of which no value is read yet.

        Args:
            state_steps: the counters.
            memo: the same dict at each step.
            on_device: keeps the schedule on the device, wherever the counters are.
        """
        packed = _find_packed(state_steps, memo)
        if on_device:  # an `if` of its own, which Dynamo can trace
            return cls(state_steps, packed, False)
        on_cpu = packed.is_cpu if packed is not None else all(step.is_cpu for step in state_steps)
        return cls(state_steps, packed, on_cpu)

    def read_steps(self) -> list[float]:
        """Returns the steps done so far for each parameter; an empty list where the device has them.

        Raises:
            ValueError: a counter of float32 has come to its end.
        """
        if not self.on_host:
            return []
        steps = self.packed.tolist() if self.packed is not None else [s.item() for s in self.state_steps]
        if max(steps) >= _LAST_IN_FLOAT32 and any(s.dtype != torch.float64 for s in self.state_steps):
            raise ValueError(
                f"AdamNX: a step of float32 counts to {_LAST_IN_FLOAT32:,} and no further; make it float64"
            )
        return steps

    def find_next(self, steps: list[float], device: torch.device, places: Sequence[int]) -> Weight:
        """Returns the next t of the parameters at `places`.

        Args:
            steps: the result of :meth:`read_steps`.
            device: the device of the parameters.
            places: the places of the parameters.

        Returns:
            A number if the host knows the steps and they agree, else a tensor with one element for each
            parameter. Where the host does not know them the tensor is on `device`, and nothing waits for it.
        """
        if self.on_host:
            chosen: list[float] = pick(steps, places)
            agree = len(set(chosen)) == 1
            return chosen[0] + 1 if agree else torch.tensor(chosen, dtype=torch.float64, device="cpu") + 1
        # The schedules' forms are right to float32's last digits too.
        precision = find_step_dtype(device)
        if self.packed is not None and len(self.packed) == len(places):
            return self.packed.to(precision).to(device) + 1
        return torch.stack([self.state_steps[i].to(precision).to(device) for i in places]) + 1

    def advance(self, found_inf: Tensor | None) -> None:
        """Raises the counters by 1, or where `found_inf` is not 0 by nothing."""
        steps, packed = self.state_steps, self.packed
        one = None if found_inf is None else (found_inf == 0).float()
        if packed is not None:
            packed.add_(1 if one is None else one.to(packed.device, non_blocking=True))
        elif one is not None:
            for device in {step.device for step in steps}:
                there = [step for step in steps if step.device == device]
                # Without alpha the tensor would be taken for a number, which the host would wait for.
                torch._foreach_add_(there, one.to(device, non_blocking=True), alpha=1.0)
        elif steps[0].is_cpu:
            # For steps on the CPU torch adds one by one, and would wrap a number in a tensor each time.
            torch._foreach_add_(steps, torch.tensor(1.0, device="cpu"), alpha=1.0)
        else:
            torch._foreach_add_(steps, 1)


def read_rates(
    lr: float | Tensor, beta1: Scalar, beta2: Scalar, *, on_host: bool, compiling: bool
) -> tuple[Scalar, Scalar, Scalar]:
    """Returns the hyperparameters that a schedule may change, as numbers or 0-d tensors.

    As a number, each value of a schedule would have torch.compile compile the step anew, but for products
    with a tensor: there Dynamo has the number in a tensor itself.

    Args:
        lr, beta1, beta2: numbers or 1-element tensors.
        on_host: makes numbers of the betas.
        compiling: makes tensors of numbers.
    """
    lr, beta1, beta2 = _to_scalar(lr), _to_scalar(beta1), _to_scalar(beta2)
    if compiling:
        one = torch.ones((), dtype=torch.float64, device="cpu")
        lr, beta1, beta2 = (x if isinstance(x, Tensor) else one * x for x in (lr, beta1, beta2))
    if on_host:
        beta1, beta2 = float(beta1), float(beta2)
    return lr, beta1, beta2


def weigh(schedule: Callable[[Any, Any], Any], step: Weight, beta: Scalar, count: int) -> Weight:
    """Returns the weight 1 − β̂ of a schedule at t, a number or one for each of `count` parameters."""
    if isinstance(beta, Tensor):
        beta = beta.to(step.device, step.dtype) if isinstance(step, Tensor) else beta.double()
    weight: Weight = schedule(step, beta)
    return weight.expand(count) if isinstance(weight, Tensor) else weight


def find_step_dtype(device: torch.device) -> torch.dtype:
    """Returns the dtype of `step` on a device: float64, or float32 on MPS, which has no float64.

    In float32, 2^24 + 1 is 2^24, where counting would end.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def pack_steps(states: Sequence[dict[str, Any]]) -> None:
    """Lays the `step` tensors of `states` out in one, of which each becomes a 0-d view.

    Each parameter still has its own, to be read, written, saved and replaced. But while all of them step
    together, counting is one addition instead of thousands.
    """
    devices = {state["step"].device for state in states}
    if len(states) > 1 and len(devices) == 1:
        packed = torch.stack([state["step"] for state in states])
        for state, step in zip(states, packed.unbind(), strict=True):
            state["step"] = step


def count_on_device(params: list[Tensor], states: Sequence[dict[str, Any]]) -> None:
    """Moves `step` to its parameter's device if an engine there can decide whether a step counts.

    That is for steps with `found_inf`, whose value the host is not to wait for.
    """
    for kind in {(param.device.type, find_moment_dtype(param.dtype.to_real())) for param in params}:
        able = [engine for engine in ENGINES.values() if engine.ABILITIES.unscales]
        if None not in [engine.why_not(Case(*kind, host_schedule=False)) for engine in able]:
            return  # then the host has to ask, for all of them
    moving = [(s, p.device) for p, s in zip(params, states, strict=True) if s["step"].device != p.device]
    for state, device in moving:
        state["step"] = state["step"].to(find_step_dtype(device)).to(device, non_blocking=True)
    if moving:
        pack_steps(states)


def _find_packed(state_steps: list[Tensor], memo: Memo) -> Tensor | None:
    """Returns the tensor that :func:`pack_steps` has laid these counters out in, if they still lie there."""
    packed = state_steps[0]._base
    if packed is None or torch.compiler.is_compiling():
        return None
    # By address: `.data` of a view may have become another tensor.
    addresses = list(map(Tensor.data_ptr, state_steps))
    if (packed.data_ptr(), packed.shape, addresses) != memo.get("step"):
        first, size = packed.data_ptr(), packed.element_size()
        if (
            packed.ndim != 1
            or any(step._base is not packed for step in state_steps)
            or addresses != list(range(first, first + packed.numel() * size, size))
        ):
            return None
        memo["step"] = first, packed.shape, addresses
    return packed
