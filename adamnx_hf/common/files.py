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
    "save_figure",
    "sole_writer",
    "write_json",
    "write_text",
]

_DRAFT = ".part."
_LOCK = ".lock"

#: Nothing more can be written there, whatever it is.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A file to write in the place of `path`, which it becomes when all has gone well.

    Its name is hidden and has the same suffix, from which matplotlib takes the format.

    Raises:
        OSError: it cannot be written; `path` is then as it was, and named by the error.
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
            error.filename = str(path)  # a write that fails names nothing
        raise


def write_text(path: Path, text: str) -> None:
    """Writes `text`, whole or not at all; see :func:`beside`."""
    with beside(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as JSON, whole or not at all; see :func:`beside`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def save_figure(figure: Any, path: Path, **options: Any) -> None:
    """Writes a figure of matplotlib's, whole or not at all, and closes it.

    Args:
        figure: to be written.
        path: its suffix is the format.
        options: of `savefig`.
    """
    from matplotlib import pyplot as plt

    try:
        with beside(path) as draft:
            figure.savefig(draft, **options)
    finally:
        plt.close(figure)


#: A model's weights, whole or in shards, and the index of the shards.
_WEIGHTS = re.compile(
    r"(adapter_)?(pytorch_)?model(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?", re.ASCII
)


@contextlib.contextmanager
def beside_folder(folder: Path, name: str, main: bool = True) -> Iterator[Path]:
    """A folder to write a model into, whose files move into `folder` when all has gone well.

    What is there under the same names is replaced, and so are weights that a model has left under other
    names: with both there, it would be chance which of them are loaded.

    Args:
        folder: where the files belong; the other one is in it, so that both are on one disk.
        name: of the other one, hidden.
        main: whether this process is the one that moves.
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
    """What is in `folder`, without the lock and the drafts that a killed process has left."""
    return [path for path in folder.iterdir() if path.name != _LOCK and not path.name.startswith(_DRAFT)]


def remove_drafts(folder: Path) -> None:
    """Removes what a killed process has left of files that it was writing."""
    for path in folder.glob(f"{_DRAFT}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def no_room(error: BaseException) -> str | None:
    """Why nothing more could be written, in a few words, if that is what `error` says."""
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
    """Keeps other processes that ask for the same from writing into `folder` meanwhile.

    The folder is made if it is not there; if it is still empty at the end, it is removed again. The lock is
    the process's own and ends with it, however it ends: children, such as a data loader's workers, which
    may outlive it, do not have it.

    Raises:
        RecipeError: another process has it, or the folder cannot be written.
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
    """The open file whose lock says that `folder` is ours."""
    path, tries = folder / _LOCK, 100
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            tries -= 1
            if isinstance(error, FileNotFoundError) and tries:
                continue  # another one, which has failed, has just removed the folder
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
        os.close(file)  # its holder has removed it between our opening and locking it
    with contextlib.suppress(OSError):  # the disk is full, perhaps
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {platform.node()}\n".encode())
    return file


def _lock(file: int) -> bool:
    """Whether `file` is now locked by this process. Where a file system has no locks, it always is."""
    # Not flock, which filelock uses: workers inherit that by fork, and outlive a killed run for seconds.
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
