"""Random numbers of training. A resumed run draws the same ones as an unbroken run."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RowRandom", "keep_random_states", "make_generator"]


def make_generator(seed: int, epoch: int) -> torch.Generator:
    """Makes a generator of the CPU from a seed and an epoch, both at least 0.

    Both are mixed: epoch 1 of seed 0 is not epoch 0 of seed 1.
    """
    (mixed,) = np.random.SeedSequence([seed, epoch]).generate_state(1)
    return torch.Generator().manual_seed(int(mixed))


@functools.lru_cache(maxsize=1)  # asked for each batch of an epoch
def _draw_uniform(seed: int, epoch: int, rows: int, numbers: int) -> Tensor:
    return torch.rand(rows, numbers, generator=make_generator(seed, epoch))


@functools.lru_cache(maxsize=1)
def _draw_seeds(seed: int, epoch: int, rows: int) -> Tensor:
    # 32 bits, since a generator of the CPU takes no more of its seed.
    return torch.randint(2**32, (rows,), generator=make_generator(seed, epoch))


class RowRandom:
    """Random numbers of a data set's rows, each a function of seed, epoch and row alone.

    They are the same in every process and every order, however often they are drawn. Global random states
    stay as they are.

    Args:
        rows: number of rows of the data set.
        seed: at least 0.
        numbers: how many :meth:`uniform` draws for a row.
    """

    def __init__(self, rows: int, seed: int, numbers: int = 1) -> None:
        self.rows, self.seed, self.numbers = rows, seed, numbers
        # In memory that the loader's workers share, as they may live for many epochs.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch, counted from 0. Set it before an iterator of the loader begins: workers work ahead."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def uniform(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Draws (len(rows), numbers) float32, uniform in [0, 1)."""
        return _draw_uniform(self.seed, self.epoch, self.rows, self.numbers)[torch.as_tensor(rows)]

    @contextlib.contextmanager
    def seed_row(self, row: int) -> Iterator[None]:
        """Seeds torch's global generator of the CPU, which torchvision draws from, by the row.

        Restores the generator afterwards.
        """
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the devices' generators, too.
            torch.default_generator.manual_seed(int(_draw_seeds(self.seed, self.epoch, self.rows)[row]))
            yield


@contextlib.contextmanager
def keep_random_states(device: torch.device) -> Iterator[None]:
    """Restores the global random states afterwards: Python's, NumPy's, and torch's of CPU and `device`."""
    states: list[tuple[Any, Any]] = [
        (random.getstate, random.setstate),
        (np.random.get_state, np.random.set_state),
        (torch.get_rng_state, torch.set_rng_state),
    ]
    if device.type != "cpu":
        module = torch.get_device_module(device)
        states.append((module.get_rng_state, module.set_rng_state))
    kept = [get() for get, _ in states]
    try:
        yield
    finally:
        for (_, put), state in zip(states, kept, strict=True):
            put(state)
