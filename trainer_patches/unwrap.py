"""The optimizer inside the wrappers of Accelerate and DeepSpeed."""

from __future__ import annotations

from typing import Any

__all__ = ["unwrap_optimizer"]


def unwrap_optimizer(optimizer: Any) -> Any:
    """Returns the optimizer inside all wrappers, which keep the optimizer that they wrap in `.optimizer`.

    Accelerate's AcceleratedOptimizer is such a wrapper, DeepSpeed's ZeRO optimizers are others. An optimizer
    without a wrapper is returned as it is.

    Examples:
        >>> trainer.train()
        >>> unwrap_optimizer(trainer.optimizer).param_groups[0]["betas"]
        (0.9, 0.99)
    """
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
