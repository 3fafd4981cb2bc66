"""Captures, streams and pinned memory of CUDA, as far as the Triton engine needs them."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "INTERPRETED",
    "STEP_FIRST",
    "current_stream",
    "is_capturing",
    "pin_memory",
    "select",
    "send",
]

#: Whether Triton interprets kernels, on the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")

#: The error of a CUDA graph that is captured too early, with its remedy.
STEP_FIRST = (
    "AdamNX: a step of parameters that have not been stepped yet cannot be captured in a CUDA graph. "
    "Run a few whole training steps first, as torch.cuda.graph's documentation asks"
)


def is_capturing() -> bool:
    """Returns whether the current stream's work is being captured in a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def current_stream(device: torch.device) -> tuple[Any, bool]:
    """Returns the current stream of a CUDA device, and whether a CUDA graph is being captured on it."""
    if device.type != "cuda":
        return None, False
    return torch.cuda.current_stream(device), torch.cuda.is_current_stream_capturing()


def select(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes `device` the current one, where Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def pin_memory(size: int) -> Tensor:
    """Returns `size` bytes of pinned memory."""
    return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)


def send(table: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor from the host to `device`, without waiting for that."""
    if device.type == "cpu":
        return table
    return table.pin_memory().to(device, non_blocking=True)
