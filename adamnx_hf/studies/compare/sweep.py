"""What a sweep says: the values that did best, and how much better values between them would be."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.studies.compare.contenders import Contender, Values

__all__ = ["HeadRoom", "Tried", "choose_values", "find_edges", "find_head_room", "measure_room"]


class Tried(NamedTuple):
    """Values that a sweep has tried."""

    values: Values
    scores: Sequence[float]
    """The metric of each of the sweep's seeds, in their order; nan where a run diverged."""
    losses: Sequence[float]
    """The evaluation loss of each, which decides between values whose scores are equal."""

    def find_mean(self, best: str) -> float:
        """Returns the mean score, with its sign changed if the best is `"max"`; inf if a run diverged."""
        return _lower_is_better(self.scores, best)


@dataclasses.dataclass(frozen=True)
class HeadRoom:
    """How much better than at its chosen values a contender would be at the best ones in between."""

    estimate: float
    """In units of the metric, at least 0."""
    error: float | None
    """The standard error of the estimate, None for one seed."""
    freedom: int = 0
    """The degrees of freedom of that error: one less than there are seeds."""


def choose_values(contender: Contender, tried: Sequence[Tried], best: str) -> Values:
    """Returns the values with the best mean over the sweep's seeds.

    A run that diverged makes its values the worst there are.

    Args:
        contender: whose values they are.
        tried: one entry where there is nothing to choose; its scores are not looked at.
        best: `"min"` or `"max"`, the best that the metric can be.

    Raises:
        RecipeError: a run diverged at all values.
    """
    if len(tried) == 1:
        return tried[0].values
    ranks = {}
    for i, one in enumerate(tried):
        mean = one.find_mean(best)
        if math.isfinite(mean):
            ranks[i] = (mean, statistics.fmean(one.losses))
    if not ranks:
        raise RecipeError(f"{contender.label}: diverged at every value of the sweep; add smaller ones")
    return tried[min(ranks, key=lambda i: ranks[i])].values


def find_edges(chosen: Values, grid: Sequence[Values]) -> list[str]:
    """Returns the swept fields whose chosen value is the smallest or the largest number of the grid."""
    edges = []
    for key, value in chosen.items():
        numbers = sorted(_read_numbers(key, grid))
        if len(numbers) > 1 and float(value) in (numbers[0], numbers[-1]):
            edges.append(key)
    return edges


def find_head_room(chosen: Values, tried: Sequence[Tried], best: str) -> HeadRoom | None:
    """Estimates how much better a contender would be between the values of the grid.

    In each field that has positive numbers, a parabola in their logarithm goes through the means at the best
    value and at its two neighbours, the other fields being as chosen. What the fields leave is added up. The
    error is the jackknife's over the sweep's seeds, so that it also covers a choice that was chance.

    Args:
        chosen, tried, best: as :func:`choose_values` returns and takes them.

    Returns:
        The estimate. None where it is not known: a field's best value lies at the edge of the grid or beside
        one at which a run diverged, or no field has positive numbers.
    """
    lines = []
    for key in chosen:
        others = {name: value for name, value in chosen.items() if name != key}
        line = [one for one in tried if all(one.values[name] == value for name, value in others.items())]
        numbers = _read_numbers(key, [one.values for one in line])
        if len(numbers) == len(line) > 1 and min(numbers) > 0:
            scores = {number: one.scores for number, one in zip(numbers, line, strict=True)}
            lines.append((float(chosen[key]), dict(sorted(scores.items()))))

    def add_up(seeds: Sequence[int]) -> tuple[float, bool]:
        rooms = [
            measure_room(
                at, {x: _lower_is_better([scores[i] for i in seeds], best) for x, scores in line.items()}
            )
            for at, line in lines
        ]
        return sum(room for room, _ in rooms), all(inside for _, inside in rooms)

    seeds = range(len(tried[0].scores))
    estimate, inside = add_up(seeds)
    if not (lines and inside):
        return None
    if len(seeds) == 1:
        return HeadRoom(estimate, None)
    without = [add_up([i for i in seeds if i != left_out])[0] for left_out in seeds]
    return HeadRoom(estimate, math.sqrt((len(seeds) - 1) * statistics.pvariance(without)), len(seeds) - 1)


def measure_room(at: float, means: Mapping[float, float]) -> tuple[float, bool]:
    """Returns how much lower than at `at` a curve through `means` comes, and whether its bottom is inside.

    Args:
        at: one of the positive numbers of `means`.
        means: values of which lower ones are better, in the order of their numbers.
    """
    numbers = list(means)
    place = min(range(len(numbers)), key=lambda i: means[numbers[i]])
    bottom = means[numbers[place]]
    around = numbers[max(place - 1, 0) : place + 2]
    inside = len(around) == 3 and all(math.isfinite(means[x]) for x in around)
    if inside:
        x0, x1, x2 = map(math.log, around)
        left = (means[around[1]] - means[around[0]]) / (x1 - x0)
        right = (means[around[2]] - means[around[1]]) / (x2 - x1)
        if bend := (right - left) / (x2 - x0):
            slope = left + bend * (x1 - x0)  # of the parabola at its middle point
            bottom -= slope**2 / (4 * bend)
    return means[at] - bottom, inside


def _lower_is_better(scores: Sequence[float], best: str) -> float:
    """Returns the mean of scores, with its sign changed where higher ones are better; inf if one diverged."""
    mean = statistics.fmean(scores)
    return (mean if best == "min" else -mean) if math.isfinite(mean) else math.inf


def _read_numbers(key: str, grid: Sequence[Values]) -> list[float]:
    """Returns the numbers that a field has in the grid, each once; none where one is no number."""
    try:
        return list(dict.fromkeys(float(values[key]) for values in grid))
    except ValueError:
        return []
