"""Paired comparisons: one value of each optimizer for every seed."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["Difference", "compared", "paired_difference"]


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean of paired differences, with its t interval."""

    mean: float
    low: float | None
    """None, as `high`: a single pair, or pairs that all differ by the same, leave no spread to judge by."""
    high: float | None

    @property
    def sign(self) -> int | None:
        """1 or -1 where the interval lies above or below 0, 0 where it contains 0, None without one."""
        if self.low is None or self.high is None:
            return None
        return (self.low > 0) - (self.high < 0)


def paired_difference(
    first: Sequence[float], second: Sequence[float], confidence: float = 0.95
) -> Difference:
    """The mean of `first − second`, pair by pair, with Student's t interval.

    Args:
        first: one value per seed.
        second: the values of the other optimizer for the same seeds.
        confidence: of the interval.

    Raises:
        ValueError: the lengths differ, or there are no pairs.
    """
    from scipy.stats import t

    differences = [float(a) - float(b) for a, b in zip(first, second, strict=True)]
    mean = statistics.fmean(differences)
    spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
    # Equal differences come out of the subtraction equal to the last few bits only.
    if spread <= 1e-12 * max(map(abs, [*first, *second])):
        return Difference(mean, None, None)
    quantile = float(t.ppf((1 + confidence) / 2, len(differences) - 1))
    half = quantile * spread / math.sqrt(len(differences))
    return Difference(mean, mean - half, mean + half)


def compared(
    names: tuple[str, str], metric: str, better: str, first: Sequence[float], second: Sequence[float]
) -> tuple[dict[str, Any], Difference | None]:
    """What a comparison's JSON says of two optimizers by one figure, all but the verdict.

    Args:
        names: of the two.
        metric: the figure.
        better: `"lower"` or `"higher"`.
        first, second: as for :func:`paired_difference`; NaN where a run diverged.

    Returns:
        The record, and the difference in it, None where a run diverged.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    difference = paired_difference(first, second) if all(map(math.isfinite, differences)) else None
    record = {
        "first": names[0],
        "second": names[1],
        "metric": metric,
        "better": better,
        "differences": [value if math.isfinite(value) else None for value in differences],
        "mean": difference.mean if difference else None,
        "low": difference.low if difference else None,
        "high": difference.high if difference else None,
    }
    return record, difference
