"""The decay schedules, by name: how much of a new gradient enters a running average at step t.

Every running average here is `average ← average + weight · (new − average)`. A schedule is a function
`(step, beta) -> weight`, where `weight = 1 − β̂_t`. It returns the weight and not β̂, because 1 − β̂ loses its
digits as β̂ rises to 1: `1 − (1 − q^(t−1))/(1 − q^t)` has none left at t = 400,000.

All the exponential schedules are one formula, :func:`exponential_weight`, at different rates. To add a
schedule: write a function and add a line to :data:`BETA2_SCHEDULES`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "BETA2_SCHEDULES",
    "Beta2Schedule",
    "Schedule",
    "adafactor",
    "adam",
    "adamnx",
    "adax",
    "beta2_for_horizon",
    "exponential_weight",
    "horizon",
]

#: One formula serves numbers on the host and tensors on the device (`capturable=True`, torch.compile).
Scalar = float | Tensor


def _apply(function: str, x: Scalar) -> Scalar:
    """Returns the value of a function that math and torch have under the same name."""
    result: Scalar = getattr(torch if isinstance(x, Tensor) else math, function)(x)
    return result


def _log(x: Scalar) -> Scalar:
    return _apply("log", x) if isinstance(x, Tensor) or x > 0.0 else -math.inf


def _clamp(x: Scalar, low: float, high: float) -> Scalar:
    return x.clamp(low, high) if isinstance(x, Tensor) else min(max(x, low), high)


def exponential_weight(rate: Scalar, step: Scalar) -> Scalar:
    """Returns the weight of the newest of `step` values, where value s has a weight of `exp(−rate · s)`.

    `exp(−rate·t) / Σ_{s≤t} exp(−rate·s) = expm1(rate) / expm1(rate·t)`, a form without cancellation:
    at t = 1 it is exactly 1, and it keeps full relative precision until it underflows.

    Args:
        rate: the decay per step, not zero. If it is negative recent values count most, as in Adam
            (`rate = ln β`); if positive the earliest do, as in AdamNX and AdaX. ±inf are legal (β = 0).
        step: t ≥ 1. Floats are computed in float64, tensors in their own dtype, elementwise.

    Returns:
        The weight in [0, 1], a float or a tensor.
    """
    # An infinite rate would make inf · 0 at t = 1; this bound is far enough for the limits to be exact.
    rising, falling = _clamp(rate, 0.0, 800.0), _clamp(rate, -800.0, 0.0)
    # The formula without a positive exponent, so that nothing overflows: for a positive rate both sides of
    # the fraction are divided by exp(rate·t).
    exponent = falling - rising
    return _apply("exp", -rising * (step - 1)) * _apply("expm1", exponent) / _apply("expm1", exponent * step)


def adam(step: Scalar, beta: Scalar) -> Scalar:
    """Returns the weight of Adam's bias-corrected average, `1 − β̂_t = (1 − β) / (1 − β^t)`.

    That is β̂_t = (β − β^t) / (1 − β^t). AdamNX's first moment uses this too, as does the second moment of the
    ablation's "Adam" row (β2 = 0.999). Source: Kingma & Ba 2015 (arXiv:1412.6980), the two-line form of
    the paper's Eq. 13.
    """
    return exponential_weight(_log(beta), step)


def adamnx(step: Scalar, beta2: Scalar) -> Scalar:
    """Returns the weight of AdamNX's second moment.

    `β̂2_t = (1 − q^(t−1)) / (1 − q^t)` with `q = β2^(1−β2)` (paper, Eq. 11). β2 = 0 gives
    q = 0: weight 1 at t = 1 and 0 afterwards, so v stays at the first squared gradient.
    """
    return exponential_weight(-(1.0 - beta2) * _log(beta2), step)


def adax(step: Scalar, beta2: Scalar) -> Scalar:
    """Returns the weight of AdaX's second moment, `b / ((1 + b)^t − 1)` with `b = (1 − β2)²`.

    AdaX (arXiv:2004.09740) publishes b = 1e-4, which is β2 = 0.99 here, AdamNX's own default; for
    another b pass `beta2 = 1 − sqrt(b)`. With `b = β2^−(1−β2) − 1` (1.00508e-4) it would *be* AdamNX's
    schedule. AdaX itself does not correct the first moment's bias; this is its second moment alone.
    """
    return exponential_weight(_apply("log1p", (1.0 - beta2) ** 2), step)


def adafactor(step: Scalar, beta2: Scalar) -> Scalar:
    """Returns the weight of Adafactor's second moment, where `β̂2_t = 1 − t^(−0.8)`.

    β2 has no effect (arXiv:1804.04235, Sec. 7.2).
    """
    return step**-0.8


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A second-moment schedule, which is called as its `weight` is."""

    weight: Callable[[Scalar, Scalar], Scalar]
    """The function `(step, beta2) -> weight`."""
    default_beta2: float
    """The β2 that the schedule's authors use; 0 where it has no effect."""

    def __call__(self, step: Scalar, beta2: Scalar) -> Scalar:
        """Returns the weight of the newest of `step` values."""
        return self.weight(step, beta2)


