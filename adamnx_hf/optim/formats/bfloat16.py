"""Moments in bfloat16, rounded stochastically: half the memory of float32."""

from __future__ import annotations

import torch
from torch import Tensor

from adamnx_hf.optim.formats.base import StateFormat
from adamnx_hf.optim.formats.rounding import RandomBits, round_stochastically

__all__ = ["BFloat16"]


class BFloat16(StateFormat):
    """Moments in bfloat16."""

    narrow = True

    def __init__(self) -> None:
        super().__init__(torch.bfloat16)

    def store(self, moment: Tensor, values: Tensor, bits: RandomBits, role: str) -> None:
        """Writes `values`, each rounded to one of its two neighbours."""
        moment.copy_(round_stochastically(values.float(), bits.of_moment(values, role)))
