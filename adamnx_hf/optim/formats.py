"""How moments and parameters are stored, where not in float32. The update knows nothing of it.

bfloat16 has 8 significant bits. AdamNX's weight of a new g² is below that after some 500 steps, so rounded to
the nearest v would stand still. Rounded up or down at random, with the probabilities that make it right on
average, it goes on. The random bits are a hash of the step, the parameter's place in its group and the
element's in the parameter: there is no generator whose state would have to be saved, and resuming is exact.

The same goes for parameters in bfloat16, where an update below 2^-9 of the parameter is lost. They can be
rounded stochastically, or keep what rounding cut off in 16 bits beside: nothing is lost then.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "PARAM_ROUNDINGS",
    "STATE_DTYPES",
    "convert",
    "join",
    "random_bits",
    "round_stochastically",
    "split",
    "store",
    "store_param",
]

#: What `AdamNX(state_dtype=...)` takes, by name.
STATE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

#: What `AdamNX(param_rounding=...)` takes, for bfloat16 parameters.
PARAM_ROUNDINGS = ("nearest", "stochastic", "kahan")

#: Added to a parameter's place, so that its own bits are not those of its moments.
PARAM_SALT = 1 << 30

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


def convert(moment: Tensor, dtype: torch.dtype, step: int, place: int, shift: int) -> Tensor:
    """`moment` in another dtype, rounded stochastically where it is bfloat16, by the bits above `shift`.

    Args:
        moment: real, any dtype, a DTensor too.
        dtype: one of :data:`STATE_DTYPES`' values.
        step, place: see :func:`random_bits`.
        shift: 0 for exp_avg, 16 for exp_avg_sq: other bits for each.
    """
    result = torch.empty_like(moment, dtype=dtype)
    if dtype != torch.bfloat16:
        return result.copy_(moment)
    local, values = (t.to_local() if hasattr(t, "to_local") else t for t in (result, moment))
    store(local, values, random_bits(values.numel(), step, place, values.device) >> shift)
    return result


def store_param(
    param: Tensor, values: Tensor, step: int | Tensor, place: int, residual: Tensor | None
) -> None:
    """Writes float32 `values` into a bfloat16 `param`: whole, with a `residual`; else rounded stochastically.

    Args:
        param: bfloat16, any shape and strides.
        values: float32, of its shape.
        step, place: see :func:`random_bits`.
        residual: of its shape; what `param` cannot hold is left there, see :func:`split`.
    """
    if residual is not None:
        upper, lower = split(values)
        param.copy_(upper)
        residual.copy_(lower)
        return
    bits = random_bits(values.numel(), step, place + PARAM_SALT, values.device)
    store(param, values, bits)


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """float32 as its nearest bfloat16, and the difference of their bits. :func:`join` undoes it.

    What Kahan summation keeps in a bfloat16, with eight bits more to it: parameter and residual together are
    a float32 master weight, to the last bit. The difference is an int16 in the clothes of a bfloat16, as
    neither NCCL nor gloo sends int16 from process to process. nan has no residual.
    """
    bits = values.contiguous().view(torch.int32)
    # Halfway up, always: the difference of half a step down would not fit into int16.
    upper = (bits + 0x8000) & -0x10000
    nan = values.isnan()
    nearest = torch.where(nan, values, upper.view(torch.float32)).to(torch.bfloat16)
    return nearest, torch.where(nan, 0, bits - upper).to(torch.int16).view(torch.bfloat16)


def join(param: Tensor, residual: Tensor) -> Tensor:
    """The float32 of a bfloat16 `param` and what rounding cut off; see :func:`split`."""
    bits = param.float().contiguous().view(torch.int32) + residual.view(torch.int16).int()
    return torch.where(param.isnan(), param.float(), bits.view(torch.float32))
