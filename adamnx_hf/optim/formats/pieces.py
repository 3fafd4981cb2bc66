"""Cutting of large tensors into some rows at a time, so that temporaries stay small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["choose_piece_size", "cut_rows"]

# How many elements are worked on at a time: each costs some 30 bytes. On the CPU they fit into its caches.
PIECE, PIECE_ON_CPU = 2**22, 2**17


def choose_piece_size(device: torch.device) -> int:
    """Returns how many elements to work on at a time on `device`."""
    return PIECE_ON_CPU if device.type == "cpu" else PIECE


def cut_rows(param: Tensor, most: int) -> Iterator[tuple[Any, int, int]]:
    """Yields a parameter's rows, so few at a time that temporaries of their size stay small.

    Args:
        param: the parameter; rows of its moments are the same, packed or not.
        most: the most elements at a time, unless a single row has more.

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
