"""Trains the runs of a comparison, each once."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.studies.compare.plan import Run, name_in_errors, resolve_for, undo_changes
from adamnx_hf.studies.compare.study import Study

__all__ = ["Progress", "carry_out", "check_run"]

# A whole model has the first, an adapter the second.
_MODEL_CONFIGS = ("config.json", "adapter_config.json")


class Progress:
    """A bar of all runs that moves with the steps of each, so that it can say how long is left.

    Args:
        count: how many runs there are.
    """

    def __init__(self, count: int) -> None:
        from tqdm import tqdm

        # No smoothing: the runs are alike, and the mean of all is the best guess.
        form = "{desc} {percentage:3.0f} % |{bar}| {elapsed} so far, {remaining} left"
        self.bar = tqdm(total=count, bar_format=form, leave=False, dynamic_ncols=True, smoothing=0)
        self.done = 0

    def close(self) -> None:
        """Takes the bar away."""
        self.bar.close()

    def add(self, count: int) -> None:
        """Adds runs that were not known from the start."""
        self.bar.total += count
        self.bar.refresh()

    def skip(self) -> None:
        """Leaves out a run that was done before: it says nothing about the time that is left."""
        self.add(-1)

    def finish(self) -> None:
        """Counts a run that is done."""
        self.done += 1
        self.move_to(self.done)

    def move_to(self, place: float) -> None:
        """Moves the bar to `place`, counted in runs."""
        self.bar.update(place - self.bar.n)

    def follow(self, name: str) -> Any:
        """Returns a callback for a Trainer that moves the bar with its steps, under the run's name."""
        from transformers import TrainerCallback

        progress = self
        progress.bar.set_description_str(f"{self.done + 1} of {self.bar.total}: {name}")

        class Steps(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                progress.move_to(progress.done + min(state.global_step / max(state.max_steps, 1), 1))

        return Steps()


def check_run(run: Run, study: Study) -> None:
    """Checks that a run can be trained, and loads its results if it was, with the same settings.

    The first seed tells whether the settings fit; the others are checked where there are results to load.

    Raises:
        RecipeError: the settings do not fit, or the results in the run's folder are of other settings and may
            not be overwritten.
    """
    from adamnx_hf.runs.trial import try_optimizer

    path = run.folder / "results.json"
    if run.folder.name != "seed0" and not path.is_file():
        return
    recipe = resolve_for(study, run.contender, run.flags)
    with undo_changes(), name_in_errors(run.contender):
        try_optimizer(recipe.training_arguments)
    if not path.is_file():
        return
    if (other := _find_other_setting(run, recipe)) is None:
        if run.keep_model and not any((run.folder / name).is_file() for name in _MODEL_CONFIGS):
            return  # it was run without its model being kept: again
        with contextlib.suppress(ValueError):  # damaged: run again
            run.results = json.loads(path.read_text(encoding="utf-8"))
    elif not study.overwrite:
        field, there, expected = other
        raise RecipeError(
            f"output_dir: {run.folder} holds a run with {field}={there}, not {expected}; choose another "
            "--output-dir or pass --overwrite-output-dir"
        )


def _find_other_setting(run: Run, recipe: Any) -> tuple[str, Any, Any] | None:
    """Finds a field in which the run in the folder differs; returns it with the values of the two."""
    import yaml

    from adamnx_hf.recipes import as_file, read_recipe

    path = run.folder / "recipe.yaml"
    expected = yaml.safe_load(yaml.safe_dump(as_file(recipe)))
    there = read_recipe(path) if path.is_file() else {}
    for key in {**expected, **there}:
        # A run writes the title down only where it is true of the data.
        if key != "title" and (key not in there or key not in expected or there[key] != expected[key]):
            return key, there.get(key), expected.get(key)
    return None


def carry_out(run: Run, study: Study, progress: Progress) -> None:
    """Trains a run, unless it is done.

    Raises:
        RecipeError: see :func:`adamnx_hf.runs.training.train`. Or no step was taken.
    """
    from adamnx_hf.runs.training import train

    if run.results:
        progress.skip()
    else:
        with undo_changes():
            recipe = resolve_for(study, run.contender, run.flags)
            # Files of an earlier run have other settings. Its model would pass for this run's.
            for name in ("results.json", *_MODEL_CONFIGS):
                (run.folder / name).unlink(missing_ok=True)
            values = "".join(f", {key} {value}" for key, value in run.values.items())
            run.results = train(
                recipe,
                command=study.command,
                bare=True,
                keep_model=run.keep_model,
                callbacks=[progress.follow(f"{run.contender.label}{values}, seed {run.seed}")],
            )
        progress.finish()
    if not run.results["steps"]:
        raise RecipeError(
            f"{run.contender.label}: took no step in {run.folder}, so nothing can be compared; give more "
            "rows, or a smaller --per_device_train_batch_size"
        )
