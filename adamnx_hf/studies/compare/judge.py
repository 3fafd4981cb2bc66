"""The judgement of a comparison's runs: paired differences, and what each allows to be said."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from adamnx_hf.studies import paired
from adamnx_hf.studies.compare.contenders import Contender, Values
from adamnx_hf.studies.compare.plan import Plan, Run
from adamnx_hf.studies.compare.study import LOSS
from adamnx_hf.studies.compare.sweep import HeadRoom, Tried, find_edges, find_head_room
from adamnx_hf.studies.compare.verdict import Case, Side, judge_family

__all__ = ["Outcome", "compare_contenders", "list_tried", "summarize"]

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
    primary: str
    """The metric that a sweep chooses by, and that verdicts are about."""
    smallest_effect: float | None
    """The smallest difference in it that matters."""
    on_training_rows: bool
    """Whether the runs were judged on rows that they were trained on."""

    def head_room(self, contender: Contender) -> HeadRoom | None:
        """Returns what the sweep's grid leaves to a contender; None where that is not known."""
        tried = list_tried(contender, self.plan, self.primary)
        if len(tried) == 1:
            return None
        return find_head_room(self.chosen[contender], tried, self.metrics[self.primary])


def list_tried(contender: Contender, plan: Plan, metric: str) -> list[Tried]:
    """Returns the values of a contender's grid with what the sweep's runs have come to."""
    mine = [run for run in plan.sweep if run.contender == contender]
    rows = []
    for values in plan.grids[contender]:
        runs = [run for run in mine if run.values == values]
        rows.append(Tried(values, *([run.score(name) for run in runs] for name in (metric, LOSS))))
    return rows


def summarize(contender: Contender, outcome: Outcome) -> dict[str, Any]:
    """Returns what comparison.json holds of a contender: the optimizer, the choice, the sweep, the runs."""
    chosen = outcome.chosen[contender]
    runs = [run for run in outcome.runs if run.contender == contender]
    tried = list_tried(contender, outcome.plan, outcome.primary)
    swept, room = len(tried) > 1, outcome.head_room(contender)
    results = runs[0].results
    return {
        "label": contender.label,
        "optimizer": results["optimizer"],
        "betas": results["betas"],
        "beta2_schedule": results.get("beta2_schedule"),
        "steps": results["steps"],
        "learning_rate": results["learning_rate"],
        "chosen": chosen,
        "at_the_edge": find_edges(chosen, outcome.plan.grids[contender]),
        "head_room": dataclasses.asdict(room) if room else None,
        "sweep": [
            {"values": one.values, outcome.primary: [*map(_or_none, one.scores)]} for one in tried if swept
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


def compare_contenders(
    family: Sequence[tuple[Contender, Contender]], outcome: Outcome
) -> list[dict[str, Any]]:
    """Returns what comparison.json holds of pairs of contenders.

    Those rows in the primary metric are a family of tests, whose p values are adjusted together. The rows of
    other metrics have their differences and intervals, and no verdict.
    """
    rows, cases = [], []
    for first, second in family:
        names = (first.label, second.label)
        for metric, best in outcome.metrics.items():
            a, b = (
                [run.score(metric) for run in outcome.runs if run.contender == one] for one in (first, second)
            )
            row, difference = paired.compare_pairs(names, metric, _BETTER[best], a, b)
            lost = [sum(map(math.isnan, values)) for values in (a, b)]
            rows.append(row | {"diverged": dict(zip(names, lost, strict=True))})
            if metric == outcome.primary:
                sides = [
                    _make_side(one, count, outcome) for one, count in zip((first, second), lost, strict=True)
                ]
                cases.append(Case(sides[0], sides[1], best, difference, len(a)))
    judged = iter(judge_family(cases, outcome.smallest_effect))
    for row in rows:
        primary = row["metric"] == outcome.primary
        row |= next(judged) if primary else {"verdict": f"not judged, only {outcome.primary} is"}
        row["verdict"] += ", on rows that they were trained on" if outcome.on_training_rows else ""
    return rows


def _make_side(contender: Contender, diverged: int, outcome: Outcome) -> Side:
    grid, room = outcome.plan.grids[contender], outcome.head_room(contender)
    unknown = "a run diverged beside its best values, or its sweep has no numbers"
    if edges := find_edges(outcome.chosen[contender], grid):
        unknown = f"its best {' and '.join(edges)} lies at the edge of the sweep"
    return Side(contender.label, len(grid) > 1, room, unknown, diverged)
