"""The optimizers the paper compares with: torch's and pytorch-optimizer's, and the two that neither has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RAdam

from adamnx_hf.optim.schedules import adax

__all__ = ["AdaX", "SophiaG", "adam", "adamw", "momentum_sgd", "radam"]


def __getattr__(name: str) -> Any:
    if name == "Lion":
        try:
            from pytorch_optimizer import Lion
        except ModuleNotFoundError as error:
            raise ImportError(
                'Lion is pytorch-optimizer\'s: pip install "adamnx-hf[recipes]"', name=error.name
            ) from error
        return Lion
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def adam(
    params: Any,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    amsgrad: bool = False,
    fused: bool | None = None,
) -> Optimizer:
    """:class:`torch.optim.Adam`: weight decay enters the gradient."""
    return Adam(params, lr, betas, eps, weight_decay, amsgrad=amsgrad, fused=fused)


def adamw(
    params: Any,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    *,
    amsgrad: bool = False,
    fused: bool | None = None,
) -> Optimizer:
    """:class:`torch.optim.AdamW`."""
    return AdamW(params, lr, betas, eps, weight_decay, amsgrad=amsgrad, fused=fused)


def momentum_sgd(
    params: Any,
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    *,
    nesterov: bool = False,
    dampening: float = 0.0,
    fused: bool | None = None,
) -> Optimizer:
    """:class:`torch.optim.SGD` with momentum: weight decay enters the gradient."""
    return SGD(params, lr, momentum, dampening, weight_decay, nesterov, fused=fused)


def radam(
    params: Any,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    decoupled_weight_decay: bool = True,
) -> Optimizer:
    """:class:`torch.optim.RAdam`, with its weight decay decoupled unless told otherwise."""
    return RAdam(params, lr, betas, eps, weight_decay, decoupled_weight_decay=decoupled_weight_decay)


class _Foreach(Optimizer):
    """What the two optimizers below share: options, closure, and lists of tensors that take one call."""

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
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: defaultdict[Any, list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self._state_of(param)
                state["step"] += 1
                alike[param.device, param.dtype, int(state["step"])].append(param)
            for (_, _, step), params in alike.items():
                grads: list[Any] = [param.grad for param in params]
                first, second = ([self.state[p][name] for p in params] for name in self._moments)
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_lerp_(first, grads, 1 - group["betas"][0])
                self._update(params, grads, first, second, step, group)
        return loss

    def _state_of(self, param: Tensor) -> dict[str, Any]:
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


class AdaX(_Foreach):
    r"""AdaX (arXiv:2004.09740) with decoupled weight decay.

    $$
    \begin{aligned}
    m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
    v &\leftarrow \hat\beta_{2,t} v + (1 - \hat\beta_{2,t}) g^2 \\
    \theta &\leftarrow (1 - \eta\lambda)\,\theta - \eta\, m / (\sqrt v + \epsilon)
    \end{aligned}
    $$

    with :func:`adamnx_hf.optim.schedules.adax` for the second moment, and a first moment that is not
    corrected for its start at 0: that is what sets it apart from `AdamNX(beta2_schedule="adax")`.

    Args:
        params: parameters or groups.
        lr: learning rate η.
        betas: β1, and β2 with b = (1 − β2)², the paper's 1e-4 by default.
        eps: ε.
        weight_decay: λ.

    Raises:
        ValueError: an argument out of range.
    """

    _moments = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, bias_correction=False
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Marks what older versions have saved, too: m is no AdamNX's, though its name is the same."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("bias_correction", False)

    def _update(self, params: Any, grads: Any, first: Any, second: Any, step: int, group: Any) -> None:
        weight = float(adax(float(step), group["betas"][1]))
        torch._foreach_mul_(second, 1 - weight)
        torch._foreach_addcmul_(second, grads, grads, weight)
        root = torch._foreach_sqrt(second)
        torch._foreach_add_(root, group["eps"])
        torch._foreach_addcdiv_(params, first, root, -group["lr"])


class SophiaG(_Foreach):
    r"""Sophia with the Gauss-Newton-Bartlett estimate (arXiv:2305.14342, Algorithm 3).

    $$
    \begin{aligned}
    m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
    \theta &\leftarrow (1 - \eta\lambda)\,\theta - \eta\,\operatorname{clip}(m / \max(\rho h, \epsilon), 1)
    \end{aligned}
    $$

    and every `curvature_every` steps :meth:`update_curvature`, after a backward pass of a loss against
    labels drawn from the model's own prediction. The recipes' Trainer makes that pass
    (:class:`adamnx_hf.tasks.trainer.CurvatureCallback`); in a loop of your own, make it yourself.

    Args:
        params: parameters or groups.
        lr: learning rate η.
        betas: of m and of h.
        rho: ρ; the larger, the smaller the share of entries that are clipped.
        weight_decay: λ.
        eps: ε. Until the first estimate h is 0 and every entry moves by η.
        curvature_every: steps between two estimates.

    Raises:
        ValueError: an argument out of range.
    """

    _moments = ("exp_avg", "hessian")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 1e-1,
        *,
        eps: float = 1e-15,
        curvature_every: int = 10,
    ) -> None:
        if curvature_every < 1:
            raise ValueError(f"Invalid curvature_every: {curvature_every}, must be at least 1")
        super().__init__(params, lr=lr, betas=betas, rho=rho, weight_decay=weight_decay, eps=eps)
        self.curvature_every = curvature_every

    def _update(self, params: Any, grads: Any, first: Any, second: Any, step: int, group: Any) -> None:
        scale = torch._foreach_mul(second, group["rho"])
        torch._foreach_maximum_(scale, group["eps"])
        ratio = torch._foreach_div(first, scale)
        torch._foreach_clamp_min_(ratio, -1.0)
        torch._foreach_clamp_max_(ratio, 1.0)
        torch._foreach_add_(params, ratio, alpha=-group["lr"])

    @torch.no_grad()
    def update_curvature(self, batch_size: int) -> None:
        """Takes the gradients of the sampled loss into h.

        Args:
            batch_size: how many labels the loss was the mean over, in all processes.
        """
        for group in self.param_groups:
            beta = group["betas"][1]
            for param in group["params"]:
                if param.grad is not None:
                    hessian = self._state_of(param)["hessian"]
                    hessian.mul_(beta).addcmul_(param.grad, param.grad, value=(1 - beta) * batch_size)
