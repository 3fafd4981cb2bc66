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
from adamnx_hf.studies.compare.refine import AUTO, FIRST_PLACES, write_rate
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


@dataclasses.dataclass
class Plan:
    """All runs that a comparison may need, as far as they are known."""

    study: Study
    folder: Path
    first_seed: int
    flags: dict[Contender, list[str]]
    """The flags of each contender's runs, without its swept values."""
    rows: tuple[list[str], list[str]]
    """The flags that say which rows the judging runs use, and which the sweep's."""
    grids: dict[Contender, list[Values]] = dataclasses.field(default_factory=dict)
    """The values that are tried for each contender; one entry where there is nothing to choose."""
    starts: dict[Contender, float] = dataclasses.field(default_factory=dict)
    """The recipe's learning rate, for contenders whose sweep finds its own values."""
    sweep: list[Run] = dataclasses.field(default_factory=list)
    """The runs to choose by."""
    candidates: list[Run] = dataclasses.field(default_factory=list)
    """The runs to judge by, for each value that may be chosen."""

    def add(self, contender: Contender, values: Values, *, swept: bool) -> tuple[list[Run], list[Run]]:
        """Adds values to a contender's grid.

        Args:
            contender: the one that is to try the values.
            values: the values of the swept fields.
            swept: whether there are others to choose from.

        Returns:
            The new runs to choose by, and those to judge by.
        """
        study, (judged_rows, sweep_rows) = self.study, self.rows
        flags = [*self.flags[contender], *(f"--{key}={value}" for key, value in values.items())]
        first = self.first_seed + _SWEEP_SEEDS_FROM
        seeds = range(first, first + (study.sweep_seeds if swept else 0))
        choosing = [*_make_runs(contender, values, seeds, self.folder / "sweep", [*flags, *sweep_rows])]
        seeds = range(self.first_seed, self.first_seed + study.seeds)
        flags += judged_rows
        judging = [*_make_runs(contender, values, seeds, self.folder, flags, study.keep_models)]
        self.grids.setdefault(contender, []).append(values)
        self.sweep += choosing
        self.candidates += judging
        return choosing, judging

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

    fields, rows = recipes.list_fields(study.recipe), _split_flags(study, base.task_arguments)
    plan = Plan(study, folder, base.training_arguments.seed, {}, rows)
    common = [*study.flags, *QUIET]
    for one in study.contenders:
        own = resolve_for(study, one, [*common, f"--optim={one.optim}"]).training_arguments
        plan.flags[one] = [*common, *one.flags(fields, own.optim_args)]
        grid = one.grid(study.sweeps)
        if grid == [{"learning_rate": AUTO}]:
            plan.starts[one] = own.learning_rate
            grid = [{"learning_rate": write_rate(own.learning_rate, place)} for place in FIRST_PLACES]
        for values in grid:
            plan.add(one, values, swept=len(grid) > 1)
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