Beta2Schedule = Literal["adamnx", "adam", "adafactor", "adax"]

#: Second-moment schedules by the name that `AdamNX(beta2_schedule=...)` takes.
BETA2_SCHEDULES: dict[str, Schedule] = {
    "adamnx": Schedule(adamnx, 0.99),
    "adam": Schedule(adam, 0.999),
    "adafactor": Schedule(adafactor, 0.0),
    "adax": Schedule(adax, 0.99),
}


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"Invalid {name}: {value!r} is not a number")


def horizon(beta2: float) -> float:
    """Returns the steps over which AdamNX's weights of past squared gradients fall by a factor e.

    `H = −1 / ((1 − β2) ln β2) ≈ 1 / (1 − β2)²`: 9,950 steps for 0.99, a million for 0.999. Long before
    H, v is the plain mean of all squared gradients so far; long after, it stands still.

    Raises:
        ValueError: `beta2` is outside (0, 1).
        TypeError: `beta2` is no number.
    """
    _check_number("beta2", beta2)
    if not 0.0 < beta2 < 1.0:
        raise ValueError(f"beta2 must lie between 0 and 1 to have a horizon, got {beta2}")
    return -1.0 / ((1.0 - beta2) * math.log1p(beta2 - 1.0))


#: How many horizons a run of the paper spans: 781 steps × 80 epochs on CIFAR-100 with β2 = 0.99 (6.28).
PAPER_HORIZONS_PER_RUN = 781 * 80 / horizon(0.99)


def beta2_for_horizon(num_training_steps: float, horizons_per_run: float = PAPER_HORIZONS_PER_RUN) -> float:
    """Returns the β2 whose horizon fits a run: `horizon(beta2) = num_training_steps / horizons_per_run`.

    The paper's β2 = 0.99 was tuned on runs of 62,480 steps. In a fine-tune of 1,000 steps v with
    β2 = 0.99 never gets past its plain-mean phase; this solves for the β2 that puts the same number of
    horizons into the run (0.92 for 1,000 steps). A lead worth trying, not an established gain.

    Args:
        num_training_steps: the optimizer steps of the whole run, ≥ 1.
        horizons_per_run: the horizons that the run is to span. The default, 6.28, is the paper's; with 1 the
            horizon is the run itself.

    Returns:
        β2 in (0, 1). `beta2_for_horizon(62_480)` is the paper's 0.99.

    Raises:
        ValueError: an argument is not positive and finite.
        TypeError: an argument is no number.
    """
    _check_number("num_training_steps", num_training_steps)
    _check_number("horizons_per_run", horizons_per_run)
    if not (math.isfinite(num_training_steps) and num_training_steps >= 1):
        raise ValueError(f"num_training_steps must be at least 1, got {num_training_steps}")
    if not (math.isfinite(horizons_per_run) and horizons_per_run > 0):
        raise ValueError(f"horizons_per_run must be positive and finite, got {horizons_per_run}")
    rate = horizons_per_run / num_training_steps
    # −x·ln(1 − x) = rate has one root x = 1 − β2 in (0, 1), and the left side rises: bisect to the last
    # bit. In x, not in β2, so that β2 close to 1 keeps its digits.
    low, high = 0.0, math.nextafter(1.0, 0.0)
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if -middle * math.log1p(-middle) < rate else (low, middle)
    return min(1.0 - high, math.nextafter(1.0, 0.0))
