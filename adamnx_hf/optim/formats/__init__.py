"""Formats of moments and parameters other than float32. The update knows nothing of them.

To add a format of the state: write a :class:`StateFormat` in a file of its own and add a line to
:data:`FORMATS`. An engine that does not list its dtype is given float32 copies, so the format works with any;
the Triton kernel takes it as it is once its `load_moment` and `store_moment` know it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from adamnx_hf.optim.formats.base import BFloat16, StateFormat
from adamnx_hf.optim.formats.int8 import Int8, decode, encode, packed_shape
from adamnx_hf.optim.formats.pieces import choose_piece_size, cut_rows
from adamnx_hf.optim.formats.residual import (
    PARAM_ROUNDINGS,
    join,
    keeps_residual,
    split,
    store_param,
)
from adamnx_hf.optim.formats.rounding import RandomBits, random_bits, round_stochastically

__all__ = [
    "FORMATS",
    "PARAM_ROUNDINGS",
    "ParamRounding",
    "RandomBits",
    "StateDtype",
    "StateFormat",
    "choose_format",
    "choose_piece_size",
    "convert",
    "cut_rows",
    "decode",
    "encode",
    "find_format",
    "find_moment_dtype",
    "join",
    "keeps_residual",
    "packed_shape",
    "random_bits",
    "round_stochastically",
    "split",
    "store_param",
    "unpack",
]

StateDtype = Literal["float32", "bfloat16", "int8"]
ParamRounding = Literal["nearest", "stochastic", "kahan"]

#: Formats of the moments by the name that `AdamNX(state_dtype=...)` takes.
FORMATS: dict[str, StateFormat] = {
    "float32": StateFormat(torch.float32),
    "bfloat16": BFloat16(torch.bfloat16),
    "int8": Int8(torch.uint8),
}


def find_format(dtype: torch.dtype) -> StateFormat:
    """Returns the format of moments whose tensors have a `dtype`; numbers of that dtype if none is known."""
    for known in FORMATS.values():
        if known.dtype == dtype:
            return known
    return StateFormat(dtype)


def find_moment_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which a parameter of `dtype` is updated: at least float32.

    Moments have it too, unless another format was asked for. In bfloat16, rounded to nearest, v would freeze
    at about step 500, where the weight of a new g² falls below that format's resolution.
    """
    return torch.promote_types(dtype, torch.float32)


def choose_format(param: Tensor, name: str | None) -> StateFormat:
    """Returns the format that the moments of `param` are to have.

    Args:
        param: the parameter; if it is complex, its moments are complex too, whatever the name.
        name: one of :data:`FORMATS`, or None for numbers of :func:`find_moment_dtype`.
    """
    dtype = find_moment_dtype(param.dtype)
    if name is None or dtype.is_complex:
        return StateFormat(dtype)
    return FORMATS[name] if FORMATS[name].fits(param) else FORMATS["float32"]


def convert(moment: Tensor, param: Tensor, target: StateFormat, step: int, number: int, role: str) -> Tensor:
    """Returns a moment in another format, rounded stochastically where that is narrower.

    Args:
        moment: a moment of `param`, in any format.
        param: the parameter, a DTensor if `moment` is one.
        target: the format of the result.
        step, number: see :func:`random_bits`.
        role: `"exp_avg"` or `"exp_avg_sq"`.
    """
    result, source = target.zeros(param), find_format(moment.dtype)
    new, old, like = (t.to_local() if hasattr(t, "to_local") else t for t in (result, moment, param))
    for rows, start, _ in cut_rows(like, choose_piece_size(like.device)):
        values = source.load(old[rows], like[rows], role)
        target.store(new[rows], values.contiguous(), RandomBits(step, number, start), role)
    return result


def unpack(moment: Tensor, param: Tensor, role: str) -> Tensor:
    """Returns a moment's numbers in at least float32, whatever its format; of a DTensor, this rank's part."""
    if hasattr(param, "to_local"):
        param, moment = param.to_local(), moment.to_local()  # type: ignore[attr-defined]
    values = find_format(moment.dtype).load(moment, param, role)
    return values.to(find_moment_dtype(values.dtype))
