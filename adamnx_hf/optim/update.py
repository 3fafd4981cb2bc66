"""The algorithm: one AdamNX step of one tensor."""

from __future__ import annotations

from torch import Tensor

__all__ = ["adamnx_update"]


def adamnx_update(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    weight1: float | Tensor,
    weight2: float | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns one AdamNX step of one tensor, as the paper's Algorithm 1 has it. No argument is modified.

    There is no separate bias correction: the schedules start at `weight = 1`, so both moments are
    averages of the gradients seen so far from the first step on.

    Args:
        param, grad, exp_avg, exp_avg_sq: θ, g, m and v, real tensors of one shape, dtype and device.
        weight1: 1 − β̂1 at step t, see :func:`adamnx_hf.optim.schedules.adam`.
        weight2: 1 − β̂2 at step t, see :data:`adamnx_hf.optim.schedules.BETA2_SCHEDULES`.
        lr: the learning rate η.
        weight_decay: the decoupled weight decay λ, applied before the update.
        eps: the ε that is added to √v.

    Returns:
        The new param, exp_avg and exp_avg_sq.
    """
    param = param * (1 - lr * weight_decay)
    exp_avg = (1 - weight1) * exp_avg + weight1 * grad
    exp_avg_sq = (1 - weight2) * exp_avg_sq + weight2 * grad.square()
    param = param - lr * exp_avg / (exp_avg_sq.sqrt() + eps)
    return param, exp_avg, exp_avg_sq
