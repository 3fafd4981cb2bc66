"""`adamnx-hf run RECIPE [--flag value ...]`: trains a recipe and writes down what came out."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import errno
import json
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamnx_hf.common import files
from adamnx_hf.common import interrupts
from adamnx_hf.common.errors import RecipeError, close_bars, in_one_line, printable
from adamnx_hf.common.hub import SCHEME
from adamnx_hf.common.splits import judged_on_training_rows, training_rows
from trainer_patches import checkpoints

if TYPE_CHECKING:
    from adamnx_hf.tasks.base import Recipe

__all__ = [
    "EXTRA",
    "add_arguments",
    "data_changes",
    "run",
    "train",
    "true_title",
    "try_optimizer",
    "without_tokens",
]

#: The extra of this package that has what this command needs.
EXTRA = "recipes"

RESULTS = "results.json"
PREDICTIONS = "predictions.png"

#: After a full disk, in a comparison: it skips what has been done.
_RUN_AGAIN = "free space there, or make it writable, and run the same command again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `adamnx-hf run`."""
    parser.usage = "adamnx-hf run RECIPE [--smoke] [--fast] [--FIELD VALUE ...]"
    parser.description = (
        "Trains a recipe. Under accelerate: accelerate launch -m adamnx_hf.cli run RECIPE ..."
    )
    parser.epilog = (
        "Every field of a recipe is a flag: TrainingArguments' own, and the task's. "
        "`adamnx-hf run RECIPE --help` lists those of the task, --help-all the others, too; "
        "`adamnx-hf recipes` lists the recipes."
    )
    for flag in ("--smoke", "--fast"):  # may stand before the recipe, too
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(hint="; the recipe comes first: adamnx-hf run RECIPE --FIELD VALUE")
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="one that `adamnx-hf recipes` lists, a file, or hf://me/name[@revision]",
    )
    parser.add_argument("flags", nargs=argparse.REMAINDER, metavar="...", help="fields to change, as flags")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    args.flags = [f"--{name}" for name in ("smoke", "fast") if getattr(args, name)] + args.flags
    # Before anything imports the Hub's library, which looks once.
    if "--smoke" in args.flags and not args.recipe.startswith(SCHEME):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if args.recipe.startswith(SCHEME):  # nobody is told who runs somebody's recipe
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from adamnx_hf.recipes import resolve as recipe

    try:
        if asked := {"--help", "-h", "--help-all"}.intersection(args.flags):
            print(recipe.help_text(args.recipe, every="--help-all" in asked))
            return 0
        resolved = recipe.resolve(args.recipe, args.flags)
        train(resolved, command=_command(args.recipe, args.flags))
    except RecipeError as error:
        close_bars()
        print(f"adamnx-hf run: error: {error}", file=sys.stderr)
        return 1
    return 0


def without_tokens(words: Sequence[str]) -> list[str]:
    """Flags without the values of tokens, save for those of tokenizers."""
    result, secret = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        token = word.startswith("--") and re.fullmatch(r"--(?!eos|pad)\S+[_-]token", flag) is not None
        result.append("***" if secret else f"{flag}=***" if token and equals else word)
        secret = token and not equals
    return result


def _command(name: str, flags: Sequence[str]) -> str:
    """The command, without the values of tokens."""
    from adamnx_hf.runs.report import run_command

    processes = int(os.environ.get("WORLD_SIZE", 1))
    return shlex.join([*run_command(processes), name, *without_tokens(flags)])


def _check_paths(args: Any) -> None:
    """Checks that output_dir and resume_from_checkpoint can be paths at all.

    Raises:
        RecipeError: one cannot.
    """
    for field in ("output_dir", "resume_from_checkpoint"):
        given = getattr(args, field)
        try:
            if given:
                str(given).encode("utf-8")  # as recipe.yaml and the logs will have it
                os.path.lexists(given) or os.lstat(given)
        except (FileNotFoundError, NotADirectoryError):  # which has a word of its own later
            continue
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RecipeError(
                f"{field}: {str(given)[:100]!r} is no path ({reason}); choose another"
            ) from error


