"""The bytes that an optimizer's step holds, moves and takes for a while."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from adamnx_hf.bench.device import read_allocated

__all__ = ["count_bytes_moved", "count_state_bytes", "measure_temporary_bytes"]


def count_state_bytes(optimizer: Any) -> int:
    """Returns the bytes of the storages that an optimizer's state is made of."""
    from adamnx_hf.runs.memory import plain_tensors  # here, as it imports torch

    values = (value for state in optimizer.state.values() for value in state.values())
    storages = [tensor.untyped_storage() for tensor in plain_tensors(values)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def count_bytes_moved(params: list[Any], optimizer: Any) -> int | None:
    """Returns the bytes that a step at least reads and writes.

    Returns None if the state is not made of plain tensors, each the parameter's shape or packed.

    Args:
        params: parameters with gradients.
        optimizer: an optimizer of `params` that has made a step.
    """
    import torch

    from adamnx_hf.optim.formats import packed_shape

    moved = 0
    for param in params:
        shapes = [param.shape, packed_shape(param.shape)] if param.ndim else [param.shape]
        state = [v for v in optimizer.state[param].values() if getattr(v, "shape", None) in shapes]
        if len(state) < 2 or any(type(tensor) is not torch.Tensor for tensor in state):
            return None
        moved += 2 * param.nbytes + param.grad.nbytes + 2 * sum(tensor.nbytes for tensor in state)
    return moved


def measure_temporary_bytes(step: Callable[[], Any], device: str) -> int:
    """Returns the most that torch's allocator hands out during a step, beyond what was held before it."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = read_allocated(device)
        step()
        return torch.cuda.max_memory_allocated() - before
    # The process' own peak would also be the compiler's, and that of memory which malloc has kept.
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events: Any = profile.profiler
    changes = [e for e in events.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(changes, key=lambda event: event.start_ns()))
    return max([0, *held])
