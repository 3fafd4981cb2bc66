"""Ways to store parameters in bfloat16, where an update below 2^-9 of the parameter would be lost.

They can be rounded stochastically. Or a second tensor, the residual, keeps what rounding cut off in 16 bits:
nothing is lost then.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adamnx_hf.optim.formats.rounding import RandomBits, round_stochastically

__all__ = ["PARAM_ROUNDINGS", "join", "keeps_residual", "split", "store_param"]

#: The values of `AdamNX(param_rounding=...)`, which act on bfloat16 parameters.
PARAM_ROUNDINGS = ("nearest", "stochastic", "kahan")

#: The number that is added to a parameter's own, so that its random bits differ from its moments'.
PARAM_SALT = 1 << 30


def keeps_residual(param: Tensor, rounding: str) -> bool:
    """Returns whether `param` has a residual, under one of :data:`PARAM_ROUNDINGS`."""
    return rounding == "kahan" and param.dtype == torch.bfloat16


def store_param(
    param: Tensor, values: Tensor, rounding: str, bits: RandomBits, residual: Tensor | None
) -> None:
    """Writes computed `values` into a parameter.

    Args:
        param: a tensor of any dtype, shape and strides. Only bfloat16 is rounded otherwise than to nearest.
        values: numbers in the parameter's shape: float32 for a bfloat16 parameter, or of its own dtype.
        rounding: one of :data:`PARAM_ROUNDINGS`.
        bits: the random bits of the parameter.
        residual: a tensor that takes what `param` cannot hold, see :func:`split`, or None.
    """
    if rounding == "nearest" or param.dtype != torch.bfloat16 or values.dtype == param.dtype:
        param.copy_(values)
    elif residual is None:
        param.copy_(round_stochastically(values, bits(values, PARAM_SALT) & 0xFFFF))
    else:
        upper, lower = split(values)
        param.copy_(upper)
        residual.copy_(lower)


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """Splits float32 into its nearest bfloat16 and the difference of their bits. :func:`join` undoes that.

    Kahan summation keeps a bfloat16 remainder; this one has eight bits more. Parameter and residual together
    are a float32 master weight, to the last bit. The difference is an int16 whose dtype says bfloat16, as
    neither NCCL nor gloo sends int16 from process to process. nan has no residual.
    """
    bits = values.contiguous().view(torch.int32)
    # Halfway is always rounded up: the difference of half a step down would not fit into int16.
    upper = (bits + 0x8000) & -0x10000
    nan = values.isnan()
    nearest = torch.where(nan, values, upper.view(torch.float32)).to(torch.bfloat16)
    return nearest, torch.where(nan, 0, bits - upper).to(torch.int16).view(torch.bfloat16)


def join(param: Tensor, residual: Tensor) -> Tensor:
    """Returns the contiguous float32 that :func:`split` has split."""
    bits = param.float().contiguous().view(torch.int32) + residual.view(torch.int16).int()
    # torch.where lays its result out as `param` is.
    return torch.where(param.isnan(), param.float(), bits.view(torch.float32)).contiguous()
