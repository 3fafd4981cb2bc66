"""The Triton kernel: AdamNX's step of any number of tensors in one launch. Needs torch's Triton, no more.

A launch covers a list of chunks, each BLOCK consecutive elements of one parameter. A program looks up which
parameter its chunk belongs to and where that parameter's tensors lie, so tensors of all sizes share a launch.
Where moments are packed in 8 bits, a chunk is BLOCK / SHARING blocks of elements that share an exponent.

Only `load_moment` and `store_moment` know how a moment is stored. To add a format of the state, add it there,
and its dtype to the abilities in triton.py.
"""

import torch
import triton
import triton.language as tl

from adamnx_hf.optim.engines import runtime
from adamnx_hf.optim.formats import int8, residual

PARAM_SALT = tl.constexpr(residual.PARAM_SALT)
SHARING = tl.constexpr(int8.BLOCK)
ROW_BYTES = tl.constexpr(int8.ROW_BYTES)
ONE = tl.constexpr(int8.ONE)
SMALLEST = tl.constexpr(int8.SMALLEST)
LARGEST_M = tl.constexpr(int8.LARGEST_M)
LARGEST_V = tl.constexpr(int8.LARGEST_V)

#: Whether the kernel may hold PTX: not where it is interpreted, nor on ROCm.
NVIDIA = tl.constexpr(not runtime.INTERPRETED and torch.version.hip is None)

__all__ = ["COLUMNS", "adamnx_update", "root_kernel", "squares_kernel", "step_kernel"]

#: How many int64 columns the table of parameters has: addresses of param, exp_avg, exp_avg_sq and
#: param_residual (or 0), elements to a row, the number that seeds the rounding, elements, number of the first
#: chunk, place in the lists of weights. Where moments are packed, elements count as if rows were filled
#: up to whole blocks.
COLUMNS = 9


@triton.jit
def quotient(exp_avg, exp_avg_sq, eps, APPROXIMATE: tl.constexpr):
    """Returns m / (√v + ε), correctly rounded, or APPROXIMATE to some last bits with fewer instructions."""
    if APPROXIMATE:
        # tl.sqrt would flush a tiny v to 0; this does not. Roots and ε are far from where a reciprocal is
        # flushed.
        root = tl.inline_asm_elementwise(
            "sqrt.approx.f32 $0, $1;", "=f,f", [exp_avg_sq], dtype=tl.float32, is_pure=True, pack=1
        )
        return exp_avg * tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [root + eps], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.div_rn(exp_avg, tl.sqrt_rn(exp_avg_sq) + eps)


@triton.jit
def adamnx_update(
    param, grad, exp_avg, exp_avg_sq, weight1, weight2, lr, weight_decay, eps, APPROXIMATE: tl.constexpr
):
    """Computes :func:`adamnx_hf.optim.update.adamnx_update` in float32."""
    param = param * (1 - lr * weight_decay)
    exp_avg = (1 - weight1) * exp_avg + weight1 * grad
    # float32 would round (1 - weight2) · v to v long before v stands still. That form would leave an infinite
    # v alone; this one needs care.
    averaged = exp_avg_sq - weight2 * exp_avg_sq + weight2 * (grad * grad)
    exp_avg_sq = tl.where(exp_avg_sq == float("inf"), exp_avg_sq, averaged)
    param = param - lr * quotient(exp_avg, exp_avg_sq, eps, APPROXIMATE)
    return param, exp_avg, exp_avg_sq


@triton.jit
def divide(numbers, divisor):
    """Returns `numbers // divisor` and `numbers % divisor`, int32, from one division of scalars.

    The product with the rounded reciprocal is right or 1 too small.
    """
    reciprocal = 0xFFFFFFFF // divisor.to(tl.uint32)
    quotients = tl.umulhi(numbers.to(tl.uint32), reciprocal).to(tl.int32)
    rests = numbers - quotients * divisor
    quotients = tl.where(rests < divisor, quotients, quotients + 1)
    rests = tl.where(rests < divisor, rests, rests - divisor)
    return quotients, rests


