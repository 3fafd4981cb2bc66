"""How moments and parameters are stored, where not in float32. The update knows nothing of it.

bfloat16 has 8 significant bits. AdamNX's weight of a new g² is below that after some 500 steps, so rounded to
the nearest v would stand still. Rounded up or down at random, with the probabilities that make it right on
average, it goes on. The random bits are a hash of the step, the parameter's number and the element's
in the parameter: there is no generator whose state would have to be saved, and resuming is exact.

In 8 bits (:func:`encode`) it is a small float that is kept, with 8 steps to an octave, below a power of two
that each block has for itself; rounded stochastically as well. bitsandbytes' and torchao's formats round to
the nearest entry of a table, where v would freeze as it does in bfloat16, only earlier; and their tables hold
a 0 that a small v falls into, whose step then knows no bounds. Here only 0 is stored as 0.

The same goes for parameters in bfloat16, where an update below 2^-9 of the parameter is lost. They can be
rounded stochastically, or keep what rounding cut off in 16 bits beside: nothing is lost then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "NARROW",
    "PARAM_ROUNDINGS",
    "STATE_DTYPES",
    "RandomBits",
    "convert",
    "decode",
    "encode",
    "join",
    "load",
    "most_elements",
    "new_moment",
    "packed_shape",
    "packs",
    "pieces",
    "random_bits",
    "round_stochastically",
    "split",
    "store",
    "store_param",
]

#: What `AdamNX(state_dtype=...)` takes, by name, and what the tensors hold. Of 8 bits: :func:`encode`.
#: Checkpoints have the names, so a released one stands for its layout for good: another layout takes another
#: name, which older versions refuse.
STATE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.uint8}

#: What is rounded by chance where it is stored.
NARROW = frozenset({torch.bfloat16, torch.uint8})

#: Elements of a row that share an exponent, in 8 bits.
BLOCK = 128

#: Rows are filled up to a multiple of this many bytes, in 8 bits, so that kernels can move as many at a time.
ROW_BYTES = 8

#: Tensors of fewer elements, or of shorter rows, are not worth packing.
LEAST_ELEMENTS, LEAST_COLUMNS = 4096, 64

#: What `AdamNX(param_rounding=...)` takes, for bfloat16 parameters.
PARAM_ROUNDINGS = ("nearest", "stochastic", "kahan")

#: Added to a parameter's number, so that its bits are not those of its moments.
PARAM_SALT = 1 << 30

# The upper bits of the float32 of 1.0, with the 3 of the significand that 8 bits have room for.
ONE = 127 << 3

# The smallest m that is not 0, in units of 2^k.
SMALLEST = 1.25 * 2.0**-16

# The exponents, 127 + k, of what is stored as the largest m and v: 2^63 and its square.
LARGEST_M, LARGEST_V = 127 + 63, 127 + 126

# Elements that are worked on at a time: each costs some 30 bytes. On the CPU they stay in its caches.
PIECE, PIECE_ON_CPU = 2**22, 2**17


class RandomBits:
    """The random bits of a parameter, or of some of its rows, at one step; computed once for all who ask.

    Args:
        step, number, start: see :func:`random_bits`.
    """

    def __init__(self, step: float | Tensor, number: int, start: int = 0) -> None:
        self.step, self.number, self.start = step, number, start
        self.drawn: dict[int, Tensor] = {}

    def __call__(self, values: Tensor, salt: int = 0) -> Tensor:
        """int32, of the shape of `values`; others for another `salt`. Not to be written to."""
        if salt not in self.drawn:
            numel, number = values.numel(), self.number + salt
            self.drawn[salt] = random_bits(numel, self.step, number, values.device, self.start)
        return self.drawn[salt].view(values.shape)


def random_bits(
    numel: int, step: float | Tensor, number: int, device: torch.device, start: int = 0
) -> Tensor:
    """32 bits for each of `numel` elements of a parameter: int32 [numel], of any sign.

    Args:
        numel: elements, in the order in which they lie in memory.
        step: t, a whole number; or a 0-d tensor on `device`.
        number: the parameter's, in its optimizer.
        device: of the result.
        start: which element is the first.
    """
    # The finalizer of MurmurHash3, in place: it is memory that takes the time. Products wrap at 2^32.
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
    """Combines `bits` with themselves shifted, zeros coming in, not the sign: `mask` has 32 − `by` ones."""
    shifted = bits >> by
    shifted &= mask
    bits ^= shifted


def _int32(number: int) -> int:
    """The lower 32 bits of a number, as the int32 they are."""
    return (number + 2**31) % 2**32 - 2**31


def round_stochastically(values: Tensor, bits: Tensor) -> Tensor:
    """`values` in bfloat16, each rounded to one of its two neighbours so that it is right on average.

    Args:
        values: float32, any shape. Infinities and nan stay what they are.
        bits: int32 of the same shape, from 0 to 2^16 − 1, uniformly distributed.
    """
    # bfloat16 is the upper half of float32. Adding random lower halves carries over as often as it should.
    wide = values.contiguous().view(torch.int32) + bits.int()
    rounded = (wide & -0x10000).view(torch.float32)
    # A nan of all ones would carry over into the sign.
    return torch.where(values.isnan(), values, rounded).to(torch.bfloat16)


def packs(param: Tensor) -> bool:
    """Whether the moments of `param` are packed in 8 bits: real ones with enough rows to share exponents.

    Of DTensors those that are whole or sharded by rows, as FSDP2 does it.
    """
    if param.is_complex() or param.ndim < 2 or param.numel() < LEAST_ELEMENTS:
        return False
    by_rows = all(
        placement.is_replicate() or (type(placement).__name__ == "Shard" and placement.dim == 0)
        for placement in getattr(param, "placements", ())
    )
    return by_rows and LEAST_COLUMNS <= param.numel() // param.shape[0] < 2**31  # int32 to the kernel


def packed_shape(shape: torch.Size) -> tuple[int, int]:
    """Of the moments of a parameter of `shape`, packed: a row for each of its rows."""
    columns = shape[1:].numel()
    used = columns + -(-columns // BLOCK)
    return shape[0], -(-used // ROW_BYTES) * ROW_BYTES


def new_moment(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros for a moment of `param`; packed if `dtype` is uint8. A DTensor for a DTensor."""
    if dtype != torch.uint8:
        return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    rows, width = packed_shape(param.shape)
    if not hasattr(param, "to_local"):
        return torch.zeros(rows, width, dtype=dtype, device=param.device)
    whole: Any = param
    local = whole.to_local()
    zeros = torch.zeros(local.shape[0], width, dtype=dtype, device=local.device)
    shape = {"shape": torch.Size((rows, width)), "stride": (width, 1)}
    result: Tensor = type(whole).from_local(
        zeros, whole.device_mesh, whole.placements, run_check=False, **shape
    )
    return result


