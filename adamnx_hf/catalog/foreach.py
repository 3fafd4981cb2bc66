"""A base for optimizers with two moments, which steps lists of tensors at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["ForeachOptimizer", "evaluate"]


def evaluate(closure: Callable[[], float] | None) -> float | None:
    """Evaluates the closure of a step, with gradients; returns its loss, or None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class ForeachOptimizer(Optimizer):
    """Checks options, and steps all parameters of one device, dtype and step count at once.

    A subclass names the two entries of its state in `_moments` and writes `_update`. The first moment is the
    running mean of gradients, and weight decay is decoupled.
    """

    def __init__(self, params: Any, **defaults: Any) -> None:
        for name in ("lr", "weight_decay", "eps", "rho"):
            if name in defaults and not defaults[name] >= 0:
                raise ValueError(f"Invalid {name}: {defaults[name]}")
        for i, beta in enumerate(defaults["betas"]):
            if not 0 <= beta < 1:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
        super().__init__(params, defaults)

    _moments: tuple[str, str]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Performs a single optimization step.

        Args:
            closure: reevaluates the model and returns the loss.
        """
        loss = evaluate(closure)
        for group in self.param_groups:
            alike: defaultdict[Any, list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self._find_state(param)
                state["step"] += 1
                alike[param.device, param.dtype, int(state["step"])].append(param)
            for (_, _, step), params in alike.items():
                grads: list[Any] = [param.grad for param in params]
                first, second = ([self.state[p][name] for p in params] for name in self._moments)
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_lerp_(first, grads, 1 - group["betas"][0])
                self._update(params, grads, first, second, step, group)
        return loss

    def _find_state(self, param: Tensor) -> dict[str, Any]:
        if param.grad is not None and param.grad.is_sparse:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name in self._moments:
                state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state

    def _update(
        self,
        params: list[Tensor],
        grads: list[Any],
        first: list[Tensor],
        second: list[Tensor],
        step: int,
        group: dict[str, Any],
    ) -> None:
        raise NotImplementedError
