"""A run's folder: whether it may be written, what to go on from, and what goes when a new run begins."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adamnx_hf.common import files
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks.base import Recipe
from trainer_patches import checkpoints

__all__ = [
    "PREDICTIONS",
    "RESULTS",
    "choose_checkpoint",
    "prepare_folder",
    "remove_results",
    "save_model",
    "why_not_usable",
]

RESULTS = "results.json"
PREDICTIONS = "predictions.png"

# Files that studies write about the model in a folder.
_MEASURED = ("sharpness.json", "jitter.json", "jitter.png")
# Values of resume_from_checkpoint that stand for the last checkpoint in output_dir.
_LAST = ("last", "true", "True")


@contextlib.contextmanager
def prepare_folder(recipe: Recipe) -> Iterator[Path]:
    """Yields the run's output_dir, checked, and keeps other runs from writing into it meanwhile.

    In a run of several processes the first one does this for all.

    Raises:
        RecipeError: output_dir cannot be written, is not empty, or another run is writing into it; or
            resume_from_checkpoint cannot be a path.
    """
    _check_paths(recipe.training_arguments)
    folder = Path(recipe.training_arguments.output_dir)
    if int(os.environ.get("RANK", 0)):
        yield folder
        return
    _check_writable(folder)
    with files.sole_writer(folder):
        _check_empty(recipe, folder)
        yield folder


def _check_paths(args: Any) -> None:
    """Checks that output_dir and resume_from_checkpoint can be paths at all."""
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
    overwrites = recipe.training_arguments.overwrite_output_dir
    if overwrites or _goes_on(recipe, folder) or not files.entries(folder):
        return
    ways = ["choose another --output_dir", "pass --overwrite_output_dir"]
    if any(folder.glob("checkpoint-*")):
        ways.append("go on with --resume_from_checkpoint last")
    *ways, last_way = ways
    raise RecipeError(f"output_dir: {folder} is not empty; {', '.join(ways)}, or {last_way}")


def _goes_on(recipe: Recipe, folder: Path) -> bool:
    """Returns whether the run goes on with one that is in `folder`."""
    given = recipe.training_arguments.resume_from_checkpoint
    return given in _LAST or (bool(given) and folder.resolve() in Path(given).resolve().parents)


def choose_checkpoint(recipe: Recipe, folder: Path) -> str | None:
    """Returns the checkpoint that the run goes on from; None if it starts at the beginning.

    Raises:
        RecipeError: there is no such checkpoint, or it is not complete.
    """
    given = recipe.training_arguments.resume_from_checkpoint
    if given not in _LAST:
        if given and (reason := why_not_usable(Path(given))):
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
    if there := checkpoints.find_checkpoints(folder):
        newest = there[max(there)]
        raise RecipeError(
            f"resume_from_checkpoint: there is no complete checkpoint in {folder}: {newest.name} "
            f"{why_not_usable(newest)}; leave it out to start anew, with --overwrite_output_dir"
        )
    raise RecipeError(
        f"resume_from_checkpoint: there is no checkpoint in {folder}; leave it out to start anew, with "
        "--overwrite_output_dir if the folder is not empty"
    )


def why_not_usable(checkpoint: Path) -> str | None:
    """Says why a run cannot go on from a checkpoint, in a few words; None if it can."""
    if not checkpoint.is_dir():
        return "is no folder"
    if reason := checkpoints.why_incomplete(checkpoint):
        return f"is incomplete ({reason})"
    return _why_no_state(checkpoint)


def _why_no_state(checkpoint: Path) -> str | None:
    states = ("optimizer*", "scheduler.pt", "global_step*")  # the Trainer's own, FSDP's and DeepSpeed's
    has_state = any(found for pattern in states for found in checkpoint.glob(pattern))
    return None if has_state else "holds no optimizer's state (save_only_model)"


def remove_results(folder: Path) -> None:
    """Removes what an earlier run has written into `folder` and a new one would only write at its end."""
    old = [path for path in checkpoints.find_checkpoints(folder).values() if not path.is_symlink()]
    for path in old:  # all, before the first is gone: `last` shall not go on from what a kill leaves of them
        (path / "trainer_state.json").unlink(missing_ok=True)
    for path in old:
        checkpoints.remove(path)
    for name in (RESULTS, "metrics.json", "curves.png", PREDICTIONS, *_MEASURED):
        (folder / name).unlink(missing_ok=True)


def save_model(trainer: Any, folder: Path) -> None:
    """Saves the model, each of its files whole or not at all."""
    with files.beside_folder(folder, "model", trainer.is_world_process_zero()) as draft:
        trainer.save_model(str(draft))
        if trainer.args.world_size > 1:
            trainer.accelerator.wait_for_everyone()