def _check_writable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"output_dir: {folder} is a file; choose another --output_dir")
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise RecipeError(
            f"output_dir: {folder} cannot be written, as {there} is not a folder that you may write into; "
            "choose another --output_dir"
        )


def _check_empty(recipe: Recipe, folder: Path) -> None:
    if (
        recipe.training_arguments.overwrite_output_dir
        or _goes_on(recipe, folder)
        or not files.entries(folder)
    ):
        return
    ways = ["choose another --output_dir", "pass --overwrite_output_dir"]
    if any(folder.glob("checkpoint-*")):
        ways.append("go on with --resume_from_checkpoint last")
    *ways, last_way = ways
    raise RecipeError(f"output_dir: {folder} is not empty; {', '.join(ways)}, or {last_way}")


#: Values of resume_from_checkpoint that stand for the last one in output_dir.
_LAST = ("last", "true", "True")


def _goes_on(recipe: Recipe, folder: Path) -> bool:
    """Whether the run goes on with one that is in `folder`."""
    given = recipe.training_arguments.resume_from_checkpoint
    return given in _LAST or (bool(given) and folder.resolve() in Path(given).resolve().parents)


def _checkpoint(recipe: Recipe, folder: Path) -> str | None:
    """The checkpoint to go on from, which is complete; None to start at the beginning."""
    given = recipe.training_arguments.resume_from_checkpoint
    if given not in _LAST:
        if given and (reason := _why_not(Path(given))):
            raise RecipeError(
                f"resume_from_checkpoint: {given} {reason}; give another, or `last` for the newest complete "
                "one in output_dir"
            )
        return given
    if (last := checkpoints.last_complete_checkpoint(folder)) is not None:
        if reason := _why_no_state(Path(last)):
            raise RecipeError(
                f"resume_from_checkpoint: {last} {reason}; start anew, with --overwrite_output_dir"
            )
        return last
    if there := checkpoints.numbered(folder):
        newest = there[max(there)]
        raise RecipeError(
            f"resume_from_checkpoint: there is no complete checkpoint in {folder}: {newest.name} "
            f"{_why_not(newest)}; leave it out to start anew, with --overwrite_output_dir"
        )
    raise RecipeError(
        f"resume_from_checkpoint: there is no checkpoint in {folder}; leave it out to start anew, with "
        "--overwrite_output_dir if the folder is not empty"
    )


def _why_not(checkpoint: Path) -> str | None:
    if not checkpoint.is_dir():
        return "is no folder"
    if reason := checkpoints.why_incomplete(checkpoint):
        return f"is incomplete ({reason})"
    return _why_no_state(checkpoint)


def _why_no_state(checkpoint: Path) -> str | None:
    states = ("optimizer*", "scheduler.pt", "global_step*")  # the Trainer's own, FSDP's and DeepSpeed's
    if not any(found for pattern in states for found in checkpoint.glob(pattern)):
        return "holds no optimizer's state (save_only_model)"
    return None


#: What a checkpoint's trainer_state.json has a run's record under.
_RECORD = "RunRecord"

# Fields that may be others when a run goes on, beside those that leave the outcome alone.
_MAY_DIFFER = re.compile(
    r"num_train_epochs|max_steps|eval_\w+|max_eval_samples|exact_match_samples|max_new_tokens|answer_pattern|"
    r"metric_for_best_model|load_best_model_at_end|greater_is_better|merge_adapter|ignore_data_skip"
)
# Of those that leave the outcome alone or that a results table has columns for: what is another run.
_IS_ANOTHER = ("seed", "optim", "optim_args")


def _record_of(checkpoint: str) -> dict[str, Any]:
    """Reads what the checkpoint says of its run: `recipe`, `memory`, `clock`; an empty dict if nothing."""
    content = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    record = content.get("stateful_callbacks", {}).get(_RECORD) or {}
    run: dict[str, Any] = record.get("attributes", {}).get("run", {})
    return run


