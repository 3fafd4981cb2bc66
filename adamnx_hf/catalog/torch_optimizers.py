"""torch's optimizers, with the options that `optim_args` may set."""

from __future__ import annotations

from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer, RAdam

__all__ = ["adam", "adamw", "momentum_sgd", "radam"]


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
    """Makes a :class:`torch.optim.Adam`, whose weight decay enters the gradient."""
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
    """Makes a :class:`torch.optim.AdamW`."""
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
    """Makes a :class:`torch.optim.SGD` with momentum, whose weight decay enters the gradient."""
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
    """Makes a :class:`torch.optim.RAdam`, whose weight decay is decoupled by default."""
    return RAdam(params, lr, betas, eps, weight_decay, decoupled_weight_decay=decoupled_weight_decay)
