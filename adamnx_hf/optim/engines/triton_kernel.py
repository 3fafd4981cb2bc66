"""The Triton kernel: AdamNX's step of any number of tensors in one launch. Needs torch's Triton, no more.

A launch covers a list of chunks, each BLOCK consecutive elements of one parameter. A program looks up which
parameter its chunk belongs to and where that parameter's tensors lie, so tensors of all sizes share a launch.
"""

import triton
import triton.language as tl

# As in adamnx_hf.optim.formats.
PARAM_SALT = tl.constexpr(1 << 30)

__all__ = ["COLUMNS", "adamnx_update", "step_kernel"]

#: int64 columns of the table of parameters: addresses of param, exp_avg, exp_avg_sq and param_residual (or
#: 0), number of elements, number of the first chunk, place in the lists of weights.
COLUMNS = 7


@triton.jit
def adamnx_update(param, grad, exp_avg, exp_avg_sq, weight1, weight2, lr, weight_decay, eps):
    """:func:`adamnx_hf.optim.update.adamnx_update` in float32."""
    param = param * (1 - lr * weight_decay)
    exp_avg = (1 - weight1) * exp_avg + weight1 * grad
    # Not (1 - weight2) · v, which float32 would round to v long before v stands still. An infinite v, which
    # that would leave alone, needs care here.
    averaged = exp_avg_sq - weight2 * exp_avg_sq + weight2 * (grad * grad)
    exp_avg_sq = tl.where(exp_avg_sq == float("inf"), exp_avg_sq, averaged)
    # Correctly rounded: memory sets the pace. The approximate square root would flush a tiny v to 0.
    param = param - lr * tl.div_rn(exp_avg, tl.sqrt_rn(exp_avg_sq) + eps)
    return param, exp_avg, exp_avg_sq


@triton.jit
def random_bits(index, step, place):
    """:func:`adamnx_hf.optim.formats.random_bits`, of elements `index` (int64)."""
    bits = (index ^ (index >> 32)).to(tl.uint32) * 0x9E3779B1
    bits = bits ^ step.to(tl.uint32) * 0x85EBCA77 ^ place.to(tl.uint32) * 0xC2B2AE3D
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    return bits ^ (bits >> 16)


