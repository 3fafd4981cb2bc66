"""The runs of a comparison before the first is trained, and how their recipes are resolved."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.splits import overlap
from adamnx_hf.studies.compare.contenders import Contender, Values
from adamnx_hf.studies.compare.study import Study
from adamnx_hf.tasks.base import Recipe

__all__ = [
    "QUIET",
    "Plan",
    "Run",
    "describe_splits",
    "make_plan",
    "name_in_errors",
    "resolve_for",
    "undo_changes",
]

#: Flags of every run: nothing is reported, and nothing kept but the results.
QUIET = ("--save_strategy=no", "--load_best_model_at_end=false", "--report_to=none", "--push_to_hub=false")

# A sweep's seeds are none of those that judge.
_SWEEP_SEEDS_FROM = 1000


@dataclasses.dataclass
class Run:
    """One training run of a comparison."""

    contender: Contender
    seed: int
    values: Values
    """The values of the swept fields."""
    folder: Path
    flags: Sequence[str]
    """The flags that the recipe is resolved with."""
    keep_model: bool = False
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The content of results.json; empty before the run is done."""

    def score(self, metric: str) -> float:
        """Returns the metric's value after the last step; nan where it is not known or not finite."""
        value = self.results["per_epoch"][-1].get(metric)
        return float(value) if value is not None and math.isfinite(value) else math.nan


@dataclasses.dataclass(frozen=True)
class Plan:
    """All runs that a comparison may need."""

    grids: Mapping[Contender, list[Values]]
    """The values that are tried for each contender; one entry where there is nothing to choose."""
    sweep: list[Run]
    """The runs to choose by."""
    candidates: list[Run]
    """The runs to judge by, for each value that may be chosen."""

    def judging_runs(self, chosen: Mapping[Contender, Values]) -> list[Run]:
        """Returns the runs at the chosen values, seed by seed: an interrupted comparison has pairs."""
        runs = [run for run in self.candidates if run.values == chosen[run.contender]]
        return sorted(runs, key=lambda run: run.seed)


@contextlib.contextmanager
def undo_changes() -> Iterator[None]:
    """Undoes what a run changes in this process.

    Transformers sets `ACCELERATE_*` variables, Accelerate keeps a global state.
    """
    from accelerate.state import AcceleratorState

    kept = {key: value for key, value in os.environ.items() if key.startswith("ACCELERATE_")}
    try:
        yield
    finally:
        for key in [key for key in os.environ if key.startswith("ACCELERATE_")]:
            del os.environ[key]
        os.environ.update(kept)
        AcceleratorState._reset_state()


@contextlib.contextmanager
def name_in_errors(contender: Contender) -> Iterator[None]:
    """Puts the contender's name before the message of a RecipeError."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{contender.label}: {error}") from error


def resolve_for(study: Study, contender: Contender, flags: Sequence[str]) -> Recipe:
    """Resolves the study's recipe with a contender's flags.

    Raises:
        RecipeError: something does not fit; the message names the contender.
    """
    from adamnx_hf import recipes

    with undo_changes(), name_in_errors(contender):
        return recipes.resolve(study.recipe, flags)


def make_plan(study: Study, base: Recipe, folder: Path) -> Plan:
    """Plans the runs of a comparison.

    Args:
        study: see :class:`Study`.
        base: its recipe, resolved with the flags for all.
        folder: the comparison's.

    Raises:
        RecipeError: the sweep and the splits, or a contender's settings, do not fit together.
    """
    from adamnx_hf import recipes

    judged_rows, sweep_rows = _split_flags(study, base.task_arguments)
    fields, seed = recipes.list_fields(study.recipe), base.training_arguments.seed
    plan = Plan({one: one.grid(study.sweeps) for one in study.contenders}, [], [])
    for one, grid in plan.grids.items():
        common = [*study.flags, *QUIET]
        optim_args = resolve_for(study, one, [*common, f"--optim={one.optim}"]).training_arguments.optim_args
        flags = [*common, *one.flags(fields, optim_args)]
        for values in grid:
            swept = [*flags, *(f"--{key}={value}" for key, value in values.items())]
            if len(grid) > 1:
                seeds = range(seed + _SWEEP_SEEDS_FROM, seed + _SWEEP_SEEDS_FROM + study.sweep_seeds)
                plan.sweep.extend(_make_runs(one, values, seeds, folder / "sweep", [*swept, *sweep_rows]))
            seeds = range(seed, seed + study.seeds)
            plan.candidates.extend(
                _make_runs(one, values, seeds, folder, [*swept, *judged_rows], study.keep_models)
            )
    if study.sweeps and not plan.sweep:
        raise RecipeError("--sweep: the settings of every optimizer fix what it would choose; leave it out")
    return plan


def _make_runs(
    contender: Contender,
    values: Values,
    seeds: range,
    folder: Path,
    flags: Sequence[str],
    keep_model: bool = False,
) -> Iterator[Run]:
    for number, seed in enumerate(seeds):
        place = folder / contender.place(values, number)
        own = [f"--seed={seed}", "--overwrite_output_dir=true", "--disable_tqdm=true"]
        yield Run(contender, seed, values, place, [*flags, *own, f"--output_dir={place}"], keep_model)


def _split_flags(study: Study, arguments: Any) -> tuple[list[str], list[str]]:
    """Returns the flags that say which rows are whose: those of the judging runs, and of the sweep's.

    Raises:
        RecipeError: the sweep would choose by rows that are trained on or judged on.
    """
    if not study.sweeps:
        return [], []
    if not study.validation_split:
        held_out = f"--sweep_hold_out={study.hold_out}"
        return [held_out], [held_out, "--eval_on_sweep_rows=true"]
    for field in ("eval_split", "train_split"):
        if overlap(study.validation_split, getattr(arguments, field)):
            raise RecipeError(
                f"--validation-split: {study.validation_split} has rows of {field} "
                f"({getattr(arguments, field)}); name others, or leave it out for a part of the training rows"
            )
    on_the_split = ["--eval_on_held_out=false"] if arguments.eval_on_held_out else []
    return [], [f"--eval_split={study.validation_split}", *on_the_split]


def describe_splits(study: Study, arguments: Any) -> dict[str, str | None]:
    """Says in words which rows each phase uses: `train`, `sweep` (None without one) and `judged`.

    Args:
        study: see :class:`Study`.
        arguments: the task's, see :class:`adamnx_hf.tasks.data.DataArguments`.
    """
    train, left = arguments.train_split, 100.0
    rows = {"train": train, "sweep": None, "judged": arguments.eval_split}
    for name, percent in (("judged", arguments.hold_out), ("sweep", study.held_out_for_sweep)):
        if percent:
            drawn, left = left * percent / 100, left * (100 - percent) / 100
            rows["train"] = f"{left:g} % of {train}"
            if name == "sweep" or arguments.eval_on_held_out:
                rows[name] = f"another {drawn:g} % of {train}, drawn at random"
    if study.sweeps and study.validation_split:
        rows["sweep"] = study.validation_split
    return rows
