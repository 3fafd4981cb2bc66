"""Messages of runs that fail: an error that users can act on becomes one line with the remedy."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from adamnx_hf.common import files
from adamnx_hf.common.errors import RecipeError, in_one_line
from adamnx_hf.runs.folder import why_not_usable
from trainer_patches import checkpoints

__all__ = ["Phase", "explain_errors", "explain_out_of_memory"]


@dataclasses.dataclass
class Phase:
    """The progress of a run, on which the explanation of an error depends."""

    trainer: Any = None
    remedy: str | None = None
    """The remedy if something cannot be written. None: to go on from a checkpoint, or to start again."""
    begun: bool = False
    """True when training has begun. From then on a ValueError or the like is a fault of the program's."""


@contextlib.contextmanager
def explain_errors(args: Any, phase: Phase) -> Iterator[None]:
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
        explained: Exception | None = explain_out_of_memory(error, args, evaluating)
        explained = explained or _explain_not_written(error, args, phase)
        if explained is None and not phase.begun:
            explained = in_one_line(error)
        if explained is None or explained is error:
            raise
        raise explained from error


def explain_out_of_memory(error: Exception, args: Any, evaluating: bool = False) -> RecipeError | None:
    """Says what to do if `error` means that memory ran out; returns None for other errors.

    Args:
        error: any error.
        args: TrainingArguments.
        evaluating: whether the run was in an evaluation.
    """
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


def _explain_not_written(error: Exception, args: Any, phase: Phase) -> RecipeError | None:
    """Says what to do if `error` means that something could not be written; returns None for other errors."""
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
        if phase.begun and any(
            why_not_usable(path) is None for path in checkpoints.find_checkpoints(folder).values()
        ):
            remedy += ", and go on with --resume_from_checkpoint last"
        elif phase.begun:
            remedy += ", and start again with --overwrite_output_dir"
    where = name or (folder if phase.begun else "a file, of a cache perhaps,")
    return RecipeError(f"{where} cannot be written ({reason}); {remedy}")
