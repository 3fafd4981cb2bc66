"""Finds the checkpoints of a killed Trainer that training can be resumed from."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import struct
import zipfile
from pathlib import Path

__all__ = ["last_complete_checkpoint", "why_incomplete"]

logger = logging.getLogger("transformers.trainer_patches")


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """Returns the newest checkpoint of a Trainer that was written to its end.

    `resume_from_checkpoint=True` takes the newest folder. If the run was killed while it saved, that folder
    is incomplete and the Trainer fails on it. This function passes incomplete folders over:

        trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))

    Args:
        output_dir: the output folder of TrainingArguments, which need not exist.

    Returns:
        The path of the complete `checkpoint-N` with the largest N. None if there is none; `train` then starts
        from the beginning.
    """
    for _, checkpoint in sorted(find_checkpoints(Path(output_dir)).items(), reverse=True):
        reason = why_incomplete(checkpoint)
        if reason is None:
            return str(checkpoint)
        if os.environ.get("RANK", "0") == "0":  # one process says it for all
            logger.warning("%s is passed over: %s", checkpoint, reason)
    return None


def find_checkpoints(folder: Path) -> dict[int, Path]:
    """Returns the checkpoints in `folder`, complete or not, by their numbers."""
    return {
        int(match[1]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    }


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint. If the removal is cut short, the rest of the folder counts as incomplete."""
    if checkpoint.is_symlink():
        checkpoint.unlink()
    elif checkpoint.is_dir():
        (checkpoint / "trainer_state.json").unlink(missing_ok=True)
        shutil.rmtree(checkpoint)


def why_incomplete(checkpoint: str | os.PathLike[str]) -> str | None:
    """Returns a sign that a Trainer's checkpoint was not written to its end; None if it is complete.

    Reads the headers and directories of the files, not all of their contents, which takes milliseconds.

    Args:
        checkpoint: the folder `checkpoint-N`.
    """
    folder = Path(checkpoint)
    if not (folder / "trainer_state.json").is_file():
        return "trainer_state.json, which is written last, is missing"
    for path in sorted(folder.rglob("*")):
        check = _CHECKS.get(path.suffix) if path.is_file() else None
        try:
            reason = check(path) if check else None
        except (OSError, ValueError, struct.error) as error:
            reason = f"it cannot be read ({error})"
        if reason is not None:
            return f"{path.relative_to(folder)}: {reason}"
    return None


def _check_json(path: Path) -> str | None:
    content = json.loads(path.read_text(encoding="utf-8"))
    if path.name.endswith(".index.json"):
        for name in sorted(set(content["weight_map"].values())):
            if not (path.parent / name).is_file():
                return f"{name} is missing"
    return None


def _check_safetensors(path: Path) -> str | None:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    end = max(
        (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
    )
    return None if path.stat().st_size == 8 + length + end else "it is cut short"


def _check_torch(path: Path) -> str | None:
    # torch.save writes a zip file, with its directory at the end.
    return None if zipfile.is_zipfile(path) else "it is cut short"


def _check_shard(path: Path) -> str | None:
    # torch.distributed.checkpoint writes its .metadata when all processes are done with their shards.
    return None if (path.parent / ".metadata").is_file() else ".metadata, which is written last, is missing"


_CHECKS = {
    ".json": _check_json,
    ".safetensors": _check_safetensors,
    ".bin": _check_torch,
    ".pt": _check_torch,
    ".pth": _check_torch,
    ".distcp": _check_shard,
}
