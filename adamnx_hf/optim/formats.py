"""How moments are stored, where not in float32. The update knows nothing of it.

bfloat16 has 8 significant bits. AdamNX's weight of a new g² is below that after some 500 steps, so rounded to
the nearest v would stand still. Rounded up or down at random, with the probabilities that make it right on
average, it goes on. The random bits are a hash of the step, the parameter's place in its group and the
element's in the parameter: there is no generator whose state would have to be saved, and resuming is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["STATE_DTYPES", "random_bits", "round_stochastically", "store"]

#: What `AdamNX(state_dtype=...)` takes, by name.
STATE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_32_BITS = 0xFFFFFFFF


def random_bits(numel: int, step: int | Tensor, place: int, device: torch.device) -> Tensor:
    """32 bits for each of `numel` elements of a parameter: int64 [numel], from 0 to 2^32 − 1.

    Args:
        numel: elements, in the order in which they lie in memory.
        step: t, a number or an int64 0-d tensor on `device`.
        place: the parameter's, in its group.
        device: of the result.
    """
    # The finalizer of MurmurHash3, on 32 bits. Products wrap at 2^64, which leaves the lower 32 right.
    index = torch.arange(numel, dtype=torch.int64, device=device)
    bits = (index ^ (index >> 32)) * 0x9E3779B1 ^ step * 0x85EBCA77 ^ place * 0xC2B2AE3D
    bits = bits & _32_BITS
    bits = ((bits ^ (bits >> 16)) * 0x85EBCA6B) & _32_BITS
    bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & _32_BITS
    return bits ^ (bits >> 16)


def round_stochastically(values: Tensor, bits: Tensor) -> Tensor:
    """`values` in bfloat16, each rounded to one of its two neighbours so that it is right on average.

    Args:
        values: float32, any shape. Infinities and nan stay what they are.
        bits: int64 of the same shape, from 0 to 2^16 − 1, uniformly distributed.
    """
    # bfloat16 is the upper half of float32. Adding random lower halves carries over as often as it should.
    wide = values.contiguous().view(torch.int32) + bits.to(torch.int32)
    rounded = (wide & -0x10000).view(torch.float32)
    # A nan of all ones would carry over into the sign.
    return torch.where(values.isnan(), values, rounded).to(torch.bfloat16)


def store(moment: Tensor, values: Tensor, bits: Tensor) -> None:
    """Writes `values` into a bfloat16 `moment`, rounded by the lower 16 of `bits`, in their order."""
    moment.copy_(round_stochastically(values.float(), (bits & 0xFFFF).view(values.shape)))
