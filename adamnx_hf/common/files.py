"""Files that are written whole or not at all, and folders that one process at a time writes into."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adamnx_hf.common.errors import RecipeError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = [
    "beside",
    "beside_folder",
    "entries",
    "no_room",
    "remove_drafts",
    "sole_writer",
    "write_json",
    "write_text",
]

_DRAFT = ".part."
_LOCK = ".lock"

# Error numbers that mean: nothing more can be written there, whatever it is.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yields a draft to write, which takes the place of `path` when all has gone well.

    The draft's name is hidden and has the same suffix, from which matplotlib takes the format.

    Raises:
        OSError: the draft cannot be written. `path` is then as it was, and named by the error.
    """
    path = Path(path)
    draft = path.with_name(f"{_DRAFT}{path.name}")
    try:
        yield draft
        draft.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(draft), draft):
            error.filename = str(path)  # a write that fails names no file
        raise


def write_text(path: Path, text: str) -> None:
    """Writes `text`, whole or not at all; see :func:`beside`."""
    with beside(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as JSON, whole or not at all; see :func:`beside`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


# Names of a model's weights, whole or in shards, and of the index of the shards.
_WEIGHTS = re.compile(
    r"(adapter_)?(pytorch_)?model(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?", re.ASCII
)


@contextlib.contextmanager
def beside_folder(folder: Path, name: str, main: bool = True) -> Iterator[Path]:
    """Yields a draft folder to write a model into, whose files move into `folder` when all has gone well.

    Files of the same names are replaced. Weights that a model has left under other names are removed: with
    both there, it would be chance which of them are loaded.

    Args:
        folder: where the files belong. The draft is in it, so that both are on one disk.
        name: a name for the draft, which is hidden.
        main: whether this process is the one that moves the files.
    """
    draft = folder / f"{_DRAFT}{name}"
    try:
        yield draft
        if main and draft.is_dir():
            _move(draft, folder)
    finally:
        if main:
            shutil.rmtree(draft, ignore_errors=True)


def _move(draft: Path, folder: Path) -> None:
    names = {path.name for path in draft.iterdir()}
    if any(map(_WEIGHTS.fullmatch, names)):
        for path in folder.iterdir():
            if path.name not in names and _WEIGHTS.fullmatch(path.name):
                path.unlink()
    for path in sorted(draft.iterdir()):
        target = folder / path.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        path.replace(target)


def entries(folder: Path) -> list[Path]:
    """Returns what is in `folder`, without the lock and the drafts that a killed process has left."""
    return [path for path in folder.iterdir() if path.name != _LOCK and not path.name.startswith(_DRAFT)]


def remove_drafts(folder: Path) -> None:
    """Removes the drafts that a killed process has left."""
    for path in folder.glob(f"{_DRAFT}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def no_room(error: BaseException) -> str | None:
    """Says in a few words why nothing more could be written; returns None if `error` means something else."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _NO_ROOM else None
    if type(error).__name__ == "SafetensorError":  # "Error while serializing: I/O error: ... (os error 28)"
        code = re.search(r"serializing.*\(os error (\d+)\)", text)
        return os.strerror(int(code[1])) if code else None
    if isinstance(error, RuntimeError) and re.search(r"PytorchStreamWriter|inline_container|iostream", text):
        return "torch.save could not write all of it"  # torch does not say why
    return None


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Locks `folder` against other processes that would lock it, too.

    The folder is made if it is not there. If it is still empty at the end, it is removed again. The lock is
    the process's own and ends with it, however it ends. Its children, such as a data loader's workers, which
    may outlive it, do not have the lock.

    Raises:
        RecipeError: another process has the lock, or the folder cannot be written.
    """
    made = [parent for parent in (folder, *folder.parents) if not os.path.lexists(parent)]
    file = None
    try:
        file = _acquire(folder)
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):  # Windows removes no file that is open
                (folder / _LOCK).unlink()
            os.close(file)
        for parent in made:
            with contextlib.suppress(OSError, ValueError):  # it is not empty, or not there
                parent.rmdir()


def _acquire(folder: Path) -> int:
    """Locks a file in `folder`; returns the open file."""
    path, tries = folder / _LOCK, 100
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            tries -= 1
            if isinstance(error, FileNotFoundError) and tries:
                continue  # another process, which has failed, has just removed the folder
            raise RecipeError(
                f"output_dir: {folder} cannot be written ({error.strerror}); choose another --output_dir"
            ) from error
        if not _lock(file):
            with open(file, "rb") as holder:
                who = holder.read(100).decode(errors="replace").strip()
            raise RecipeError(
                f"output_dir: another run{f' ({who})' if who else ''} is writing into {folder}; wait for it "
                "to end, or choose another --output_dir"
            )
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file), path.stat()):
                break
        os.close(file)  # its holder has removed the file between our opening and locking it
    with contextlib.suppress(OSError):  # the disk is full, perhaps
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {platform.node()}\n".encode())
    return file


def _lock(file: int) -> bool:
    """Locks a file for this process; returns whether that went well, as on file systems without locks."""
    # Not flock, which filelock uses: workers inherit it by fork, and outlive a killed run for seconds.
    try:
        if sys.platform == "win32":
            os.lseek(file, 1 << 20, os.SEEK_SET)  # nobody can read what is locked
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            os.lseek(file, 0, os.SEEK_SET)
        else:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
