"""How much of each gradient v holds, by decay schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BETA2", "newest_weights", "shares", "squared_shares"]

#: The default β2 of each schedule.
BETA2 = {"adam": 0.999, "adamnx": 0.99, "adax": 0.99, "adafactor": 0.0}


def newest_weights(schedule: str, steps: Iterable[float], beta2: float | None = None) -> np.ndarray:
    """`1 − β̂2,t` of a schedule, at its default β2 unless told, for each t in `steps`."""
    import numpy as np

    from adamnx_hf.optim.schedules import BETA2_SCHEDULES

    weight, beta2 = BETA2_SCHEDULES[schedule], BETA2[schedule] if beta2 is None else beta2
    return np.array([float(weight(float(step), beta2)) for step in steps])


def shares(schedule: str, steps: int, beta2: float | None = None) -> np.ndarray:
    """The weight of g_s² in v after `steps` steps, for s = 1 … steps. They add up to 1.

    It enters with `1 − β̂2,s` and is multiplied by every later β̂2: `w_s · Π_{s<k≤t} (1 − w_k)`.
    """
    import numpy as np

    weights = newest_weights(schedule, range(1, steps + 1), beta2)
    kept = np.ones(steps)
    kept[:-1] = np.exp(np.cumsum(np.log1p(-weights[:0:-1]))[::-1])  # w_1 = 1 leaves nothing to decay
    shares: np.ndarray = weights * kept
    return shares


def squared_shares(schedule: str, steps: int, beta2: float) -> np.ndarray:
    """`Σ_s w_s²` of the weights in v after each of `steps` steps: Var(v)/E(v)² in units of κ.

    1 at the first step. Of a plain mean it is 1/t; for Adam it goes to (1 − β2)/(1 + β2), for AdamNX to
    (1 − q)/(1 + q) with q = β2^(1−β2): v stands still, at a place that the first H steps have chosen.
    """
    import numpy as np

    sums = np.empty(steps)
    total = 0.0
    for i, weight in enumerate(newest_weights(schedule, range(1, steps + 1), beta2)):
        total = sums[i] = (1 - weight) ** 2 * total + weight**2
    return sums
