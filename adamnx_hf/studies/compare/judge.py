"""The judgement of a comparison's runs: the best values of a sweep, paired differences, verdicts."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.studies import paired
from adamnx_hf.studies.compare.contenders import Contender, Values
from adamnx_hf.studies.compare.plan import Plan, Run
from adamnx_hf.studies.compare.study import LOSS

__all__ = ["Outcome", "choose_values", "compare_contenders", "find_edges", "summarize", "verdict"]

#: The better values of a metric, by the best that it can be.
_BETTER = {"min": "lower", "max": "higher"}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A comparison whose runs are done."""

    plan: Plan
    chosen: Mapping[Contender, Values]
    """The values that each contender is judged at."""
    runs: Sequence[Run]
    """The runs that judge."""
    metrics: Mapping[str, str]
    """`"min"` or `"max"`, the best that a metric can be, by its name."""
    chosen_by: str
    """The metric that a sweep chooses by."""
    on_training_rows: bool
    """Whether the runs were judged on rows that they were trained on."""


def choose_values(
    contender: Contender, grid: Sequence[Values], runs: Iterable[Run], metric: str, best: str
) -> Values:
    """Returns the values with the best mean over the sweep's seeds.

    A run that diverged makes its values the worst there are. The loss decides between equals.

    Args:
        contender: whose values they are.
        grid: the values that were tried.
        runs: the sweep's, of all contenders.
        metric: the one to choose by.
        best: `"min"` or `"max"`, the best that the metric can be.

    Raises:
        RecipeError: the runs diverged at all values.
    """
    if len(grid) == 1:
        return grid[0]
    ranks = {}
    mine = [run for run in runs if run.contender == contender]
    for i, values in enumerate(grid):
        tried = [run for run in mine if run.values == values]
        mean, loss = (statistics.fmean(run.score(name) for run in tried) for name in (metric, LOSS))
        if math.isfinite(mean):
            ranks[i] = (mean if best == "min" else -mean, loss)
    if not ranks:
        raise RecipeError(f"{contender.label}: diverged at every value of the sweep; add smaller ones")
    return grid[min(ranks, key=lambda i: ranks[i])]


def find_edges(chosen: Values, grid: Sequence[Values]) -> list[str]:
    """Returns the swept fields whose chosen value is the smallest or the largest number of the grid."""
    edges = []
    for key, value in chosen.items():
        try:
            tried = sorted({float(values[key]) for values in grid})
        except ValueError:
            continue  # not numbers
        if len(tried) > 1 and float(value) in (tried[0], tried[-1]):
            edges.append(key)
    return edges


def summarize(contender: Contender, outcome: Outcome) -> dict[str, Any]:
    """Returns what comparison.json holds of a contender: the optimizer, the choice, the sweep, the runs."""
    grid, chosen = outcome.plan.grids[contender], outcome.chosen[contender]
    runs = [run for run in outcome.runs if run.contender == contender]
    sweep = [run for run in outcome.plan.sweep if run.contender == contender]
    results, by = runs[0].results, outcome.chosen_by
    return {
        "label": contender.label,
        "optimizer": results["optimizer"],
        "betas": results["betas"],
        "beta2_schedule": results.get("beta2_schedule"),
        "steps": results["steps"],
        "learning_rate": results["learning_rate"],
        "chosen": chosen,
        "at_the_edge": find_edges(chosen, grid),
        "sweep": [
            {"values": values, by: [_or_none(run.score(by)) for run in sweep if run.values == values]}
            for values in grid
            if len(grid) > 1
        ],
        "runs": [
            {
                "seed": run.seed,
                **{metric: _or_none(run.score(metric)) for metric in outcome.metrics},
                "train_seconds": run.results["train_seconds"],
                "commit": run.results["environment"].get("commit"),
                "per_epoch": run.results["per_epoch"],
            }
            for run in runs
        ],
    }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def compare_contenders(first: Contender, second: Contender, outcome: Outcome) -> list[dict[str, Any]]:
    """Returns what comparison.json holds of two contenders: a row for each metric, with its verdict."""
    names, rows = (first.label, second.label), []
    for metric, best in outcome.metrics.items():
        a, b = (
            [run.score(metric) for run in outcome.runs if run.contender == one] for one in (first, second)
        )
        row, difference = paired.compare_pairs(names, metric, _BETTER[best], a, b)
        diverged = {name: sum(map(math.isnan, values)) for name, values in zip(names, (a, b), strict=True)}
        said = verdict(names, best, difference, diverged, len(a), outcome.on_training_rows)
        rows.append(row | {"diverged": diverged, "verdict": said})
    return rows


def verdict(
    names: tuple[str, str],
    best: str,
    difference: paired.Difference | None,
    diverged: Mapping[str, int],
    seeds: int,
    on_training_rows: bool = False,
) -> str:
    """Says what the difference of two contenders allows to be said; see :mod:`adamnx_hf.studies.paired`.

    Args:
        names: the contenders' labels.
        best: `"min"` or `"max"`, the best that the metric can be.
        difference: first − second; None where a run diverged.
        diverged: how many runs did, by label.
        seeds: how many pairs there are.
        on_training_rows: whether they were judged on rows that they were trained on.
    """
    if difference is None:
        told = " and ".join(f"{name} in {count} of {seeds}" for name, count in diverged.items() if count)
        unknown = f"no number (diverged?): {told}; not compared"
    elif seeds == 1:
        unknown = "one seed: cannot be judged"
    else:
        unknown = "the same in every seed" if difference.mean == 0 else "cannot be judged: the same each time"
    said = paired.verdict(names, difference, _BETTER[best], unknown=unknown)
    return said + (", on rows that they were trained on" if on_training_rows else "")
