"""Moments in 8 bits, for parameters with rows: a small float for each value, an exponent for each block.

A value has 8 steps to an octave, below a power of two that its block of 128 has for itself, and is rounded
stochastically. bitsandbytes' and torchao's formats round to the nearest entry of a table. There v would
freeze as it does in bfloat16, only earlier. And a small v would become 0, so that nothing would limit the
step m / √v. Here only 0 is stored as 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adamnx_hf.optim.formats.base import StateFormat
from adamnx_hf.optim.formats.rounding import RandomBits

__all__ = ["BLOCK", "Int8", "decode", "encode", "packed_shape"]

#: Elements of a row that share an exponent.
BLOCK = 128

#: Rows are filled up to a multiple of this many bytes, so that kernels can move as many at a time.
ROW_BYTES = 8

#: Tensors of fewer elements, or with shorter rows, are not worth packing.
LEAST_ELEMENTS, LEAST_COLUMNS = 4096, 64

# The upper bits of the float32 of 1.0, with the 3 of the significand that 8 bits have room for.
ONE = 127 << 3

# The smallest m that is not 0, in units of 2^k.
SMALLEST = 1.25 * 2.0**-16

# The exponents, 127 + k, of the largest m and v that can be stored: 2^63 and its square.
LARGEST_M, LARGEST_V = 127 + 63, 127 + 126


class Int8(StateFormat):
    """The format of :func:`encode`, in uint8."""

    narrow = True
    packed = True

    def fits(self, param: Tensor) -> bool:
        """Returns whether `param` is real and has rows long enough to share exponents.

        A DTensor has to be whole or sharded by rows, as FSDP2 does it.
        """
        if param.is_complex() or param.ndim < 2 or param.numel() < LEAST_ELEMENTS:
            return False
        by_rows = all(
            placement.is_replicate() or (type(placement).__name__ == "Shard" and placement.dim == 0)
            for placement in getattr(param, "placements", ())
        )
        return by_rows and LEAST_COLUMNS <= param.numel() // param.shape[0] < 2**31  # int32 to the kernel

    def shape(self, param: Tensor) -> torch.Size:
        """Returns [rows, bytes of a row]; the shape of `param` where it has no rows."""
        return torch.Size(packed_shape(param.shape)) if param.ndim > 1 else param.shape

    def zeros(self, param: Tensor) -> Tensor:
        """Returns packed zeros for a moment of `param`; a DTensor if `param` is one."""
        whole: Any = param
        local = whole.to_local() if hasattr(param, "to_local") else param
        shape = self.shape(param)
        zeros = torch.zeros(local.shape[0], shape[1], dtype=self.dtype, device=local.device)
        if local is not param:
            mesh, placements = whole.device_mesh, whole.placements
            zeros = type(whole).from_local(
                zeros, mesh, placements, run_check=False, shape=shape, stride=(shape[1], 1)
            )
        return zeros

    def load(self, moment: Tensor, param: Tensor, role: str) -> Tensor:
        """Returns the numbers that are packed in `moment`: float32, of the shape of `param`."""
        return decode(moment, param.shape[1:].numel(), signed=role == "exp_avg").view(param.shape)

    def store(self, moment: Tensor, values: Tensor, bits: RandomBits, role: str) -> None:
        """Packs `values` into `moment`."""
        chosen = bits.draw_half(values, role).flatten(1)
        moment.copy_(encode(values.float().flatten(1), chosen, signed=role == "exp_avg"))


def packed_shape(shape: torch.Size) -> tuple[int, int]:
    """Returns the shape of packed moments: a row of bytes for each row of a parameter of `shape`."""
    columns = shape[1:].numel()
    used = columns + -(-columns // BLOCK)
    return shape[0], -(-used // ROW_BYTES) * ROW_BYTES


def encode(values: Tensor, bits: Tensor, *, signed: bool) -> Tensor:
    """Packs values in 8 bits, each rounded to one of its two neighbours so that it is right on average.

    A row of bytes has three parts: a byte for each value, a byte for each block of 128 values, and zeros up
    to a multiple of 8. A block's byte is 127 + k, where 2^k is the power of two above its largest value. A
    value's byte is the exponent and 3 bits of the significand of the float value / 2^k, counted so that 1 is
    C. With a sign in the upper bit C = 127: 16 octaves, below which a value becomes 0 or their smallest.
    Without a sign C = 255: 32 octaves, below which a value becomes their smallest. That is not right on
    average, but only a 0 is stored as 0.

    k is at least −126 and at most 126, or 63 with a sign. A value above 2^k becomes 2^k, and so does an inf
    or a nan. So a square that overflowed leaves the numbers of its block intact, and the element's next
    steps, m / √v, are no longer than others'. If m or v is nan, or m is inf, the parameter has become nan
    anyway.

    All of this shifts bits, so the Triton kernel and every device pack the same bytes.

    Args:
        values: float32 [rows, columns].
        bits: int32 [rows, columns], from 0 to 2^16 − 1, uniformly distributed.
        signed: True for exp_avg; False for exp_avg_sq, whose values are 0 or above.

    Returns:
        uint8 [rows, width], see :func:`packed_shape`.
    """
    rows, columns = values.shape
    top, largest = (127, LARGEST_M) if signed else (255, LARGEST_V)
    blocks = -(-columns // BLOCK)
    magnitudes = values.abs().nan_to_num_(nan=torch.inf, posinf=torch.inf)
    # Floats have the same order as their bits read as integers, with inf at the top. The upper 8 bits are the
    # biased exponent.
    padded = torch.nn.functional.pad(magnitudes, (0, blocks * BLOCK - columns)).view(torch.int32)
    exponents = ((padded.view(rows, blocks, BLOCK).amax(2) >> 23) + 1).clamp(max=largest)
    units = ((254 - exponents) << 23).view(torch.float32)  # 2^-k
    magnitudes = magnitudes * _spread(units, columns)

    # Adding 20 random lower bits carries over as often as it should. There are 16; the other 4 stand in the
    # middle, which is right on average. Below the smallest code the next one is 0.
    codes = ((magnitudes.view(torch.int32) + (bits * 16 + 8)) >> 20) - (ONE - top)
    if signed:
        chosen = (bits.float() + 0.5) * (SMALLEST / (1 << 16)) < magnitudes
        codes = torch.where(magnitudes < SMALLEST, chosen, codes.clamp(max=top))
        codes = torch.where(values < 0, codes + 128, codes)
    else:
        codes = torch.where(values == 0, 0, codes.clamp(1, top))
    packed = torch.cat([codes.to(torch.uint8), exponents.to(torch.uint8)], dim=1)
    return torch.nn.functional.pad(packed, (0, packed_shape(values.shape)[1] - columns - blocks))


def decode(packed: Tensor, columns: int, *, signed: bool) -> Tensor:
    """Returns the values that :func:`encode` has packed.

    Args:
        packed: uint8 [rows, width].
        columns: how many values a row has.
        signed: the argument of :func:`encode`.

    Returns:
        float32 [rows, columns].
    """
    top = 127 if signed else 255
    codes = packed[:, :columns].int()
    exponents = packed[:, columns : columns - (-columns // BLOCK)].int()
    powers = torch.where(exponents == 255, torch.nan, (exponents << 23).view(torch.float32))
    magnitudes = codes & top
    values = torch.where(magnitudes > 0, (magnitudes + (ONE - top)) << 20 | (codes & ~top) << 24, 0)
    return values.view(torch.float32) * _spread(powers, columns)


def _spread(of_blocks: Tensor, columns: int) -> Tensor:
    """Repeats numbers of blocks for each of their elements, to [rows, columns]."""
    return of_blocks.repeat_interleave(BLOCK, dim=1)[:, :columns]
