"""What the runs of a plan say: as data, which is kept and drawn, and as text."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from plan import Plan
from results import (
    centre_rates,
    chosen_rate,
    key_of,
    list_swept_seeds,
    of_kind,
    pick_best,
    sweep_means,
    value_of,
)

from adamnx_hf.studies.compare.sweep import measure_room
from adamnx_hf.studies.paired import adjust_by_holm, paired_difference

#: What is kept of the line with which a process begins.
OF_START = ["program", "commit", "device", "torch", "data", "parameters"]


def verdict(plan: Plan, lines: Sequence[dict[str, Any]], metrics: dict[str, str]) -> dict[str, Any]:
    """The sweep, each contender's runs at the rate that it has chosen, and the differences of the family.

    Args:
        plan: of the runs.
        lines: of the file of results.
        metrics: of the task.
    """
    better, start = metrics[plan.primary], of_kind(lines, "start")[-1:]
    settings = dataclasses.asdict(plan)
    plan = centre_rates(plan, lines, better)
    contenders = [_of_contender(name, plan, lines, better) for name in plan.contenders]
    return {
        "plan": settings.pop("sha256"),
        "settings": settings,
        **{key: line[key] for line in start for key in OF_START if key in line},
        "rows": {key: value for line in start for key, value in line.items() if key.endswith("_rows")},
        "metrics": metrics,
        "chosen_by": f"holdout_{plan.primary}",
        "judged_by": f"test_{plan.primary}",
        "coarse": _values(of_kind(lines, "run", part="coarse"), f"holdout_{plan.primary}", better),
        "contenders": contenders,
        "differences": _differences(plan, contenders, better),
        "errors": [
            f"{line['contender']} {line['mode']} {line['stage']}: {line['error']}"
            for line in of_kind(lines, "error")
            if "contender" in line
        ],
    }


def _of_contender(name: str, plan: Plan, lines: Sequence[dict[str, Any]], better: str) -> dict[str, Any]:
    """A contender's part of :func:`verdict`."""
    chosen, means = chosen_rate(name, plan, lines, better), sweep_means(name, plan, lines, better)
    runs = of_kind(lines, "run", part="judge", contender=name, rate=chosen)
    seeds = list_swept_seeds(name, plan, lines)
    sweep = of_kind(lines, "run", part="sweep", contender=name)
    return {
        "name": name,
        "learning_rate": chosen,
        "at_the_edge": bool(means) and chosen in (min(means), max(means)),
        "head_room": head_room(means, better),
        "sweep": _values([run for run in sweep if run["seed"] in seeds], f"holdout_{plan.primary}", better),
        "runs": [
            {"seed": run["seed"], "diverged": run["diverged"], **_metrics(run)}
            | {"evaluations": _evaluations(run, lines)}
            for run in runs
        ],
    }


