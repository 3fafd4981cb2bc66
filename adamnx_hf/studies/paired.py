"""Paired comparisons: each optimizer has one value for every seed."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

__all__ = [
    "Difference",
    "add_errors",
    "adjust_by_holm",
    "compare_pairs",
    "paired_difference",
    "student_tail",
    "verdict",
]


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean of paired differences, with its t interval."""

    mean: float
    low: float | None
    """None, as `high`, where there is no spread to judge by: one pair, or pairs with equal differences."""
    high: float | None
    error: float | None = None
    """The standard error of the mean, None where there is no spread."""
    freedom: int = 0
    """The degrees of freedom of Student's t: one less than there are pairs."""

    @property
    def sign(self) -> int | None:
        """1 or -1 where the interval lies above or below 0, 0 where it contains 0, None without one."""
        if self.low is None or self.high is None:
            return None
        return (self.low > 0) - (self.high < 0)

    def p_value(self) -> float | None:
        """Returns the probability of a mean as far from 0 if there is no difference; None without spread."""
        if self.error is None:
            return None
        return 2 * student_tail(abs(self.mean) / self.error, self.freedom)

    def p_equivalence(self, bound: float) -> float | None:
        """Returns the p value of the two one-sided tests that the difference lies within ±`bound`.

        Below 0.05 the difference is "no more than `bound`" (Schuirmann's TOST). None without spread.
        """
        return (
            None if self.error is None else student_tail((bound - abs(self.mean)) / self.error, self.freedom)
        )


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
    freedom = len(differences) - 1
    spread = statistics.stdev(differences) if freedom else 0.0
    # Equal differences come out of the subtraction equal to the last few bits only.
    if spread <= 1e-12 * max(map(abs, [*first, *second])):
        return Difference(mean, None, None)
    error = spread / math.sqrt(len(differences))
    half = float(t.ppf((1 + confidence) / 2, freedom)) * error
    return Difference(mean, mean - half, mean + half, error, freedom)


def student_tail(t: float, freedom: float) -> float:
    """Returns the probability that Student's t is above `t`."""
    from scipy.stats import t as student

    return float(student.sf(t, freedom))


def add_errors(*errors: tuple[float, int]) -> tuple[float, float]:
    """Returns the standard error of a sum of independent estimates, and its degrees of freedom.

    Args:
        errors: the standard error of each, one at least above 0, and its degrees of freedom.

    Reference: Satterthwaite, An approximate distribution of estimates of variance components (1946).
    """
    known = [(error, freedom) for error, freedom in errors if error]
    total = math.hypot(*(error for error, _ in known))
    return total, 1 / sum((error / total) ** 4 / freedom for error, freedom in known)


def adjust_by_holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusts the p values of a family of tests: with 95 %, no true hypothesis has one below 0.05.

    Args:
        p_values: one for each test of the family, in any order; None where a test could not be made. Such a
            test counts, since it belongs to the family.

    Reference: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    adjusted: list[float | None] = [None] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        adjusted[place] = largest = max(largest, min(1.0, (len(p_values) - rank) * p))
    return adjusted


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
        **{key: getattr(difference, key, None) for key in ("mean", "low", "high")},
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
