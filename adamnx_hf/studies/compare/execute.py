"""Carries a comparison out: plans its runs, trains what has not been trained yet, judges, and writes."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.files import sole_writer, write_json, write_text
from adamnx_hf.common.splits import judged_on_training_rows, training_rows
from adamnx_hf.studies.compare.charts import draw, draw_decay, draw_sweep
from adamnx_hf.studies.compare.contenders import Contender
from adamnx_hf.studies.compare.judge import Outcome, compare_contenders, list_tried, summarize
from adamnx_hf.studies.compare.markdown import markdown
from adamnx_hf.studies.compare.plan import QUIET, Plan, Run, describe_splits, make_plan
from adamnx_hf.studies.compare.refine import FIRST_PLACES, choose_next_places, write_rate
from adamnx_hf.studies.compare.study import LOSS, Study, hide_folders
from adamnx_hf.studies.compare.sweep import choose_values, find_head_room
from adamnx_hf.studies.compare.training import Progress, carry_out, check_run
from adamnx_hf.tasks.base import Recipe
from adamnx_hf.tasks.sharing import share_decoded

__all__ = ["compare"]


def compare(study: Study) -> dict[str, Any]:
    """Trains what has not been trained yet, and writes the comparison into its folder.

    Returns:
        What comparison.json holds, with its `folder`.

    Raises:
        RecipeError: something does not fit, or another comparison is writing into the folder; nothing has
            been trained by then.
    """
    from adamnx_hf import recipes

    base = recipes.resolve(study.recipe, [*study.flags, *QUIET])
    folder = study.output_dir or Path("runs") / base.name / "compare"
    with sole_writer(folder):
        content = _describe(study, base, _carry_out_all(study, base, folder))
        write_json(folder / "comparison.json", content)
        write_text(folder / "comparison.md", markdown(content) + "\n")
        draw(folder / "comparison.png", content)
        draw_sweep(folder / "sweep.png", content)
        draw_decay(folder / "decay.png", content)
    return content | {"folder": str(folder)}


def _carry_out_all(study: Study, base: Recipe, folder: Path) -> Outcome:
    """Plans the runs, checks all of them, then trains those that choose and those that judge."""
    metrics = {LOSS: "min", **{name: metric.best for name, metric in base.task.METRICS.items()}}
    primary = study.metric or next(iter(base.task.METRICS), LOSS)
    if primary not in metrics:
        raise RecipeError(f"--metric: {primary!r} is none of {', '.join(metrics)}")
    plan = make_plan(study, base, folder)
    # All runs are checked before the first is trained, also those that the sweep may not choose.
    for run in (*plan.sweep, *plan.candidates):
        check_run(run, study)
    on_training_rows = judged_on_training_rows(base)
    if on_training_rows:
        print(
            f"adamnx-hf compare: {training_rows(base.task_arguments)}; each verdict says so", file=sys.stderr
        )
    count = len(plan.sweep) + len(study.contenders) * study.seeds
    with share_decoded(), contextlib.closing(Progress(count)) as progress:
        for run in plan.sweep:
            carry_out(run, study, progress)
            _check_metric(run, primary)
        for one in plan.starts:
            _refine(one, plan, progress, primary, metrics[primary])
        chosen = {
            one: choose_values(one, list_tried(one, plan, primary), metrics[primary]) for one in plan.grids
        }
        runs = plan.judging_runs(chosen)
        for run in runs:
            carry_out(run, study, progress)
            _check_metric(run, primary)
    # The runs lack those of the task's metrics that the recipe does not ask for.
    rows = [row for run in runs for row in run.results["per_epoch"]]
    metrics = {
        name: best
        for name, best in metrics.items()
        if name == LOSS or any(row.get(name) is not None for row in rows)
    }
    return Outcome(plan, chosen, runs, metrics, primary, study.smallest_effect, on_training_rows)


def _check_metric(run: Run, metric: str) -> None:
    """Checks that a run's evaluations have a metric: the task's may be ones that a recipe does not ask for.

    Raises:
        RecipeError: none of them has it.
    """
    if all(row.get(metric) is None for row in run.results["per_epoch"]):
        raise RecipeError(
            f"--metric: no evaluation on these data gives {metric}; name another, such as --metric {LOSS}"
        )


def _refine(one: Contender, plan: Plan, progress: Progress, metric: str, best: str) -> None:
    """Adds learning rates until the best lies between two that are ×1.41 away, as far as the budget goes.

    It ends before, where the grid leaves less than half of the smallest effect of interest.
    """
    study, start = plan.study, plan.starts[one]
    places, grid = list(FIRST_PLACES), plan.grids[one]
    while len(grid) < study.sweep_budget:
        tried = list_tried(one, plan, metric)
        means = {place: there.find_mean(best) for place, there in zip(places, tried, strict=True)}
        if any(map(math.isfinite, means.values())) and study.smallest_effect is not None:
            room = find_head_room(choose_values(one, tried, best), tried, best)
            if room is not None and room.estimate + (room.error or 0.0) < study.smallest_effect / 2:
                return
        new = choose_next_places(means)[: study.sweep_budget - len(grid)]
        if not new:
            return
        for place in new:
            chosen_by, judged = plan.add(one, {"learning_rate": write_rate(start, place)}, swept=True)
            places.append(place)
            progress.add(len(chosen_by))
            for run in (*chosen_by, *judged):
                check_run(run, study)
            for run in chosen_by:
                carry_out(run, study, progress)


def _describe(study: Study, base: Recipe, outcome: Outcome) -> dict[str, Any]:
    """Returns the content of comparison.json."""
    from adamnx_hf.runs.environment import describe_environment
    from adamnx_hf.runs.titles import find_title, list_data_changes

    seed = base.training_arguments.seed
    return {
        "recipe": base.name,
        "title": find_title(base),
        "data": "made up" if base.synthetic_data else hide_folders(base.task_arguments.dataset_name),
        "data_changes": hide_folders(list_data_changes(base)),
        "command": study.command,
        "seeds": list(range(seed, seed + study.seeds)),
        "sweep": {key: list(values) for key, values in study.sweeps.items()},
        "sweep_seeds": study.sweep_seeds if study.sweeps else 0,
        "chosen_by": outcome.primary if study.sweeps else None,
        "judged_by": outcome.primary,
        "smallest_effect": study.smallest_effect,
        "plan": _describe_plan(study, base),
        "splits": describe_splits(study, base.task_arguments),
        "judged_on_training_rows": outcome.on_training_rows,
        "smoke": base.arguments.smoke,
        "metrics": dict(outcome.metrics),
        "commits": sorted({str(run.results["environment"].get("commit")) for run in outcome.runs}),
        "contenders": [summarize(one, outcome) for one in study.contenders],
        "comparisons": compare_contenders(study.family, outcome),
        "environment": describe_environment(),
    }


def _describe_plan(study: Study, base: Recipe) -> dict[str, Any] | None:
    """Returns the hash of the plan and what is not as planned; None without a plan."""
    from adamnx_hf.recipes.policy import is_neutral

    if study.plan is None:
        return None
    fields = {key: value for key, value in study.given["fields"].items() if not is_neutral(key, base.task)}
    given = hide_folders({**study.given, "fields": fields})
    return {"sha256": study.plan.sha256, "deviations": study.plan.find_deviations(given)}