@triton.jit
def round_stochastically(values, bits):
    """:func:`adamnx_hf.optim.formats.round_stochastically`, left in float32."""
    wide = values.to(tl.uint32, bitcast=True) + bits
    rounded = (wide & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where(values == values, rounded, values)  # a nan of all ones would carry over into the sign


@triton.jit
def split(values):
    """:func:`adamnx_hf.optim.formats.split`, the first half left in float32."""
    bits = values.to(tl.uint32, bitcast=True)
    upper = (bits + 0x8000) & 0xFFFF0000
    number = values == values
    nearest = tl.where(number, upper.to(tl.float32, bitcast=True), values)
    return nearest, tl.where(number, (bits - upper).to(tl.int16), 0)


@triton.jit
def join(param, residual):
    """:func:`adamnx_hf.optim.formats.join`."""
    wide = param.to(tl.float32)
    bits = wide.to(tl.uint32, bitcast=True) + residual.to(tl.int32).to(tl.uint32, bitcast=True)
    return tl.where(wide == wide, bits.to(tl.float32, bitcast=True), wide)


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
    step,
    place,
    weight1,
    weight2,
    lr,
    weight_decay,
    eps,
    grad_factor,
    MAXIMIZE: tl.constexpr,
    EXP_AVG: tl.constexpr,
    EXP_AVG_SQ: tl.constexpr,
    ROUNDING: tl.constexpr,
):
    param = tl.load(params + offsets, mask)
    old_param = param.to(tl.float32)
    if ROUNDING == "kahan":
        old_param = join(param, tl.load(residuals + offsets, mask))
    grad = tl.load(grads + offsets, mask).to(tl.float32) * grad_factor
    exp_avg = tl.load(exp_avgs + offsets, mask)
    exp_avg_sq = tl.load(exp_avg_sqs + offsets, mask)
    if MAXIMIZE:
        grad = -grad
    new_param, new_exp_avg, new_exp_avg_sq = adamnx_update(
        old_param,
        grad,
        exp_avg.to(tl.float32),
        exp_avg_sq.to(tl.float32),
        weight1,
        weight2,
        lr,
        weight_decay,
        eps,
    )
    if EXP_AVG == tl.bfloat16 or EXP_AVG_SQ == tl.bfloat16:
        bits = random_bits(start + offsets, step, place)
        if EXP_AVG == tl.bfloat16:
            new_exp_avg = round_stochastically(new_exp_avg, bits & 0xFFFF)
        if EXP_AVG_SQ == tl.bfloat16:
            new_exp_avg_sq = round_stochastically(new_exp_avg_sq, bits >> 16)
    if ROUNDING == "stochastic":
        bits = random_bits(start + offsets, step, place + PARAM_SALT)
        new_param = round_stochastically(new_param, bits & 0xFFFF)
    if ROUNDING == "kahan":
        new_param, residual = split(new_param)
        tl.store(residuals + offsets, residual, mask)
    tl.store(params + offsets, new_param.to(param.dtype), mask)
    tl.store(exp_avgs + offsets, new_exp_avg.to(exp_avg.dtype), mask)
    tl.store(exp_avg_sqs + offsets, new_exp_avg_sq.to(exp_avg_sq.dtype), mask)


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
    BLOCK: tl.constexpr,
):
    """One program steps one chunk.

    Args:
        table: int64 [parameters, COLUMNS], see :data:`COLUMNS`.
        grads: int64 [parameters], addresses of the gradients.
        chunks: int32 [programs], the row of `table` a chunk belongs to.
        step: t, an int32, or if STEPS_IN_MEMORY float64 [parameters]. Seeds the rounding.
        weight1, weight2: numbers, or if WEIGHTS_IN_MEMORY float64 [parameters].
        lr: a number, or if LR_IN_MEMORY the address of one.
        weight_decay, eps: numbers.
        grad_scale: None, or the address of a number by which gradients are divided.
        found_inf: None, or the address of a number: unless it is 0 nothing is done.
        COLUMNS: :data:`COLUMNS`.
        PARAM, GRAD, EXP_AVG, EXP_AVG_SQ: dtypes of what the addresses point to.
        STEPS_IN_MEMORY, WEIGHTS_IN_MEMORY, LR_IN_MEMORY: see `step`, `weight1` and `lr`.
        MAXIMIZE: negates gradients.
        ROUNDING: of parameters, see :data:`adamnx_hf.optim.formats.PARAM_ROUNDINGS`.
        ALIGNED: all addresses are multiples of 16 bytes, so that 16 bytes are moved at a time.
        BLOCK: elements of a chunk, a power of 2.
    """
    if found_inf is not None:  # noqa: SIM102, Triton decides the outer one when it compiles
        if tl.load(found_inf) != 0.0:
            return

    chunk = tl.program_id(0)
    index = tl.load(chunks + chunk).to(tl.int64)
    row = table + index * COLUMNS
    numel = tl.load(row + 4)
    start = (chunk - tl.load(row + 5)) * BLOCK  # int64, as tensors may have more than 2^31 elements
    param = tl.load(row).to(tl.pointer_type(PARAM)) + start
    grad = tl.load(grads + index).to(tl.pointer_type(GRAD)) + start
    exp_avg = tl.load(row + 1).to(tl.pointer_type(EXP_AVG)) + start
    exp_avg_sq = tl.load(row + 2).to(tl.pointer_type(EXP_AVG_SQ)) + start
    residual = tl.load(row + 3).to(tl.pointer_type(tl.int16)) + start
    if ALIGNED:
        param = tl.multiple_of(param, 16)
        grad = tl.multiple_of(grad, 16)
        exp_avg = tl.multiple_of(exp_avg, 16)
        exp_avg_sq = tl.multiple_of(exp_avg_sq, 16)
        residual = tl.multiple_of(residual, 16)

    place = tl.load(row + 6)
    if STEPS_IN_MEMORY:
        step = tl.load(step + place).to(tl.int32)
    if WEIGHTS_IN_MEMORY:
        weight1 = tl.load(weight1 + place).to(tl.float32)
        weight2 = tl.load(weight2 + place).to(tl.float32)
    if LR_IN_MEMORY:
        lr = tl.load(lr).to(tl.float32)
    grad_factor = 1.0
    if grad_scale is not None:
        grad_factor = tl.div_rn(1.0, tl.load(grad_scale).to(tl.float32))

    offsets = tl.arange(0, BLOCK)
    # A mask of unknown alignment would make every access one element wide: only the last chunk has one.
    if start + BLOCK <= numel:
        _step_chunk(
            param, grad, exp_avg, exp_avg_sq, residual, start, offsets, None, step, place,
            weight1, weight2, lr, weight_decay, eps, grad_factor, MAXIMIZE, EXP_AVG, EXP_AVG_SQ, ROUNDING,
        )  # fmt: skip
    else:
        _step_chunk(
            param, grad, exp_avg, exp_avg_sq, residual, start, offsets, offsets < numel - start, step, place,
            weight1, weight2, lr, weight_decay, eps, grad_factor, MAXIMIZE, EXP_AVG, EXP_AVG_SQ, ROUNDING,
        )  # fmt: skip