def _evaluations(run: dict[str, Any], lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A run's evaluations by step. Those of an earlier try, which a cut has ended, do not count."""
    epochs = of_kind(lines, "epoch", mode=run.get("mode"))
    epochs = [line for line in epochs if key_of(line) == key_of(run)]
    last = {line["step"]: {"step": line["step"], **_metrics(line)} for line in epochs}
    return [last[step] for step in sorted(last)]


def _metrics(line: dict[str, Any]) -> dict[str, Any]:
    """What was measured."""
    return {key: value for key, value in line.items() if key.startswith(("train_", "holdout_", "test_"))}


def _values(runs: Sequence[dict[str, Any]], metric: str, better: str) -> list[dict[str, Any]]:
    """A metric's values at each rate, rising by rate, in the order of the seeds. None: the run diverged."""
    found = []
    for rate in sorted({run["rate"] for run in runs}):
        here = sorted((run for run in runs if run["rate"] == rate), key=lambda run: run["seed"])
        values = [value_of(run, metric, better) for run in here]
        found.append(
            {
                "learning_rate": rate,
                "seeds": [run["seed"] for run in here],
                "values": [value if math.isfinite(value) else None for value in values],
            }
        )
    return found


def head_room(means: dict[float, float], better: str) -> float | None:
    """How much better the best rate between those of a sweep would be, by a parabola through three points.

    Args:
        means: of the metric at each rate.
        better: `min` or `max`.

    Returns:
        In units of the metric. None where the best lies at an edge, beside a run that diverged, or on a line.
    """
    if not means:
        return None
    lower = {rate: mean if better == "min" else -mean for rate, mean in sorted(means.items())}
    room, inside = measure_room(pick_best(means, better), lower)
    return room if inside else None


def _differences(plan: Plan, contenders: Sequence[dict[str, Any]], better: str) -> list[dict[str, Any]]:
    """The declared differences, paired by seed, with Holm's correction and a test of equivalence."""
    values = {
        one["name"]: {run["seed"]: value_of(run, f"test_{plan.primary}", better) for run in one["runs"]}
        for one in contenders
    }
    found = [_difference(plan, first, second, values) for first, second in plan.family]
    for one, p in zip(found, adjust_by_holm([one["p"] for one in found]), strict=True):
        one["p_holm"] = p
    return found


def _difference(plan: Plan, first: str, second: str, values: dict[str, dict[int, float]]) -> dict[str, Any]:
    seeds = [seed for seed in values[first] if seed in values[second]]
    pairs = [values[first][seed] - values[second][seed] for seed in seeds]
    found: dict[str, Any] = {"first": first, "second": second, "n": len(pairs)}
    found |= dict.fromkeys(("mean", "low", "high", "p", "p_holm", "p_equivalence"))  # none of them known
    if not pairs or not all(map(math.isfinite, pairs)):
        return found  # no pairs, or a run that diverged
    difference = paired_difference(pairs, [0.0] * len(pairs))
    if difference.error is None:  # there is no spread to judge by
        return found
    return found | {
        "mean": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "p": difference.p_value(),
        "p_equivalence": difference.p_equivalence(plan.smallest_effect),
    }


# ---------------------------------------------------------------- as text


def table(*rows: Sequence[str]) -> list[str]:
    """Rows, the first of which is the head, as Markdown."""
    head, *others = ["| " + " | ".join(row) + " |" for row in rows]
    return [head, "|---" * len(rows[0]) + "|", *others]


def mean_of(values: Sequence[float | None]) -> str:
    """The mean as text: a dash where there are no values, `diverged` where one is None."""
    if None in values:
        return "diverged"
    return f"{statistics.fmean(values):.4f}" if values else "-"  # type: ignore[type-var]


def summary(content: dict[str, Any]) -> str:
    """A verdict as text."""
    settings, primary = content["settings"], content["settings"]["primary"]
    told = [
        f"plan {content['plan'][:12]}, {settings['steps']} steps, primary metric: {primary} "
        f"({content['metrics'][primary]} is best)"
    ]
    rates = sorted({point["learning_rate"] for one in content["contenders"] for point in one["sweep"]})
    if rates:
        rows = [["contender", *(f"{rate:g}" for rate in rates), "head-room"]]
        for one in content["contenders"]:
            points = {point["learning_rate"]: point["values"] for point in one["sweep"]}
            cells = [f"{mean_of(points.get(rate, []))} (n {len(points.get(rate, []))})" for rate in rates]
            room = "-" if one["head_room"] is None else f"{one['head_room']:.4f}"
            rows.append([one["name"], *cells, room])
        told += ["", f"sweep, {primary} on held-out rows:", *table(*rows)]
    if settings["seeds"]:
        rows = [["contender", "rate", "n", primary, "sd", "diverged"]]
        for one in content["contenders"]:
            found = [run.get(content["judged_by"]) for run in one["runs"] if not run["diverged"]]
            finite = [value for value in found if value is not None]
            sd = f"{statistics.stdev(finite):.4f}" if len(finite) > 1 else "-"
            at = "-" if one["learning_rate"] is None else f"{one['learning_rate']:g}"
            at += " (edge of the grid)" if one["at_the_edge"] else ""
            lost = str(len(one["runs"]) - len(finite))
            rows.append([one["name"], at, str(len(finite)), mean_of(finite), sd, lost])
        told += ["", "judged on the test rows after the last step:", *table(*rows)]
    if content["differences"]:
        rows = [["difference", "n", "mean", "95 % interval", "p", "p (Holm)", "p (equivalence)"]]
        for one in content["differences"]:
            cells = ["-"] * 5
            if one["p"] is not None:
                numbers = [f"{one[key]:.4f}" for key in ("p", "p_holm", "p_equivalence")]
                cells = [f"{one['mean']:.4f}", f"{one['low']:.4f} to {one['high']:.4f}", *numbers]
            rows.append([f"{one['first']} - {one['second']}", str(one["n"]), *cells])
        told += [
            "",
            f"differences in {primary}, paired by seed; Holm over {len(rows) - 1} tests; equivalence: no "
            f"more than {settings['smallest_effect']:g}",
            *table(*rows),
        ]
    return "\n".join([*told, *(f"failed: {error}" for error in content["errors"])])
