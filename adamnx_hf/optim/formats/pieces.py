"""How large tensors are worked on: some rows at a time, so that temporaries stay small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["cut_rows", "most_elements"]

# Elements that are worked on at a time: each costs some 30 bytes. On the CPU they stay in its caches.
PIECE, PIECE_ON_CPU = 2**22, 2**17


def most_elements(device: torch.device) -> int:
    """Returns how many elements to work on at a time on `device`."""
    return PIECE_ON_CPU if device.type == "cpu" else PIECE


def cut_rows(param: Tensor, most: int) -> Iterator[tuple[Any, int, int]]:
    """A parameter's rows, so few at a time that what is computed from them stays small.

    Args:
        param: its rows are also those of its moments, packed or not.
        most: elements, where a row has no more.

    Yields:
        An index of rows, `...` for all; how many elements come before them; how many they are.
    """
    rows, numel = len(param) if param.ndim else 1, param.numel()
    at_a_time = max(1, most * rows // max(numel, 1))
    if at_a_time >= rows:
        yield ..., 0, numel
        return
    row = numel // rows
    for start in range(0, rows, at_a_time):
        stop = min(start + at_a_time, rows)
        yield slice(start, stop), start * row, (stop - start) * row
