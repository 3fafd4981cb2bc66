"""The record of a run: in its folder from the first step on, and in its checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from adamnx_hf.common import files, interrupts
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.recipes.policy import NAME_OR_PATH, is_neutral
from adamnx_hf.recipes.resolution import as_file
from adamnx_hf.runs.announcements import print_start
from adamnx_hf.runs.command_line import build_command
from adamnx_hf.runs.epochs import list_epochs
from adamnx_hf.runs.folder import remove_results
from adamnx_hf.runs.memory import as_it_is
from adamnx_hf.runs.messages import Phase
from adamnx_hf.runs.throughput import TrainClock
from adamnx_hf.runs.titles import fits_title, list_data_changes
from adamnx_hf.tasks.base import Recipe

__all__ = ["RunRecord", "make_record", "read_record"]

# Fields that may change when a run goes on, beside those that leave the outcome alone.
_MAY_DIFFER = re.compile(
    r"num_train_epochs|max_steps|eval_\w+|max_eval_samples|exact_match_samples|max_new_tokens|answer_pattern|"
    r"metric_for_best_model|load_best_model_at_end|greater_is_better|merge_adapter|ignore_data_skip"
)
# Neutral fields that nevertheless make it another run.
_IS_ANOTHER = ("seed", "optim", "optim_args")


class RunRecord(TrainerCallback, ExportableState):
    """A callback that writes down how a run goes.

    Transformers stores :meth:`state` in each checkpoint's trainer_state.json under the name of this class.

    Args:
        recipe: the run's recipe.
        phase: the progress of the run, with its trainer.
        environment: the content of environment.json.
        earlier: the record in the checkpoint that the run goes on from, see :func:`read_record`; None if the
            run starts at the beginning.
        quiet: whether the run prints nothing.
    """

    def __init__(
        self,
        recipe: Recipe,
        phase: Phase,
        environment: dict[str, Any],
        earlier: dict[str, Any] | None,
        quiet: bool,
    ) -> None:
        self.recipe, self.phase, self.environment = recipe, phase, environment
        self.trainer: Any = phase.trainer
        self.folder = Path(recipe.training_arguments.output_dir)
        self.fresh, self.quiet = earlier is None, quiet
        self.memory: dict[str, int] | None = (earlier or {}).get("memory")
        self.clock = TrainClock()
        self.clock.go_on((earlier or {}).get("clock") or {})

    def rows(self) -> list[dict[str, Any]]:
        """Returns the epochs so far, see :func:`adamnx_hf.runs.epochs.list_epochs`."""
        return list_epochs(self.trainer.state.log_history, list(self.recipe.task.METRICS), self.clock.seconds)

    def state(self) -> dict[str, Any]:
        """Returns the record that a checkpoint keeps; :func:`read_record` reads it."""
        run = {"recipe": as_file(self.recipe), "memory": self.memory, "clock": self.clock.state()}
        return {"args": {}, "attributes": {"run": run}}

    def on_optimizer_step(self, *_: Any, **now: Any) -> None:
        """Measures memory once, while gradients are still there and states have been made."""
        if self.memory is None:
            self.memory = dataclasses.asdict(as_it_is(now["model"], now["optimizer"]))

    def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Writes the recipe and the environment, and removes the results of an earlier run.

        Nothing is written before, because a run whose optimizer or schedule cannot be made never gets here.
        """
        # A checkpoint of another Trainer has no record yet.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self.phase.begun = True
        if self.trainer.is_world_process_zero():
            files.remove_drafts(self.folder)
            if self.fresh:
                remove_results(self.folder)
            self._write_recipe()
            files.write_json(self.folder / "environment.json", self.environment)
            if not self.quiet:
                print_start(self.recipe, self.trainer)

    def _write_recipe(self) -> None:
        """Writes the recipe as it was resolved, with the command that runs it again."""
        words = [*build_command(self.environment["processes"]), f"{self.folder.name}/recipe.yaml"]
        head = f"# {self.recipe.name} as it was run. Again: {shlex.join(words)}\n"
        fields = as_file(self.recipe)
        if not fits_title(self.recipe.changes, list_data_changes(self.recipe)):  # nor when the file is run
            fields.pop("title", None)
        text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
        files.write_text(self.folder / "recipe.yaml", head + text)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Ends the run if it was interrupted."""
        interrupts.check()

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        """Writes the epochs so far."""
        if self.trainer.is_world_process_zero():
            files.write_json(self.folder / "metrics.json", self.rows())


def make_record(*arguments: Any, **keywords: Any) -> RunRecord:
    """Makes the record of a run, with the arguments of :class:`RunRecord`.

    With `restore_callback_states_from_checkpoint` Transformers makes each callback of a checkpoint anew, by
    its class and the `args` of its state alone. The class of this record needs none: all of its objects share
    one state.
    """
    first = RunRecord(*arguments, **keywords)

    def share(self: RunRecord) -> None:
        self.__dict__ = first.__dict__

    record: RunRecord = type(RunRecord.__name__, (RunRecord,), {"__init__": share})()
    return record


def read_record(recipe: Recipe, checkpoint: str | None) -> dict[str, Any] | None:
    """Reads the record in the checkpoint that a run goes on from.

    Returns:
        `recipe`, `memory` and `clock`; an empty dict if the checkpoint has no record; None without a
        checkpoint.

    Raises:
        RecipeError: the checkpoint is of another run; the message names a field that differs.
    """
    if checkpoint is None:
        return None
    content = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    record = content.get("stateful_callbacks", {}).get(RunRecord.__name__) or {}
    run: dict[str, Any] = record.get("attributes", {}).get("run", {})
    if run.get("recipe") is not None:  # else it is of a Trainer of the user's own
        _check_same_run(recipe, checkpoint, run["recipe"])
    return run


def _check_same_run(recipe: Recipe, checkpoint: str, written: dict[str, Any]) -> None:
    now = json.loads(json.dumps(as_file(recipe), default=str))
    for key in sorted({*written, *now}):
        if _MAY_DIFFER.fullmatch(key) or (is_neutral(key, recipe.task) and key not in _IS_ANOTHER):
            continue
        default = recipe.find_default(key)
        then, is_now = written.get(key, default), now.get(key, default)
        moved = NAME_OR_PATH.fullmatch(key) and isinstance(is_now, str) and os.path.exists(is_now)
        if then != is_now and not moved:
            raise RecipeError(
                f"resume_from_checkpoint: {checkpoint} is of a run with {key} {then!r}, not {is_now!r}; go "
                f"on with --{key} as it was, or start anew with --overwrite_output_dir"
            )
