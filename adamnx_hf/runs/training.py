"""A training run, from a resolved recipe to what is written into its folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from adamnx_hf.common import files, hub
from adamnx_hf.common.splits import judged_on_training_rows, training_rows
from adamnx_hf.runs import curves, throughput
from adamnx_hf.runs.announcements import print_results
from adamnx_hf.runs.environment import describe_environment
from adamnx_hf.runs.folder import PREDICTIONS, RESULTS, choose_checkpoint, prepare_folder, save_model
from adamnx_hf.runs.messages import Phase, explain_errors, explain_out_of_memory
from adamnx_hf.runs.publishing.push import push_run
from adamnx_hf.runs.record import RunRecord, make_record, read_record
from adamnx_hf.runs.results import collect_results, find_loaded_step
from adamnx_hf.runs.trial import try_optimizer
from adamnx_hf.tasks.base import Recipe

__all__ = ["train"]

# The remedy after a full disk in a comparison, which skips what has been done.
_RUN_AGAIN = "free space there, or make it writable, and run the same command again"


def train(
    recipe: Recipe,
    command: str | None = None,
    *,
    bare: bool = False,
    keep_model: bool = False,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Trains a recipe and writes what comes out into its output_dir.

    The files are `recipe.yaml` (the recipe as it was resolved), `environment.json`, `metrics.json` (the
    epochs so far, after each one), `results.json` (best and last, time and throughput), `curves.png`,
    `predictions.png` where the task draws them, and the model with its processor.

    Args:
        recipe: the recipe, see :func:`adamnx_hf.recipes.resolution.resolve`.
        command: the command to write into environment.json.
        bare: prints nothing, leaves model and pictures out of the folder, and times nothing but the training.
        keep_model: writes the model also where `bare`.
        callbacks: more of Transformers' TrainerCallbacks.

    Returns:
        The content of results.json.

    Raises:
        RecipeError: something does not fit, or another run is writing into output_dir: nothing has been
            written, overwritten or removed by then. Or memory or the disk were not enough.
    """
    args = recipe.training_arguments
    with prepare_folder(recipe) as folder:
        checkpoint = choose_checkpoint(recipe, folder)
        earlier = read_record(recipe, checkpoint)
        if checkpoint is not None:
            args.eval_on_start = False  # the run has started before
        try_optimizer(args)
        repo_id = _choose_repository(recipe, folder)

        phase = Phase()
        with explain_errors(args, phase):
            phase.trainer = trainer = _build_trainer(recipe)
        phase.remedy = _RUN_AGAIN if bare else None
        record = make_record(
            recipe, phase, describe_environment() | {"command": command}, earlier, quiet=bare
        )
        _add_callbacks(record, callbacks)

        with explain_errors(args, phase):
            seconds = _fit(record, checkpoint)
            if keep_model or not bare:
                save_model(trainer, folder)
        results = collect_results(record, seconds, _measure_throughput(record))
        if trainer.is_world_process_zero():
            with explain_errors(args, phase):
                drawn = _write(record, results)
            if not bare:
                print_results(results, folder, recipe.task.UNIT, drawn)
            if repo_id is not None:
                push_run(folder, repo_id, private=args.hub_private_repo, update=True, token=args.hub_token)
    return results


def _choose_repository(recipe: Recipe, folder: Path) -> str | None:
    """Returns the repository that the run is published to, if it is, after the Hub has let its owner in."""
    args = recipe.training_arguments
    if not args.push_to_hub:
        return None
    # The Trainer would push the folder as it is, with this machine's paths and its pickled arguments.
    args.push_to_hub = False
    name = args.hub_model_id or f"{recipe.name}-{folder.resolve().name}".replace("--", "-")
    return hub.check_access(name, args.hub_token)


def _build_trainer(recipe: Recipe) -> Any:
    transformers.set_seed(recipe.training_arguments.seed)
    trainer = recipe.task.make_trainer(recipe)
    if judged_on_training_rows(recipe):
        aside = "--hold_out 10 --eval_on_held_out true sets some aside"
        trainer.notes.append(f"{training_rows(recipe.task_arguments)}; {aside}")
    return trainer


def _add_callbacks(record: RunRecord, callbacks: Sequence[Any]) -> None:
    for callback in (record.clock, record, *callbacks):
        record.trainer.add_callback(callback)
    if record.quiet:
        record.trainer.remove_callback(transformers.PrinterCallback)


def _fit(record: RunRecord, checkpoint: str | None) -> float:
    """Trains, and evaluates the end if that has not been done; returns the seconds of training."""
    trainer, started = record.trainer, time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - started
    strategy = record.recipe.training_arguments.eval_strategy
    last_is_known = [row["step"] for row in record.rows()[-1:]] == [trainer.state.global_step]
    # If training ended by loading another step's weights, their metrics are known.
    if find_loaded_step(trainer) is None and (strategy == "no" or not last_is_known):
        trainer.evaluate()
    return seconds


def _measure_throughput(record: RunRecord) -> Mapping[str, float | None]:
    args = record.recipe.training_arguments
    if not record.quiet:
        try:
            return throughput.measure(record.trainer, seconds=0.1 if record.recipe.arguments.smoke else 3.0)
        except RuntimeError as error:  # the run itself has gone well
            if explain_out_of_memory(error, args) is None:
                raise
    return {"data": None, "model": None}


def _write(record: RunRecord, results: Mapping[str, Any]) -> list[str]:
    """Writes the results and draws the pictures; returns the names of pictures beside the curves."""
    recipe, trainer, folder = record.recipe, record.trainer, record.folder
    files.write_json(folder / "metrics.json", results["per_epoch"])
    files.write_json(folder / RESULTS, results)
    if record.quiet:
        return []
    record.phase.remedy = f"the model and {RESULTS} are whole; adamnx-hf paper --curves PNG draws curves"
    title = f"{recipe.name} · {results['optim']} · seed {results['seed']}"
    if results["smoke"]:
        title += " · smoke run: says nothing about the optimizer"
    curves.draw_runs(folder / "curves.png", title, {"": results["per_epoch"]}, recipe.task.METRICS)
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled  # one process has not all the weights
    if sharded or not hasattr(recipe.task, "draw_predictions"):
        return []
    recipe.task.draw_predictions(recipe, trainer, folder / PREDICTIONS)
    return [PREDICTIONS]
