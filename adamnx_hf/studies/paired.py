"""Paired comparisons: each optimizer has one value for every seed."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["Difference", "compare_pairs", "paired_difference", "verdict"]


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean of paired differences, with its t interval."""

    mean: float
    low: float | None
    """None, as `high`, where there is no spread to judge by: one pair, or pairs with equal differences."""
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
    """Returns the mean of `first − second`, pair by pair, with Student's t interval.

    Args:
        first: one value for each seed.
        second: the values of the other optimizer for the same seeds.
        confidence: the interval's.

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


def compare_pairs(
    names: tuple[str, str], metric: str, better: str, first: Sequence[float], second: Sequence[float]
) -> tuple[dict[str, Any], Difference | None]:
    """Makes one row of a comparison: the paired differences of two optimizers in one metric.

    Args:
        names: the two optimizers'.
        metric: its name.
        better: `"lower"` or `"higher"`.
        first, second: as for :func:`paired_difference`; nan where a run diverged.

    Returns:
        The row as a comparison's JSON has it, without its verdict, and the difference; None where a run
        diverged.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    difference = paired_difference(first, second) if all(map(math.isfinite, differences)) else None
    row = {
        "first": names[0],
        "second": names[1],
        "metric": metric,
        "better": better,
        "differences": [value if math.isfinite(value) else None for value in differences],
        **(dataclasses.asdict(difference) if difference else dict.fromkeys(("mean", "low", "high"))),
    }
    return row, difference


def verdict(
    names: tuple[str, str],
    difference: Difference | None,
    better: str,
    *,
    words: tuple[str, str] = ("better", "worse"),
    none: str = "no difference shown (the interval holds 0)",
    unknown: str = "cannot be judged",
) -> str:
    """Says what a difference allows to be said: "better" only where its interval excludes 0.

    Args:
        names: the two optimizers'.
        difference: first − second; None if it is not known.
        better: `"lower"` or `"higher"`.
        words: what the first optimizer is where its values are better, and where they are worse.
        none: the verdict where the interval contains 0.
        unknown: the verdict where there is no interval.
    """
    sign = difference.sign if difference else None
    if sign is None:
        return unknown
    if sign == 0:
        return none
    is_better = (sign < 0) == (better == "lower")
    return f"{names[0]} is {words[0] if is_better else words[1]} than {names[1]} here"
