"""Ctrl-C: the first one ends a command in one line, a second one at once."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["check", "is_interrupted", "watch"]

_seen = False


@contextlib.contextmanager
def watch() -> Iterator[None]:
    """Notes the first interruption, which raises KeyboardInterrupt; a second one ends the process in silence.

    Nothing is changed where the process handles interruptions in its own way, or in another thread than the
    main one.
    """
    global _seen
    _seen = False
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, functools.partial(_interrupt, os.getpid()))
    try:
        yield
    finally:
        if ours and not _seen:  # else a second one would spoil the end of the interpreter with a traceback
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(owner: int, signum: int, frame: Any) -> None:
    global _seen
    if os.getpid() != owner:  # a worker, by fork: its parent says what there is to say
        os._exit(128 + signum)
    _seen = True
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # From now on finalizers may raise: this KeyboardInterrupt, or torch's error about workers that have
    # ended. Python would print such errors and go on; see check().
    sys.unraisablehook = lambda _: None
    raise KeyboardInterrupt


def is_interrupted() -> bool:
    """Returns whether there was an interruption."""
    return _seen


def check() -> None:
    """Raises KeyboardInterrupt again if there was an interruption: other code may have swallowed the first.

    Raises:
        KeyboardInterrupt: there was an interruption.
    """
    if _seen:
        raise KeyboardInterrupt