@triton.jit
def fold(start, offsets):
    """Returns the number of each element, `start + offsets`, as 32 bits: its upper half xor its lower half.

    int32 `offsets` are below a power of 2, and `start` is a multiple of it, so that the sum has no carry.
    With int64 `offsets`, `start` is 0.
    """
    if offsets.dtype == tl.int64:
        folded = (offsets ^ (offsets >> 32)).to(tl.uint32)
    else:
        folded = (start ^ (start >> 32)).to(tl.uint32) ^ offsets.to(tl.uint32)
    return folded


@triton.jit
def random_bits(index, step, number):
    """Computes :func:`adamnx_hf.optim.formats.random_bits` of elements whose :func:`fold` is `index`."""
    bits = index * 0x9E3779B1
    bits = bits ^ step.to(tl.uint32) * 0x85EBCA77 ^ number.to(tl.uint32) * 0xC2B2AE3D
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    return bits ^ (bits >> 16)


@triton.jit
def round_stochastically(values, bits):
    """Computes :func:`adamnx_hf.optim.formats.round_stochastically`, left in float32."""
    wide = values.to(tl.uint32, bitcast=True) + bits
    rounded = (wide & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where(values == values, rounded, values)  # a nan of all ones would carry over into the sign


@triton.jit
def split(values):
    """Computes :func:`adamnx_hf.optim.formats.split`, the first half left in float32."""
    bits = values.to(tl.uint32, bitcast=True)
    upper = (bits + 0x8000) & 0xFFFF0000
    number = values == values
    nearest = tl.where(number, upper.to(tl.float32, bitcast=True), values)
    return nearest, tl.where(number, (bits - upper).to(tl.int16), 0)


@triton.jit
def join(param, residual):
    """Computes :func:`adamnx_hf.optim.formats.join`."""
    wide = param.to(tl.float32)
    bits = wide.to(tl.uint32, bitcast=True) + residual.to(tl.int32).to(tl.uint32, bitcast=True)
    return tl.where(wide == wide, bits.to(tl.float32, bitcast=True), wide)


@triton.jit
def encode(values, mask, bits, SIGNED: tl.constexpr):
    """Computes :func:`adamnx_hf.optim.formats.encode`: codes and exponents of float32 [blocks, SHARING]."""
    TOP: tl.constexpr = 127 if SIGNED else 255
    magnitudes = tl.abs(values)
    ordered = magnitudes.to(tl.int32, bitcast=True)
    if mask is not None:
        ordered = tl.where(mask, ordered, 0)
    exponents = (tl.max(ordered, axis=1, keep_dims=True) >> 23) + 1
    exponents = tl.minimum(exponents, LARGEST_M if SIGNED else LARGEST_V)
    magnitudes = magnitudes * ((254 - exponents) << 23).to(tl.float32, bitcast=True)
    wide = magnitudes.to(tl.uint32, bitcast=True) + (bits * 16 + 8)
    codes = (wide >> 20).to(tl.int32) - (ONE - TOP)
    if SIGNED:
        chosen = ((bits.to(tl.float32) + 0.5) * (SMALLEST / (1 << 16)) < magnitudes).to(tl.int32)
        codes = tl.where(magnitudes < SMALLEST, chosen, tl.minimum(codes, TOP))
        codes = tl.where(values < 0, codes + 128, codes)
    else:
        codes = tl.where(values == 0, 0, tl.minimum(tl.maximum(codes, 1), TOP))
    return codes.to(tl.uint8), exponents.to(tl.uint8)


@triton.jit
def decode(codes, exponents, SIGNED: tl.constexpr):
    """Computes :func:`adamnx_hf.optim.formats.decode` of uint8 [blocks, SHARING] and [blocks, 1]."""
    TOP: tl.constexpr = 127 if SIGNED else 255
    codes = codes.to(tl.int32)
    magnitudes = codes & TOP
    values = ((magnitudes + (ONE - TOP)) << 20) | ((codes - magnitudes) << 24)
    values = tl.where(magnitudes > 0, values, 0).to(tl.float32, bitcast=True)
    exponents = exponents.to(tl.int32)
    return values * tl.where(exponents == 255, float("nan"), (exponents << 23).to(tl.float32, bitcast=True))


@triton.jit
def load_moment(moments, offsets, mask, codes, exponents, there, SIGNED: tl.constexpr, LOAD: tl.constexpr):
    """Computes :func:`adamnx_hf.optim.formats.StateFormat.load`: a moment's elements in float32."""
    if moments.dtype.element_ty == tl.uint8:
        packed = tl.load(moments + codes, mask, eviction_policy=LOAD)
        return decode(packed, tl.load(moments + exponents, there), SIGNED)
    return tl.load(moments + offsets, mask, eviction_policy=LOAD).to(tl.float32)


@triton.jit
def store_moment(
    moments, values, offsets, mask, codes, exponents, there, index, step, number,
    SIGNED: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """Computes :func:`adamnx_hf.optim.formats.StateFormat.store` of elements `index` of the parameter."""
    if moments.dtype.element_ty != tl.float32:
        bits = random_bits(index, step, number)  # each moment has its own half of them
        bits = bits & 0xFFFF if SIGNED else bits >> 16
    if moments.dtype.element_ty == tl.uint8:
        new_codes, new_exponents = encode(values, mask, bits, SIGNED)
        tl.store(moments + codes, new_codes, mask, cache_modifier=STORE)
        tl.store(moments + exponents, new_exponents, there)
    else:
        if moments.dtype.element_ty == tl.bfloat16:
            values = round_stochastically(values, bits)
        tl.store(moments + offsets, values.to(moments.dtype.element_ty), mask, cache_modifier=STORE)


@triton.jit
def _step_chunk(
    params,
    grads,
    exp_avgs,
    exp_avg_sqs,
    residuals,
    start,
    offsets,
    mask,
    codes,
    exponents,
    there,
    step,
    number,
    weight1,
    weight2,
    lr,
    weight_decay,
    eps,
    grad_factor,
    MAXIMIZE: tl.constexpr,
    ROUNDING: tl.constexpr,
    LOAD: tl.constexpr,
    STORE: tl.constexpr,
):
    param = tl.load(params + offsets, mask, eviction_policy=LOAD)
    old_param = param.to(tl.float32)
    if ROUNDING == "kahan":
        old_param = join(param, tl.load(residuals + offsets, mask, eviction_policy=LOAD))
    grad = tl.load(grads + offsets, mask, eviction_policy=LOAD).to(tl.float32) * grad_factor
    exp_avg = load_moment(exp_avgs, offsets, mask, codes, exponents, there, True, LOAD)
    exp_avg_sq = load_moment(exp_avg_sqs, offsets, mask, codes, exponents, there, False, LOAD)
    if MAXIMIZE:
        grad = -grad
    # Where moments are packed arithmetic sets the pace, elsewhere memory.
    packed: tl.constexpr = exp_avgs.dtype.element_ty == tl.uint8
    new_param, exp_avg, exp_avg_sq = adamnx_update(
        old_param, grad, exp_avg, exp_avg_sq, weight1, weight2, lr, weight_decay, eps, packed and NVIDIA
    )
    index = fold(start, offsets)
    if ROUNDING == "stochastic":
        bits = random_bits(index, step, number + PARAM_SALT)
        new_param = round_stochastically(new_param, bits & 0xFFFF)
    if ROUNDING == "kahan":
        new_param, residual = split(new_param)
        tl.store(residuals + offsets, residual, mask, cache_modifier=STORE)
    tl.store(params + offsets, new_param.to(param.dtype), mask, cache_modifier=STORE)
    store_moment(exp_avgs, exp_avg, offsets, mask, codes, exponents, there, index, step, number, True, STORE)
    store_moment(
        exp_avg_sqs, exp_avg_sq, offsets, mask, codes, exponents, there, index, step, number, False, STORE
    )


@triton.jit(do_not_specialize=["step"])
def step_kernel(
    table,
    grads,
    chunks,
    step,
    weight1,
    weight2,
    lr,
    weight_decay,
    eps,
    grad_scale,
    found_inf,
    COLUMNS: tl.constexpr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    EXP_AVG: tl.constexpr,
    EXP_AVG_SQ: tl.constexpr,
    STEPS_IN_MEMORY: tl.constexpr,
    WEIGHTS_IN_MEMORY: tl.constexpr,
    LR_IN_MEMORY: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    ROUNDING: tl.constexpr,
    ALIGNED: tl.constexpr,
    LOAD: tl.constexpr,
    STORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Steps one chunk, in each program.

    Args:
        table: int64 [parameters, COLUMNS], see :data:`COLUMNS`.
        grads: int64 [parameters], addresses of the gradients.
        chunks: int32 [programs], the row of `table` a chunk belongs to.
        step: t, an int, or if STEPS_IN_MEMORY float64 [parameters]. Seeds the rounding.
        weight1, weight2: numbers, or if WEIGHTS_IN_MEMORY float64 [parameters].
        lr: a number, or if LR_IN_MEMORY the address of one.
        weight_decay, eps: numbers.
        grad_scale: None, or the address of a number by which gradients are divided.
        found_inf: None, or the address of a number: unless it is 0 nothing is done.
        COLUMNS: :data:`COLUMNS`.
        PARAM, GRAD, EXP_AVG, EXP_AVG_SQ: dtypes of what the addresses point to.
        STEPS_IN_MEMORY, WEIGHTS_IN_MEMORY, LR_IN_MEMORY: see `step`, `weight1` and `lr`.
        MAXIMIZE: negates gradients.
        ROUNDING: how parameters are rounded, see :data:`adamnx_hf.optim.formats.PARAM_ROUNDINGS`.
        ALIGNED: all addresses are multiples of 16 bytes, so that 16 bytes are moved at a time; and so are the
            elements to a row, where moments are packed.
        LOAD, STORE: see :class:`adamnx_hf.optim.engines.triton.Tuning`.
        BLOCK: elements of a chunk, a power of 2; of SHARING or more where moments are packed.
    """
    if found_inf is not None:  # noqa: SIM102, Triton decides the outer one when it compiles
        if tl.load(found_inf) != 0.0:
            return

    chunk = tl.program_id(0)
    index = tl.load(chunks + chunk).to(tl.int64)
    row = table + index * COLUMNS
    columns = tl.load(row + 4)
    number = tl.load(row + 5)
    numel = tl.load(row + 6)
    chunk = chunk - tl.load(row + 7)  # int64, as tensors may have more than 2^31 elements
    param = tl.load(row).to(tl.pointer_type(PARAM))
    grad = tl.load(grads + index).to(tl.pointer_type(GRAD))
    exp_avg = tl.load(row + 1).to(tl.pointer_type(EXP_AVG))
    exp_avg_sq = tl.load(row + 2).to(tl.pointer_type(EXP_AVG_SQ))
    residual = tl.load(row + 3).to(tl.pointer_type(tl.int16))
    if ALIGNED:
        param = tl.multiple_of(param, 16)
        grad = tl.multiple_of(grad, 16)
        exp_avg = tl.multiple_of(exp_avg, 16)
        exp_avg_sq = tl.multiple_of(exp_avg_sq, 16)
        residual = tl.multiple_of(residual, 16)
        columns = tl.multiple_of(columns, 16)

    place = tl.load(row + 8)
    if STEPS_IN_MEMORY:
        step = tl.load(step + place).to(tl.int64)
    if WEIGHTS_IN_MEMORY:
        weight1 = tl.load(weight1 + place).to(tl.float32)
        weight2 = tl.load(weight2 + place).to(tl.float32)
    if LR_IN_MEMORY:
        lr = tl.load(lr).to(tl.float32)
    grad_factor = 1.0
    if grad_scale is not None:
        grad_factor = tl.div_rn(1.0, tl.load(grad_scale).to(tl.float32))

    if EXP_AVG == tl.uint8 or EXP_AVG_SQ == tl.uint8:
        start = chunk * BLOCK
        blocks = tl.cdiv(columns, SHARING).to(tl.int32)
        width = tl.cdiv(columns + blocks, ROW_BYTES) * ROW_BYTES
        places = tl.arange(0, BLOCK // SHARING)[:, None]
        line, block = divide((start // SHARING).to(tl.int32) + places, blocks)
        line = line.to(tl.int64)
        inside = block * SHARING + tl.arange(0, SHARING)[None, :]
        codes = line * width + inside
        exponents = line * width + columns + block
        # Rows of whole blocks follow one another without gaps, as if there were no rows.
        if (columns % SHARING == 0) & (start + BLOCK <= numel):
            within = places * SHARING + tl.arange(0, SHARING)[None, :]
            _step_chunk(
                param + start, grad + start, exp_avg, exp_avg_sq, residual + start, start, within,
                None, codes, exponents, None,
                step, number, weight1, weight2, lr, weight_decay, eps, grad_factor, MAXIMIZE, ROUNDING,
                LOAD, STORE,
            )  # fmt: skip
        else:
            there = start + places * SHARING < numel
            mask = there & (inside < columns)
            offsets = line * columns + inside
            _step_chunk(
                param, grad, exp_avg, exp_avg_sq, residual, 0, offsets, mask, codes, exponents, there,
                step, number, weight1, weight2, lr, weight_decay, eps, grad_factor, MAXIMIZE, ROUNDING,
                LOAD, STORE,
            )  # fmt: skip
    else:
        start = chunk * BLOCK
        offsets = tl.arange(0, BLOCK)
        param += start
        grad += start
        exp_avg += start
        exp_avg_sq += start
        residual += start
        # A mask of unknown alignment would make every access one element wide: only the last chunk has one.
        if start + BLOCK <= numel:
            _step_chunk(
                param, grad, exp_avg, exp_avg_sq, residual, start, offsets, None, None, None, None,
                step, number, weight1, weight2, lr, weight_decay, eps, grad_factor, MAXIMIZE, ROUNDING,
                LOAD, STORE,
            )  # fmt: skip
        else:
            mask = offsets < numel - start
            _step_chunk(
                param, grad, exp_avg, exp_avg_sq, residual, start, offsets, mask, None, None, None,
                step, number, weight1, weight2, lr, weight_decay, eps, grad_factor, MAXIMIZE, ROUNDING,
                LOAD, STORE,
            )  # fmt: skip


@triton.jit
def squares_kernel(
    table, grads, chunks, sums, GRAD: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    """Adds up the squares of one chunk of gradients, in each program.

    Args:
        table: int64 [gradients, 3]: elements, number of the first chunk, and a place that is not needed.
        grads: int64 [gradients], addresses.
        chunks: int32 [programs], the row of `table` a chunk belongs to.
        sums: float32 [programs], for the results.
        GRAD: dtype of what the addresses point to.
        ALIGNED: all addresses are multiples of 16 bytes.
        BLOCK: elements of a chunk, a power of 2.
    """
    program = tl.program_id(0)
    index = tl.load(chunks + program).to(tl.int64)
    numel = tl.load(table + index * 3)
    start = (program - tl.load(table + index * 3 + 1)) * BLOCK
    grad = tl.load(grads + index).to(tl.pointer_type(GRAD))
    if ALIGNED:
        grad = tl.multiple_of(grad, 16)
    offsets = tl.arange(0, BLOCK)
    grad += start
    # A mask of unknown alignment would make every access one element wide: only the last chunk has one.
    if start + BLOCK <= numel:
        values = tl.load(grad + offsets).to(tl.float32)
        tl.store(sums + program, tl.sum(values * values))
    else:
        values = tl.load(grad + offsets, offsets < numel - start, other=0.0).to(tl.float32)
        tl.store(sums + program, tl.sum(values * values))


@triton.jit(do_not_specialize=["count"])
def root_kernel(sums, result, count, BLOCK: tl.constexpr):
    """Writes the root of the sum of `sums`, float32 [count], to `result`, float32 [], in a single program.

    It adds them up in float64, always in the same order.
    """
    total = tl.full([BLOCK], 0.0, tl.float64)
    offsets = tl.arange(0, BLOCK)
    start = tl.program_id(0)  # 0, as there is one program
    while start < count:  # not a range, which Triton's interpreter cannot count with every numpy
        total += tl.load(sums + start + offsets, offsets < count - start, other=0.0).to(tl.float64)
        start += BLOCK
    tl.store(result, tl.sqrt(tl.sum(total)).to(tl.float32))