def _check_same_run(recipe: Recipe, checkpoint: str, written: dict[str, Any] | None) -> None:
    """Checks that a run which goes on from `checkpoint` is the one that wrote it.

    Raises:
        RecipeError: a field is another, which the message names.
    """
    from adamnx_hf.recipes.policy import NAME_OR_PATH
    from adamnx_hf.recipes.resolve import NEUTRAL, as_file

    if written is None:  # by a Trainer of the user's own
        return
    now = json.loads(json.dumps(as_file(recipe), default=str))
    for key in sorted({*written, *now}):
        if _MAY_DIFFER.fullmatch(key) or (NEUTRAL.fullmatch(key) and key not in _IS_ANOTHER):
            continue
        default = recipe.default(key)
        then, is_now = written.get(key, default), now.get(key, default)
        moved = NAME_OR_PATH.fullmatch(key) and isinstance(is_now, str) and os.path.exists(is_now)
        if then != is_now and not moved:
            raise RecipeError(
                f"resume_from_checkpoint: {checkpoint} is of a run with {key} {then!r}, not {is_now!r}; go "
                f"on with --{key} as it was, or start anew with --overwrite_output_dir"
            )


def try_optimizer(args: Any) -> None:
    """Makes the optimizer that `args` ask for, of a small parameter.

    Transformers makes it when training begins, with model and data loaded. Those of its optimizers that may
    ask for the model are left to it.

    Args:
        args: TrainingArguments, which stay as they are.

    Raises:
        RecipeError: it does not take its settings.
    """
    import torch
    from transformers import Trainer

    from trainer_patches import registered_optimizers

    plain = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
    if getattr(args.optim, "value", args.optim) not in (*registered_optimizers(), *plain):
        return
    tried = copy.copy(args)
    tried.max_steps = max(args.max_steps, 1000)  # for what depends on the length of the run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run will say it
        try:
            factory, options = Trainer.get_optimizer_cls_and_kwargs(tried)
            param = torch.nn.Parameter(torch.zeros(2, 2, device=args.device))
            factory([{"params": [param], "weight_decay": args.weight_decay}], **options)
        except (ValueError, TypeError) as error:
            raise in_one_line(error) from error


def _remove_results(folder: Path) -> None:
    """Removes what an earlier run has written into `folder` and this one would only write at its end."""
    old = [path for path in checkpoints.numbered(folder).values() if not path.is_symlink()]
    for path in old:  # all, before the first is gone: `last` shall not go on from what a kill leaves of them
        (path / "trainer_state.json").unlink(missing_ok=True)
    for path in old:
        checkpoints.remove(path)
    measured = ("sharpness.json", "jitter.json", "jitter.png")  # of the model that was here
    for name in (RESULTS, "metrics.json", "curves.png", PREDICTIONS, *measured):
        (folder / name).unlink(missing_ok=True)


