"""The weights of past gradients in the second moment v, by decay schedule."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from adamnx_hf.optim.schedules import BETA2_SCHEDULES

__all__ = ["newest_weights", "shares", "squared_shares"]


def newest_weights(schedule: str, steps: Iterable[float], beta2: float | None = None) -> np.ndarray:
    """Returns the weight `1 − β̂2,t` that g² enters v with, for each step t.

    Args:
        schedule: a name in :data:`adamnx_hf.optim.schedules.BETA2_SCHEDULES`.
        steps: from 1 on.
        beta2: None for the schedule's default.
    """
    decay = BETA2_SCHEDULES[schedule]
    beta2 = decay.default_beta2 if beta2 is None else beta2
    return np.array([float(decay(float(step), beta2)) for step in steps])


def shares(schedule: str, steps: int, beta2: float | None = None) -> np.ndarray:
    """Returns the weights of g_s² in v after `steps` steps, for s = 1 … steps. They add up to 1.

    g_s² enters with `w_s = 1 − β̂2,s` and is multiplied by every later β̂2: `w_s · Π_{s<k≤t} (1 − w_k)`.

    Args:
        schedule, beta2: as for :func:`newest_weights`.
        steps: t.
    """
    weights = newest_weights(schedule, range(1, steps + 1), beta2)
    kept = np.ones(steps)
    kept[:-1] = np.exp(np.cumsum(np.log1p(-weights[:0:-1]))[::-1])  # w_1 = 1 leaves nothing to decay
    return weights * kept


def squared_shares(schedule: str, steps: int, beta2: float) -> np.ndarray:
    """Returns the sum of the squared weights in v after each of `steps` steps: Var(v)/E(v)² in units of κ.

    The sum is 1 at the first step. A plain mean has 1/t. Adam's goes to (1 − β2)/(1 + β2), AdamNX's to
    (1 − q)/(1 + q) with q = β2^(1−β2): v stands still, at a place that the first H steps have chosen.

    Args:
        schedule, beta2: as for :func:`newest_weights`.
        steps: how many sums to return.
    """
    sums = np.empty(steps)
    total = 0.0
    for i, weight in enumerate(newest_weights(schedule, range(1, steps + 1), beta2)):
        total = sums[i] = (1 - weight) ** 2 * total + weight**2
    return sums
