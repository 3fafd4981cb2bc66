"""The device under measurement: its clock, its memory, and its failures."""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

__all__ = [
    "catch_failures",
    "context_is_lost",
    "free_memory",
    "measure_copy",
    "note_failure",
    "read_allocated",
    "time_step",
    "wait_for",
]


def wait_for(device: str) -> None:
    """Waits until a card has done all its work; does nothing on the CPU."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def read_allocated(device: str) -> int:
    """Returns the bytes that torch's allocator has handed out on a card; 0 on the CPU."""
    import torch

    return torch.cuda.memory_allocated() if device == "cuda" else 0


def free_memory(device: str) -> None:
    """Frees the memory of all that is not referred to any more."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def time_step(step: Callable[[], Any], steps: int, device: str) -> float:
    """Returns the milliseconds a step takes, averaged over `steps` steps in a row."""
    import torch

    if device != "cuda":
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - start) / steps * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(steps):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / steps


def measure_copy(gib: float = 2.0, rounds: int = 20) -> float:
    """Returns the bandwidth of a copy within the card's memory: 10⁹ bytes a second, read and written.

    Args:
        gib: the size of what is copied, at most a quarter of the free memory.
        rounds: measurements, of which the median counts.
    """
    import torch

    free, _ = torch.cuda.mem_get_info()
    elements = int(min(gib * 2**30, free / 4)) // 4
    source = torch.randn(elements, device="cuda")
    target = torch.empty_like(source)
    times = [time_step(functools.partial(target.copy_, source), 5, "cuda") for _ in range(rounds)]
    del source, target
    torch.cuda.empty_cache()
    return 2 * elements * 4 / (median(times) * 1e-3) / 1e9


def context_is_lost(device: str) -> bool:
    """Returns whether the card refuses all further work of this process, as after an illegal access."""
    import torch

    if device != "cuda":
        return False
    for _ in range(2):  # an error of one call alone is raised only once
        try:
            torch.cuda.synchronize()
        except Exception:
            continue
        return False
    return True


def note_failure(name: str, error: Exception, device: str, failures: list[str]) -> None:
    """Adds a line about `error` to `failures`; raises the error if it took the card's context along."""
    failures.append(f"{name}: {_write_in_one_line(error)}")
    if context_is_lost(device):
        raise error


@contextlib.contextmanager
def catch_failures(what: str, device: str, failures: list[str]) -> Iterator[dict[str, str]]:
    """Goes on after the end of memory or of the card's context, with a line in `failures`.

    Args:
        what: the thing that is measured, for the line in `failures`.
        device: `"cuda"` or `"cpu"`.
        failures: gets the line.

    Yields:
        A dict, empty unless the context is lost: then it gets the error's text as `lost`.

    Raises:
        Exception: any other error.
    """
    import torch

    lost: dict[str, str] = {}
    try:
        yield lost
    except Exception as error:
        line = _write_in_one_line(error)
        if not isinstance(error, torch.OutOfMemoryError):
            if not context_is_lost(device):
                raise
            lost["lost"] = line
        failures.append(f"{what}: {line}")


def _write_in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