def train(
    recipe: Recipe,
    command: str | None = None,
    *,
    bare: bool = False,
    keep_model: bool = False,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Trains `recipe` and writes into its output_dir.

    `recipe.yaml` (as it was resolved), `environment.json`, `metrics.json` (per epoch, after each epoch),
    `results.json` (best and last, time and throughput), `curves.png`, `predictions.png` where the task draws
    them, and the model with its processor.

    Args:
        recipe: see :func:`adamnx_hf.recipes.resolve.resolve`.
        command: for environment.json.
        bare: prints nothing, leaves the model out of the folder, and times nothing but the training.
        keep_model: writes the model also where `bare`.
        callbacks: more of Transformers' TrainerCallbacks.

    Returns:
        What results.json holds.

    Raises:
        RecipeError: something does not fit, or another run is writing into output_dir: nothing has been
            written, overwritten or removed by then. Or memory or the disk were not enough.
    """
    _check_paths(recipe.training_arguments)
    folder = Path(recipe.training_arguments.output_dir)
    if int(os.environ.get("RANK", 0)):
        return _train(recipe, folder, command, bare, keep_model, callbacks)
    _check_writable(folder)
    with files.sole_writer(folder):
        _check_empty(recipe, folder)
        return _train(recipe, folder, command, bare, keep_model, callbacks)


def _train(
    recipe: Recipe,
    folder: Path,
    command: str | None,
    bare: bool,
    keep_model: bool,
    callbacks: Sequence[Any],
) -> dict[str, Any]:
    import transformers
    import yaml
    from transformers.trainer_callback import ExportableState

    from adamnx_hf.recipes.resolve import as_file
    from adamnx_hf.runs import report
    from adamnx_hf.runs.memory import as_it_is
    from adamnx_hf.runs.throughput import TrainClock, measure

    args = recipe.training_arguments
    checkpoint = _checkpoint(recipe, folder)
    earlier: dict[str, Any] = {}
    if checkpoint is not None:
        earlier = _record_of(checkpoint)
        _check_same_run(recipe, checkpoint, earlier.get("recipe"))
        args.eval_on_start = False  # the run has started before
    try_optimizer(args)
    repo_id = None
    if args.push_to_hub:
        from adamnx_hf.common import hub

        repo_id = hub.check_access(
            args.hub_model_id or f"{recipe.name}-{folder.resolve().name}".replace("--", "-"), args.hub_token
        )
        # The Trainer would push the folder as it is, with this machine's paths and its pickled arguments.
        args.push_to_hub = False
    transformers.set_seed(args.seed)
    with _explain_errors(args, _Phase()):
        trainer = recipe.task.make_trainer(recipe)
    on_training_rows = judged_on_training_rows(recipe)
    if on_training_rows:
        aside = "--hold_out 10 --eval_on_held_out true sets some aside"
        trainer.notes.append(f"{training_rows(recipe.task_arguments)}; {aside}")

    main = trainer.is_world_process_zero()
    environment = report.environment() | {"command": command}
    clock = TrainClock()
    clock.go_on(earlier.get("clock") or {})

    def rows() -> list[dict[str, Any]]:
        return report.epochs(trainer.state.log_history, list(recipe.task.METRICS), clock.seconds)

    phase = _Phase(_RUN_AGAIN if bare else None, trainer)

    class RunRecord(transformers.TrainerCallback, ExportableState):
        memory: dict[str, int] | None = earlier.get("memory")

        def state(self) -> dict[str, Any]:
            """Tells a checkpoint what it is to know of the run; :func:`_record_of` reads it."""
            run = {"recipe": as_file(recipe), "memory": self.memory, "clock": clock.state()}
            return {"args": {}, "attributes": {"run": run}}

        def on_optimizer_step(self, *_: Any, **now: Any) -> None:
            if self.memory is None:  # gradients are still there, states have been made
                self.memory = dataclasses.asdict(as_it_is(now["model"], now["optimizer"]))

        def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            state.stateful_callbacks.setdefault(_RECORD, self.state())  # checkpoints of others have none
            # By now the optimizer and the schedule have been made: nothing is written for what cannot run.
            phase.begun = True
            if main:
                files.remove_drafts(folder)
                if checkpoint is None:
                    _remove_results(folder)
                again = shlex.join(
                    [*report.run_command(environment["processes"]), f"{folder.name}/recipe.yaml"]
                )
                head = f"# {recipe.name} as it was run. Again: {again}\n"
                fields = as_file(recipe)
                if not report.fits_title(recipe.changes, data_changes(recipe)):  # nor when the file is run
                    fields.pop("title", None)
                text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
                files.write_text(folder / "recipe.yaml", head + text)
                report.write_json(folder / "environment.json", environment)
                if not bare:
                    _say_what(recipe, trainer)

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            interrupts.check()

        def on_evaluate(self, *_: Any, **__: Any) -> None:
            if main:
                report.write_json(folder / "metrics.json", rows())

    record = RunRecord()
    trainer.add_callback(clock)
    trainer.add_callback(record)
    for callback in callbacks:
        trainer.add_callback(callback)
    if bare:
        trainer.remove_callback(transformers.PrinterCallback)
    started = time.perf_counter()
    seconds = 0.0
    throughput: dict[str, Any] = {"data": None, "model": None}
    with _explain_errors(args, phase):
        trainer.train(resume_from_checkpoint=checkpoint)
        seconds = time.perf_counter() - started
        last_is_known = [row["step"] for row in rows()[-1:]] == [trainer.state.global_step]
        # What another step's weights are worth is known by now.
        if _loaded_step(trainer) is None and (args.eval_strategy == "no" or not last_is_known):
            trainer.evaluate()
        if keep_model or not bare:
            _save_model(trainer, folder)
    if not bare:
        try:
            throughput = measure(trainer, seconds=0.1 if recipe.arguments.smoke else 3.0)
        except RuntimeError as error:  # the run itself has gone well
            if _out_of_memory(error, args) is None:
                raise

    optimizer: Any = trainer.optimizer
    while hasattr(optimizer, "optimizer"):  # Accelerate's wrapper
        optimizer = optimizer.optimizer
    group = optimizer.param_groups[0]
    table = rows()
    total_batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    changes = _plain(recipe.changes)
    if args.world_size > 1:
        changes["total_train_batch_size"] = total_batch
    results = {
        "recipe": recipe.name,
        "task": recipe.arguments.task,
        "paper_tables": recipe.arguments.paper_tables,
        "optim": str(getattr(args.optim, "value", args.optim)),
        "optim_args": args.optim_args,
        "optimizer": type(optimizer).__name__,
        "betas": [float(beta) for beta in group["betas"]] if "betas" in group else None,
        "beta2_schedule": group.get("beta2_schedule"),
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "fast": recipe.arguments.fast,
        "smoke": recipe.arguments.smoke,
        "changes": changes,
        "data_changes": _plain(data_changes(recipe)),
        "data": "made up" if recipe.synthetic_data else recipe.task_arguments.dataset_name,
        "train_examples": len(trainer.train_dataset),
        "eval_examples": len(trainer.eval_dataset),
        "judged_on_training_rows": on_training_rows,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "memory_bytes": record.memory,
        "total_train_batch_size": total_batch,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "metrics": report.best_and_last(table, recipe.task.METRICS),
        "weights": _weights(trainer, table, recipe.task.METRICS),
        "best_is": "the best epoch by the evaluation split itself, as in the paper; `last` is free of that",
        "wall_seconds": round(seconds, 1),
        "train_seconds": round(sum(clock.seconds.values()), 1),
        f"train_{recipe.task.UNIT}_per_second": clock.rate(total_batch * trainer.units_per_example()),
        "notes": trainer.notes,
        "throughput": throughput | {"unit": f"{recipe.task.UNIT} a second on one process"},
        "environment": environment,
        "per_epoch": table,
    }
    if dropped := {field: count for field, count in trainer.dropped.items() if count}:
        results["dropped_examples"] = dropped
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled  # one process has not all the weights
    draws = hasattr(recipe.task, "draw_predictions") and not sharded and not bare
    if main:
        with _explain_errors(args, phase):
            report.write_json(folder / "metrics.json", table)
            report.write_json(folder / RESULTS, results)
            if not bare:
                phase.remedy = f"the model and {RESULTS} are whole; adamnx-hf paper --curves PNG draws curves"
            title = f"{recipe.name} · {results['optim']} · seed {args.seed}"
            if recipe.arguments.smoke:
                title += " · smoke run: says nothing about the optimizer"
            report.draw(folder / "curves.png", title, table, recipe.task.METRICS)
            if draws:
                recipe.task.draw_predictions(recipe, trainer, folder / PREDICTIONS)
        if not bare:
            _say_results(results, folder, recipe.task.UNIT, [PREDICTIONS] if draws else [])
        if repo_id is not None:
            from adamnx_hf.runs import publish

            publish.push(folder, repo_id, private=args.hub_private_repo, update=True, token=args.hub_token)
    return results


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a recipe for JSON."""
    return {key: getattr(value, "value", value) for key, value in fields.items()}


def data_changes(recipe: Recipe) -> dict[str, Any]:
    """The fields about the data that flags set to something else than the recipe's, with whole paths."""
    changes = recipe.data_changes
    return {key: recipe.values.get(key, value) for key, value in changes.items()}


def true_title(recipe: Recipe) -> str:
    """The recipe's title; empty where it is not true of these data or this network."""
    from adamnx_hf.runs.report import fits_title

    true = not recipe.synthetic_data and fits_title(recipe.changes, data_changes(recipe))
    return recipe.arguments.title if true else ""


def _loaded_step(trainer: Any) -> int | None:
    """The step whose weights training ended by loading; None where those of the last step are still there."""
    best = trainer.state.best_model_checkpoint
    if not trainer.args.load_best_model_at_end or best is None or not Path(best).is_dir():
        return None
    return int(Path(best).name.rpartition("-")[2])


def _weights(trainer: Any, table: Sequence[Mapping[str, Any]], metrics: Iterable[str]) -> dict[str, Any]:
    """Which weights a run ends with, and what they are worth.

    Returns:
        Their `step` and `epoch`; `metrics`, by name; and `chosen_by`, the figure of the evaluation split that
        they are the best by, None for those of the last step.
    """
    step, chosen_by = _loaded_step(trainer), None
    if step is not None:
        chosen_by = trainer.args.metric_for_best_model.removeprefix("eval_")
        chosen_by = "eval_loss" if chosen_by == "loss" else chosen_by
    else:
        step = trainer.state.global_step
    row: Mapping[str, Any] = next((row for row in table if row["step"] == step), {})
    known = {name: row[name] for name in metrics if row.get(name) is not None}
    return {"step": step, "epoch": row.get("epoch"), "chosen_by": chosen_by, "metrics": known}


def _save_model(trainer: Any, folder: Path) -> None:
    """Saves the model, each of its files whole or not at all."""
    with files.beside_folder(folder, "model", trainer.is_world_process_zero()) as draft:
        trainer.save_model(str(draft))
        if trainer.args.world_size > 1:
            trainer.accelerator.wait_for_everyone()


@dataclasses.dataclass
class _Phase:
    """How far a run has come, for those whose errors are explained."""

    remedy: str | None = None
    """What to do if something cannot be written, where that is not to go on from a checkpoint."""
    trainer: Any = None
    begun: bool = False
    """Whether training has. From then on a ValueError or the like is a fault of the program's."""


@contextlib.contextmanager
def _explain_errors(args: Any, phase: _Phase) -> Iterator[None]:
    """Turns errors into RecipeErrors: any error before training begins, later those that users can act on.

    Args:
        args: TrainingArguments.
        phase: how far the run has come.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RecipeError):
            raise in_one_line(error) from error
        evaluating = getattr(phase.trainer, "evaluating", False)
        explained: Exception | None = _out_of_memory(error, args, evaluating)
        explained = explained or _not_written(error, args, phase)
        if explained is None and not phase.begun:
            explained = in_one_line(error)
        if explained is None or explained is error:
            raise
        raise explained from error


def _not_written(error: Exception, args: Any, phase: _Phase) -> RecipeError | None:
    """What to do about it, if `error` says that something could not be written."""
    folder = Path(args.output_dir)
    name, reason = None, files.no_room(error)
    if isinstance(error, OSError) and isinstance(error.filename, str):
        name = error.filename
        if error.errno in (errno.EACCES, errno.EPERM) and folder.resolve() in Path(name).resolve().parents:
            reason = error.strerror
    if reason is None:
        return None
    remedy = phase.remedy
    if remedy is None:
        remedy = "free space there, or make it writable"
        if phase.begun and any(_why_not(path) is None for path in checkpoints.numbered(folder).values()):
            remedy += ", and go on with --resume_from_checkpoint last"
        elif phase.begun:
            remedy += ", and start again with --overwrite_output_dir"
    where = name or (folder if phase.begun else "a file, of a cache perhaps,")
    return RecipeError(f"{where} cannot be written ({reason}); {remedy}")


def _out_of_memory(error: Exception, args: Any, evaluating: bool = False) -> RecipeError | None:
    """What to do about it, if `error` says that memory ran out."""
    import torch

    kinds = (torch.OutOfMemoryError, MemoryError)
    if not isinstance(error, kinds) and "can't allocate memory" not in str(error):
        return None
    if evaluating:
        size = args.per_device_eval_batch_size
        return RecipeError(
            f"out of memory in evaluation, with batches of {size} a device; "
            + (f"try --per_device_eval_batch_size {size // 2}" if size > 1 else "a larger device is needed")
        )
    remedies = []
    if args.per_device_train_batch_size > 1:
        half, more = args.per_device_train_batch_size // 2, 2 * args.gradient_accumulation_steps
        remedies.append(f"--per_device_train_batch_size {half} --gradient_accumulation_steps {more}")
    if not getattr(args, "gradient_checkpointing", True):
        remedies.append("--gradient_checkpointing true")
    if getattr(args, "max_length", None):
        remedies.append(f"--max_length {args.max_length // 2}")
    return RecipeError(
        f"out of memory with batches of {args.per_device_train_batch_size} a device; "
        + (f"try {', or '.join(remedies)}" if remedies else "a smaller model or a larger device is needed")
    )


def _say_what(recipe: Recipe, trainer: Any) -> None:
    args = recipe.training_arguments
    data = "made-up data" if recipe.synthetic_data else recipe.task_arguments.dataset_name
    count = sum(p.numel() for p in trainer.model.parameters())
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    some = f", {trained:,} of them trained" if trained < count else ""
    title = printable(true_title(recipe))
    print(
        f"{recipe.name}{': ' if title else ''}{title}\n"
        f"  {count:,} parameters{some}, optim={getattr(args.optim, 'value', args.optim)}, learning rate "
        f"{args.learning_rate:g}, seed {args.seed}\n"
        f"  {data}: {len(trainer.train_dataset):,} to train on, {len(trainer.eval_dataset):,} to judge by\n"
        + "".join(f"  {printable(note)}\n" for note in trainer.notes)
        + f"  into {args.output_dir}",
        flush=True,
    )


def _say_results(results: dict[str, Any], folder: Path, unit: str, drawn: Sequence[str]) -> None:
    weights = results["weights"]
    if weights["step"] != results["steps"]:
        figures = "".join(f", {name} {value:.2f}" for name, value in weights["metrics"].items())
        print(
            f"The model is that of step {weights['step']:,}, the best by {weights['chosen_by']}{figures} "
            "(chosen on the evaluation split itself)"
        )
    if results["judged_on_training_rows"]:
        print("Judged on rows that it was trained on: the figures say nothing of others")
    for name, values in results["metrics"].items():
        print(
            f"{name}: {values['last']:.2f} after the last epoch; best {values['best']:.2f}, epoch "
            f"{values['best_epoch']:g} (chosen on the evaluation split itself)"
        )
    speed, trained = results["throughput"], results[f"train_{unit}_per_second"] or 0
    if speed["data"] is None:
        pipeline = "the data pipeline was not timed: it takes two batches an epoch"
    else:
        pipeline = f"the data pipeline gives {speed['data']:,.0f} {unit}/s"
    print(
        f"{results['wall_seconds']:.0f} s in all, {trained:,.0f} {unit}/s in training. Alone, {pipeline}"
        + (f", and the model takes {speed['model']:,.0f}" if speed["model"] else "")
    )
    if speed["data"] and speed["model"] and speed["data"] < speed["model"]:
        print("The data pipeline is the bottleneck: try --fast, or more --dataloader_num_workers")
    files = [RESULTS, "metrics.json", "curves.png", *drawn, "environment.json", "recipe.yaml", "the model"]
    print(f"Written to {folder}: {', '.join(files)}")
