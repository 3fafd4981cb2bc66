"""Stochastic rounding to bfloat16, with random bits that are a hash.

bfloat16 has 8 significant bits. The weight of a new g² falls below that after some 500 steps of AdamNX, so a
v that is rounded to nearest would stand still. Rounding up or down at random, with the probabilities that
make it right on average, lets v go on. The bits are a hash of the step, the parameter's number and the
element's place in the parameter. So there is no generator whose state would have to be saved, and a resumed
run draws the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["RandomBits", "random_bits", "round_stochastically"]


class RandomBits:
    """The random bits of a parameter, or of some of its rows, at one step; each is drawn once.

    Args:
        step, number, start: see :func:`random_bits`.
    """

    def __init__(self, step: float | Tensor, number: int, start: int = 0) -> None:
        self.step, self.number, self.start = step, number, start
        self.drawn: dict[int, Tensor] = {}

    def __call__(self, values: Tensor, salt: int = 0) -> Tensor:
        """Returns int32 bits of the shape of `values`, others for another `salt`. Do not write to them."""
        if salt not in self.drawn:
            self.drawn[salt] = random_bits(
                values.numel(), self.step, self.number + salt, values.device, self.start
            )
        return self.drawn[salt].view(values.shape)

    def draw_half(self, values: Tensor, role: str) -> Tensor:
        """Returns int32 below 2^16, of the shape of `values`. Each moment has its own half of the bits."""
        bits = self(values)
        return (bits if role == "exp_avg" else bits >> 16) & 0xFFFF


def random_bits(
    numel: int, step: float | Tensor, number: int, device: torch.device, start: int = 0
) -> Tensor:
    """Returns 32 random bits for each of `numel` elements of a parameter: int32 [numel], of any sign.

    Args:
        numel: the number of elements, which count in the order in which they lie in memory.
        step: t, a whole number, or a 0-d tensor on `device`.
        number: the parameter's number in its optimizer.
        device: the device of the result.
        start: the number of the first element.
    """
    # The finalizer of MurmurHash3 works in place here, as memory takes the time. Products wrap at 2^32.
    dtype = torch.int32 if start + numel <= 2**31 else torch.int64
    bits = torch.arange(start, start + numel, dtype=dtype, device=device)
    if dtype == torch.int64:
        bits = (bits ^ (bits >> 32)).int()
    step = step.long() if isinstance(step, Tensor) else int(step)
    seed = step * 0x85EBCA77 ^ number * 0xC2B2AE3D
    bits *= _int32(0x9E3779B1)
    bits ^= seed.int() if isinstance(seed, Tensor) else _int32(seed)
    _xor_shifted_(bits, 16, 0xFFFF)
    bits *= _int32(0x85EBCA6B)
    _xor_shifted_(bits, 13, 0x7FFFF)
    bits *= _int32(0xC2B2AE35)
    _xor_shifted_(bits, 16, 0xFFFF)
    return bits


def _xor_shifted_(bits: Tensor, by: int, mask: int) -> None:
    """Combines `bits` with themselves shifted. `mask` has 32 − `by` ones: no copies of the sign come in."""
    shifted = bits >> by
    shifted &= mask
    bits ^= shifted


def _int32(number: int) -> int:
    """Returns the lower 32 bits of a number as an int32."""
    return (number + 2**31) % 2**32 - 2**31


def round_stochastically(values: Tensor, bits: Tensor) -> Tensor:
    """Rounds `values` to bfloat16, each to one of its two neighbours so that it is right on average.

    Args:
        values: float32, any shape. Infinities and nan stay what they are.
        bits: int32 of the same shape, from 0 to 2^16 − 1, uniformly distributed.
    """
    # bfloat16 is the upper half of float32. Adding random lower halves carries over as often as it should.
    wide = values.contiguous().view(torch.int32) + bits.int()
    rounded = (wide & -0x10000).view(torch.float32)
    # A nan of all ones would carry over into the sign.
    return torch.where(values.isnan(), values, rounded).to(torch.bfloat16)
