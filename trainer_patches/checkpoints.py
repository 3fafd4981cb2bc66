"""Which of a Trainer's checkpoints can be resumed from, after it was killed."""

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
    """The newest checkpoint of a Trainer that was written to its end.

    `resume_from_checkpoint=True` takes the newest folder. If the run was killed while it saved, that one
    is cut short and the Trainer fails on it; this passes it over:

        trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))

    Args:
        output_dir: of TrainingArguments. It need not exist.

    Returns:
        The folder `checkpoint-N` with the largest N of those that are complete; None if there is none, which
        `train` takes as: start from the beginning.
    """
    for _, checkpoint in sorted(numbered(Path(output_dir)).items(), reverse=True):
        reason = why_incomplete(checkpoint)
        if reason is None:
            return str(checkpoint)
        if os.environ.get("RANK", "0") == "0":  # one process says it for all
            logger.warning("%s is passed over: %s", checkpoint, reason)
    return None


def numbered(folder: Path) -> dict[int, Path]:
    """The checkpoints in `folder`, complete or not, by their numbers."""
    return {
        int(match[1]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    }


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint so that, if this is cut short, what is left of it passes for no complete one."""
    if checkpoint.is_symlink():
        checkpoint.unlink()
    elif checkpoint.is_dir():
        (checkpoint / "trainer_state.json").unlink(missing_ok=True)
        shutil.rmtree(checkpoint)


def why_incomplete(checkpoint: str | os.PathLike[str]) -> str | None:
    """The first sign that the writing of a Trainer's checkpoint was cut short, None if there is none.

    Looked at are the frames of the files, not all of their contents: it takes milliseconds.
    """
    folder = Path(checkpoint)
    if not (folder / "trainer_state.json").is_file():
        return "trainer_state.json, which is written last, is missing"
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        check = _CHECKS.get(path.suffix)
        try:
            reason = check(path) if check else None
        except (OSError, ValueError, struct.error) as error:
            reason = f"it cannot be read ({error})"
        if reason is not None:
            return f"{path.relative_to(folder)}: {reason}"
    return None


def _json(path: Path) -> str | None:
    content = json.loads(path.read_text(encoding="utf-8"))
    if path.name.endswith(".index.json"):
        for name in sorted(set(content["weight_map"].values())):
            if not (path.parent / name).is_file():
                return f"{name} is missing"
    return None


def _safetensors(path: Path) -> str | None:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    end = max(
        (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
    )
    return None if path.stat().st_size == 8 + length + end else "it is cut short"


def _torch(path: Path) -> str | None:
    # torch.save writes a zip file, with its directory at the end.
    return None if zipfile.is_zipfile(path) else "it is cut short"


def _shard(path: Path) -> str | None:
    # torch.distributed.checkpoint writes its .metadata when all processes are done with their shards.
    return None if (path.parent / ".metadata").is_file() else ".metadata, which is written last, is missing"


_CHECKS = {
    ".json": _json,
    ".safetensors": _safetensors,
    ".bin": _torch,
    ".pt": _torch,
    ".pth": _torch,
    ".distcp": _shard,
}