def encode(values: Tensor, bits: Tensor, *, signed: bool) -> Tensor:
    """Packs values in 8 bits, each rounded to one of its two neighbours so that it is right on average.

    A row is a byte for each value, then one for each block of 128: 127 + k, where 2^k is the power of two
    above the block's largest; and zeros up to a multiple of 8 bytes. A value's byte is, in units of 2^k, a
    float's exponent and 3 bits of its significand, counted so that 1 is C. With a sign, in the upper bit: C
    = 127, 16 octaves, and what is below them becomes 0 or their smallest. Without: C = 255, 32 octaves, and
    what is below them becomes their smallest: that is not right on average, but it is not 0 either. Only a 0
    is 0 there.

    k is at least −126. It is at most 126, with a sign 63. What is above 2^k becomes 2^k, and so does an inf
    or a nan. So a square that overflowed leaves its block numbers, and the element's next steps, m / √v, are
    no longer than others'. Where m or v is nan, or m is inf, the parameter has become nan, and stays so.

    It is bits that are shifted, so the Triton kernel, and any device, packs the same bytes.

    Args:
        values: float32 [rows, columns].
        bits: int32 of that shape, from 0 to 2^16 − 1, uniformly distributed.
        signed: for exp_avg. Without, for exp_avg_sq, values are 0 or above.

    Returns:
        uint8 [rows, width], see :func:`packed_shape`.
    """
    rows, columns = values.shape
    top, largest = (127, LARGEST_M) if signed else (255, LARGEST_V)
    blocks = -(-columns // BLOCK)
    magnitudes = values.abs().nan_to_num_(nan=torch.inf, posinf=torch.inf)
    # As integers floats are in the same order, inf above all. The upper 8 bits are the exponent, biased.
    padded = torch.nn.functional.pad(magnitudes, (0, blocks * BLOCK - columns)).view(torch.int32)
    exponents = ((padded.view(rows, blocks, BLOCK).amax(2) >> 23) + 1).clamp(max=largest)
    units = ((254 - exponents) << 23).view(torch.float32)  # 2^-k
    magnitudes = magnitudes * _spread(units, columns)

    # Adding 20 random lower bits carries over as often as it should. There are 16: the others stand in the
    # middle, so that they are right on average. Below the smallest code the next one is 0.
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
    """What :func:`encode` has packed.

    Args:
        packed: uint8 [rows, width].
        columns: of the values.
        signed: as it was packed.

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
    """What blocks have, for each element: [rows, columns]."""
    return of_blocks.repeat_interleave(BLOCK, dim=1)[:, :columns]


def load(moment: Tensor, param: Tensor, role: str) -> Tensor:
    """A moment as numbers of the shape of `param`: unpacked if it is packed, else as it is.

    Args:
        moment: in any format.
        param: whose it is; neither may be a DTensor.
        role: `"exp_avg"` or `"exp_avg_sq"`.
    """
    if moment.dtype != torch.uint8:
        return moment
    return decode(moment, param.shape[1:].numel(), signed=role == "exp_avg").view(param.shape)


def store(moment: Tensor, values: Tensor, bits: RandomBits, role: str) -> None:
    """Writes `values` into a moment in bfloat16 or 8 bits, rounded stochastically.

    Args:
        moment: bfloat16 of any strides, or packed.
        values: of the parameter's shape, laid out as it lies in memory.
        bits: the parameter's.
        role: `"exp_avg"` or `"exp_avg_sq"`.
    """
    signed = role == "exp_avg"
    half = (bits(values) if signed else bits(values) >> 16) & 0xFFFF  # each moment has its own half
    if moment.dtype == torch.bfloat16:
        moment.copy_(round_stochastically(values.float(), half))
    else:
        moment.copy_(encode(values.float().flatten(1), half.flatten(1), signed=signed))


def most_elements(device: torch.device) -> int:
    """How many elements to work on at a time."""
    return PIECE_ON_CPU if device.type == "cpu" else PIECE


def pieces(param: Tensor, most: int) -> Iterator[tuple[Any, int, int]]:
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


def convert(moment: Tensor, param: Tensor, dtype: torch.dtype, step: int, number: int, role: str) -> Tensor:
    """A moment in another format, rounded stochastically where that is narrower.

    Args:
        moment: of `param`, in any format, a DTensor too.
        param: whose it is.
        dtype: one of :data:`STATE_DTYPES`' values.
        step, number: see :func:`random_bits`.
        role: `"exp_avg"` or `"exp_avg_sq"`.
    """
    result = new_moment(param, dtype)
    new, old, like = (t.to_local() if hasattr(t, "to_local") else t for t in (result, moment, param))
    for rows, start, _ in pieces(like, most_elements(like.device)):
        values = load(old[rows], like[rows], role)
        if dtype in NARROW:
            store(new[rows], values.contiguous(), RandomBits(step, number, start), role)
        else:
            new[rows].copy_(values)
    return result


def store_param(param: Tensor, values: Tensor, bits: RandomBits, residual: Tensor | None) -> None:
    """Writes float32 `values` into a bfloat16 `param`: whole, with a `residual`; else rounded stochastically.

    Args:
        param: bfloat16, any shape and strides.
        values: float32, of its shape.
        bits: the parameter's.
        residual: of its shape; what `param` cannot hold is left there, see :func:`split`.
    """
    if residual is not None:
        upper, lower = split(values)
        param.copy_(upper)
        residual.copy_(lower)
        return
    param.copy_(round_stochastically(values, bits(values, PARAM_SALT) & 0xFFFF))


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
    """The float32 of a bfloat16 `param` and what rounding cut off, contiguous; see :func:`split`."""
    bits = param.float().contiguous().view(torch.int32) + residual.view(torch.int16).int()
    # torch.where lays its result out as `param` is.
    return torch.where(param.isnan(), param.float(), bits.view(torch.float32)).contiguous()
