"""Moments in bfloat16: rounded stochastically, unbiased, the same at every resume."""

import copy
import io
import itertools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adamnx_hf import AdamNX, from_adamw
from adamnx_hf.optim import schedules
from adamnx_hf.optim.formats import (
    decode,
    encode,
    join,
    packed_shape,
    random_bits,
    round_stochastically,
    split,
)
from adamnx_hf.optim.formats.int8 import BLOCK

CPU = torch.device("cpu")
FLAGS = {
    "default": {},
    "reference": {"foreach": False},
    "foreach": {"foreach": True},
    "capturable": {"capturable": True},
    "triton": {"fused": True},
    "triton capturable": {"fused": True, "capturable": True},
}
pytestmark = pytest.mark.usefixtures("on_a_card")
every_engine = pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)


# ---------------------------------------------------------------- rounding


def test_random_bits_are_uniform_and_independent():
    first, later, elsewhere = (random_bits(2**18, *at, CPU) for at in ((7, 3), (8, 3), (7, 4)))
    halves = [half for bits in (first, later, elsewhere) for half in (bits & 0xFFFF, bits >> 16 & 0xFFFF)]
    for half in halves:
        assert 0 <= half.min() and half.max() <= 0xFFFF
        counts = torch.histc(half.double(), 64, 0, 2**16)
        expected = 2**18 / 64
        assert ((counts - expected) ** 2 / expected).sum() < 120  # chi² of 63 degrees: 1 in 20,000 is above
    correlation = torch.corrcoef(torch.stack(halves).double()) - torch.eye(len(halves))
    assert correlation.abs().max() < 0.01
    assert torch.equal(first, random_bits(2**18, torch.tensor(7), 3, CPU))


def test_to_a_neighbour_and_right_on_average():
    values = torch.tensor([1.001, -1.007, 3e-39, 1e30, 0.1])
    bits = random_bits(5 * 2**16, 1, 0, CPU).view(5, -1) & 0xFFFF
    rounded = round_stochastically(values[:, None].expand(-1, 2**16), bits).float()
    for value, outcomes in zip(values, rounded, strict=True):
        low, high = outcomes.min(), outcomes.max()
        assert low <= value <= high
        gap = high - low
        assert torch.nextafter(low.bfloat16(), high.bfloat16()) == high.bfloat16()
        assert (outcomes.double().mean() - value).abs() < 0.01 * gap


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.5, float("inf"), float("-inf"), float("nan")])
def test_what_bfloat16_holds_stays_what_it_is(value):
    rounded = round_stochastically(torch.full((2**16,), value), torch.arange(2**16))
    assert_close(rounded.float(), torch.full((2**16,), value), rtol=0, atol=0, equal_nan=True)
    if value == 0:
        assert rounded.signbit().all() == torch.tensor(value).signbit()


def test_a_nan_of_all_ones_stays_nan():
    nan = torch.full((4,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    assert round_stochastically(nan, torch.tensor([0, 1, 2, 0xFFFF])).isnan().all()


def test_split_and_join_lose_nothing():
    random = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (2**18,), generator=random).to(torch.int32)
    edges = [0.0, -0.0, 1.0, 3.4028235e38, -3.4028235e38, 1e-45, float("inf"), float("-inf")]
    ties = torch.tensor([0x3F808000, 0x3F818000, -0x407F8000], dtype=torch.int32)  # halfway up and down
    values = torch.cat([bits.view(torch.float32), torch.tensor(edges), ties.view(torch.float32)])
    nearest, rest = split(values)
    assert nearest.dtype == rest.dtype == torch.bfloat16
    joined = join(nearest, rest)
    number = ~values.isnan()
    assert torch.equal(joined[number].view(torch.int32), values[number].view(torch.int32))
    assert joined[~number].isnan().all() and nearest[~number].isnan().all()
    # The nearest, up to which way halves go: what a model computes with is what it would be anyway.
    finite = values[number & values.abs().lt(3e38)]
    away = (split(finite)[0].double() - finite.double()).abs()
    assert (away <= (finite.bfloat16().double() - finite.double()).abs()).all()


# ---------------------------------------------------------------- 8 bits


def noise(shape, step=1):
    return random_bits(math.prod(shape), step, 0, CPU).view(shape) & 0xFFFF


def values_of_all_sizes(rows, columns, signed):
    random = torch.Generator().manual_seed(0)
    values = torch.randn(rows, columns, generator=random).exp() * torch.randn(rows, 1, generator=random).exp()
    return values * torch.randn(rows, columns, generator=random).sign() if signed else values


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("columns", [64, 128, 300])
def test_8_bits_are_a_neighbour_and_right_on_average(columns, signed):
    values = values_of_all_sizes(16, columns, signed)
    total, most = torch.zeros_like(values).double(), 0.0
    for step in range(300):
        packed = encode(values, noise(values.shape, step), signed=signed)
        assert packed.shape == packed_shape(values.shape) and packed.dtype == torch.uint8
        unpacked = decode(packed, columns, signed=signed)
        total += unpacked
        most = max(most, float((unpacked / values - 1).abs().max()))
    assert 0.11 < most < 1 / 8  # 8 steps to an octave
    relative = total / 300 / values - 1
    # The latter is 5 σ, halfway between the first two of an octave.
    assert relative.mean().abs() < 2e-4 and relative.abs().max() < 0.018
    # What is there already is stored as it is.
    again = encode(unpacked, noise(values.shape), signed=signed)
    assert torch.equal(decode(again, columns, signed=signed), unpacked)


def test_a_small_v_is_never_0_and_0_is():
    v = torch.ones(1, 128)
    v[0, :4] = torch.tensor([0.0, 1e-30, 2.0**-31, 1e-45])
    for step in range(50):
        unpacked = decode(encode(v, noise(v.shape, step), signed=False), 128, signed=False)[0]
        assert unpacked[0] == 0 and (unpacked[1:] > 0).all()
        assert unpacked[1] == unpacked[3] == 1.25 * 2.0**-31


# 1.15 and 1.2 are between the smallest code and the float that would be next below it.
@pytest.mark.parametrize("share", [0.4, 1.0, 1.15, 1.2])
def test_a_small_m_is_0_or_the_smallest_and_right_on_average(share):
    small, smallest = share * 2.0**-15, 1.25 * 2.0**-15
    m = torch.ones(1, 2**18)
    m[0, ::2] = -small
    unpacked = decode(encode(m, noise(m.shape), signed=True), 2**18, signed=True)[0, ::2]
    assert sorted(set(unpacked.tolist())) == [-smallest, 0.0]
    chance = small / smallest
    assert -unpacked.mean() / smallest == pytest.approx(
        chance, abs=4 * (chance * (1 - chance) / 2**17) ** 0.5
    )


@pytest.mark.parametrize("value", [1.875, 1.9999, 1.03, 0.96875, 1.0])
@pytest.mark.parametrize("signed", [False, True])
def test_rounding_over_the_end_of_an_octave_is_right_on_average(value, signed):
    """Also where it is the block's largest, which is then 2^k."""
    values = torch.full((1, 2**16), value)
    unpacked = decode(encode(values, noise(values.shape), signed=signed), 2**16, signed=signed)
    gap = 1 / 8 if value >= 1 else 1 / 16
    low = value // gap * gap
    assert set(unpacked.unique().tolist()) <= {low, low + gap}
    share = (value - low) / gap
    deviation = (share * (1 - share) / 2**16) ** 0.5
    assert (unpacked.double().mean().item() - low) / gap == pytest.approx(share, abs=4 * deviation + 1e-6)


# Of a nan there are many; that of all ones is what cards compute.
NAN_OF_ONES = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)


@pytest.mark.parametrize("bad", [math.inf, math.nan, NAN_OF_ONES, 3.4e38, 2.0**127])
@pytest.mark.parametrize("signed", [False, True])
def test_what_is_too_large_or_no_number_is_the_largest_there_is(signed, bad):
    largest = 2.0**63 if signed else 2.0**126
    values = torch.full((2, 3 * BLOCK), 2.0**50)
    values[1, BLOCK + 5] = bad
    values[0, 3] = -bad if signed else bad
    unpacked = decode(encode(values, noise(values.shape), signed=signed), 3 * BLOCK, signed=signed)
    assert unpacked[1, BLOCK + 5] == largest == unpacked[0, 3].abs()
    if signed and bad > 0:
        assert unpacked[0, 3] == -largest
    # The rest of the block is as with any large finite value there, and other blocks are as ever.
    assert (unpacked[1, BLOCK : BLOCK + 5] == (2.0**50 if signed else 1.25 * 2.0 ** (126 - 32))).all()
    assert (unpacked[1, :BLOCK] == 2.0**50).all() and (unpacked[1, 2 * BLOCK :] == 2.0**50).all()


@pytest.mark.parametrize("signed", [False, True])
def test_a_block_saved_as_nan_is_nan(signed):
    """No block is any more, since what is too large is the largest there is."""
    packed = encode(torch.ones(1, BLOCK), noise((1, BLOCK)), signed=signed)
    packed[0, BLOCK] = 255
    assert decode(packed, BLOCK, signed=signed).isnan().all()


@pytest.mark.parametrize("scale", [2.0**-120, 2.0**-60, 1.0, 2.0**55])
def test_8_bits_hold_any_scale(scale):
    values = values_of_all_sizes(4, 128, True) * scale
    unpacked = decode(encode(values, noise(values.shape), signed=True), 128, signed=True)
    kept = values.abs() > values.abs().amax(1, keepdim=True) * 2.0**-14
    assert ((unpacked / values - 1).abs()[kept] < 0.1251).all()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("power", [-100, -3, 126])
def test_what_codes_stand_for(signed, power):
    top = 127 if signed else 255
    codes = torch.arange(256)
    row = torch.cat([codes, torch.tensor([127 + power] * 2), torch.zeros(6)]).byte()[None]
    unpacked = decode(row, 256, signed=signed)[0]
    below = top - codes[1 : top + 1]  # C is 2^k, and each 8 codes below are an octave
    octave = -(-below // 8)
    exact = (1 + (8 * octave - below) / 8) * 2.0 ** (power - octave)
    assert unpacked[0] == 0 and torch.equal(unpacked[1 : top + 1], exact)
    if signed:
        assert torch.equal(unpacked[128:], -unpacked[:128])


# ---------------------------------------------------------------- in the optimizer


def bits(tensor):
    """To compare what may be a nan."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((3, 4), (1030,), (), (28, 3, 50))]


def train(optimizer, steps):
    for step in steps:
        for i, param in enumerate(optimizer.param_groups[0]["params"]):
            generator = torch.Generator().manual_seed(100 * step + i)
            param.grad = torch.randn(param.shape, generator=generator, device="cpu").to(param)
        optimizer.step()
    return optimizer


@every_engine
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_every_engine_rounds_alike(dtype, state_dtype, flags):
    ours = train(AdamNX(parameters(dtype), state_dtype=state_dtype, lr=0.01, **flags), range(4))
    twin = train(AdamNX(parameters(dtype), state_dtype=state_dtype, lr=0.01, foreach=False), range(4))
    # One in a hundred thousand elements may be rounded to the other neighbour: float32's last bit tips it.
    for a, b in zip(*(o.param_groups[0]["params"] for o in (ours, twin)), strict=True):
        assert ((a - b).abs() > 0.01 * b.abs() + 1e-3).sum() <= 0.005 * a.numel()
        x, y = (o.dequantize(p) for o, p in ((ours, a), (twin, b)))
        for name in ("exp_avg", "exp_avg_sq"):
            kept = ours.state[a][name]
            assert kept.dtype == twin.state[b][name].dtype
            assert kept.dtype == (torch.bfloat16 if state_dtype == "bfloat16" else torch.float32) or (
                a.ndim == 3 and kept.dtype == torch.uint8 and kept.shape == (28, 152)
            )
            apart = (x[name] - y[name]).abs() > 1e-5 * y[name].abs() + 1e-8
            assert apart.sum() <= 0.005 * apart.numel()
            assert ((x[name] - y[name]).abs() <= 0.2 * y[name].abs() + 1e-3).all()


@every_engine
def test_a_bad_gradient_makes_no_other_element_nan(flags):
    """The square of 3e19 is inf in float32. As in torch's AdamW only a nan or an inf makes an element nan."""
    bad = torch.tensor([3e19, -1e25, 3e38, math.nan, math.inf, -math.inf])
    rows, finite, column = torch.arange(len(bad)), bad.isfinite(), BLOCK + 5

    def train(bad, **flags):
        param = nn.Parameter(torch.zeros(16, 2 * BLOCK))
        optimizer, seen = AdamNX([param], lr=0.125, weight_decay=0.0, state_dtype="int8", **flags), []
        for step in range(4):
            param.grad = torch.ones_like(param)
            if step == 1:
                param.grad[rows, column] = bad
            optimizer.step()
            seen.append(param.detach().clone())
        return optimizer, param, torch.stack(seen)

    optimizer, param, seen = train(bad, **flags)
    assert torch.equal(seen[1:, rows, column].isnan(), ~finite.expand(3, -1))
    others = torch.ones_like(param, dtype=torch.bool)
    others[rows[~finite], column] = False
    assert seen[:, others].isfinite().all()
    # No step, at once or later, is longer than steps are.
    assert seen[:, others].diff(dim=0).abs().max() <= 0.15
    # Other blocks do not notice. In these v is 2^94 at least, the smallest there is beside 2^126.
    clean = train(torch.ones_like(bad), **flags)[2]
    others[rows, BLOCK:] = False
    assert torch.equal(seen[:, others], clean[:, others])

    twin, reference, expected = train(bad, foreach=False)
    assert_close(seen, expected, equal_nan=True)
    for name, largest in (("exp_avg", 2.0**63), ("exp_avg_sq", 2.0**126)):
        ours, theirs = optimizer.dequantize(param)[name], twin.dequantize(reference)[name]
        # Where a parameter is nan some engines have an infinite m and others a nan, which has no sign.
        assert_close(ours.abs(), theirs.abs(), rtol=1e-5, atol=0)
        assert ours.abs().max() <= largest
    # Whoever sets a parameter anew goes on with steps of ordinary length.
    param.data[rows, column] = 0
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert param[rows, column].abs().max() <= 0.15


STORAGE = {
    "bfloat16 moments": (torch.float32, {"state_dtype": "bfloat16"}),
    "8-bit moments": (torch.bfloat16, {"state_dtype": "int8"}),
    "stochastic parameters": (torch.bfloat16, {"state_dtype": "bfloat16", "param_rounding": "stochastic"}),
    "kahan parameters": (torch.bfloat16, {"state_dtype": "bfloat16", "param_rounding": "kahan"}),
}


@every_engine
@pytest.mark.parametrize(("dtype", "storage"), STORAGE.values(), ids=STORAGE)
def test_resumes_bit_for_bit(dtype, storage, flags):
    straight = train(AdamNX(parameters(dtype), **storage, **flags), range(4))
    saved = train(AdamNX(parameters(dtype), **storage, **flags), range(2))
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    params = [nn.Parameter(param.detach().clone()) for param in saved.param_groups[0]["params"]]
    resumed = AdamNX(params)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(resumed, range(2, 4))
    for a, b in zip(params, straight.param_groups[0]["params"], strict=True):
        assert torch.equal(a, b)
        assert set(resumed.state[a]) == set(straight.state[b])
        for name, value in straight.state[b].items():
            assert resumed.state[a][name].dtype == value.dtype
            assert torch.equal(bits(resumed.state[a][name]), bits(value))


def test_v_tracks_its_float32_twin_where_rounding_to_nearest_stands_still():
    torch.manual_seed(0)
    shape = (64, 64)
    size = torch.randn(shape).exp()
    exact, ours, packed = (nn.Parameter(torch.zeros(shape)) for _ in range(3))
    optimizers = [AdamNX([exact], lr=0.0)]
    optimizers += [
        AdamNX([p], lr=0.0, state_dtype=name) for p, name in ((ours, "bfloat16"), (packed, "int8"))
    ]
    nearest = torch.zeros(shape, dtype=torch.bfloat16)
    errors = []
    for step in range(1, 1501):
        exact.grad = ours.grad = packed.grad = size * torch.randn(shape)
        for optimizer in optimizers:
            optimizer.step()
        weight = schedules.adamnx(float(step), 0.99)
        nearest = nearest.float().lerp(exact.grad.square(), float(weight)).bfloat16()
        if step % 250 == 0:
            v = optimizers[0].state[exact]["exp_avg_sq"]
            kept = (
                optimizers[1].dequantize(ours)["exp_avg_sq"],
                optimizers[2].dequantize(packed)["exp_avg_sq"],
            )
            errors.append(torch.stack([one / v - 1 for one in kept]))
    # Each element goes its own random way, so the mean over them is what shows a bias.
    bias = torch.stack(errors).flatten(2).mean(2)
    assert bias[:, 0].abs().max() < 0.005 and bias[:, 1].abs().max() < 0.015
    spread = errors[-1].flatten(1).square().mean(1).sqrt()
    assert spread[0] < 0.06 and spread[1] < 0.25
    assert (nearest.float() / v - 1).mean() > 0.3


def test_bytes_of_8_bits():
    params = [nn.Parameter(torch.randn(shape)) for shape in ((256, 300), (300, 256), (64, 3, 8, 8), (4096,))]
    optimizer = AdamNX(params, state_dtype="int8")
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    for param in params[:3]:
        kept = sum(optimizer.state[param][key].nbytes for key in ("exp_avg", "exp_avg_sq"))
        assert kept <= 2.1 * param.numel()
    assert optimizer.state[params[3]]["exp_avg"].dtype == torch.float32  # no rows to share exponents


@pytest.mark.parametrize("state_dtype", ["bfloat16", torch.bfloat16])
def test_the_option_and_its_name_in_checkpoints(state_dtype):
    optimizer = train(AdamNX(parameters(), state_dtype=state_dtype), range(2))
    assert optimizer.state_dict()["param_groups"][0]["state_dtype"] == "bfloat16"
    copied = copy.deepcopy(optimizer)
    assert all(state["exp_avg_sq"].dtype == torch.bfloat16 for state in copied.state.values())
    one = optimizer.state[optimizer.param_groups[0]["params"][1]]
    assert one["exp_avg"].nbytes + one["exp_avg_sq"].nbytes == 1030 * 4


def test_groups_have_their_own_and_complex_moments_stay_complex():
    real, wide, whole = (
        nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.float32, torch.float64, torch.complex64)
    )
    groups = [{"params": [real, whole], "state_dtype": "bfloat16"}, {"params": [wide]}]
    optimizer = AdamNX(groups)
    for param in (real, wide, whole):
        param.grad = torch.ones_like(param)
    optimizer.step()
    dtypes = [optimizer.state[param]["exp_avg"].dtype for param in (real, wide, whole)]
    assert dtypes == [torch.bfloat16, torch.float64, torch.complex64]


@pytest.mark.parametrize("state_dtype", ["int4", torch.float16, "bf16"])
def test_other_formats_are_refused(state_dtype):
    with pytest.raises(
        ValueError, match=rf"Invalid state_dtype: {state_dtype}; choose one of float32, bfloat16, int8"
    ):
        AdamNX(parameters(), state_dtype=state_dtype)


# ---------------------------------------------------------------- bfloat16 parameters


@every_engine
@pytest.mark.parametrize("shape", [(3, 4), (1030,), ()])
def test_kahan_is_a_float32_master_copy(flags, shape):
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape).bfloat16())
    master = nn.Parameter(ours.detach().float())
    optimizers = AdamNX([ours], param_rounding="kahan", **flags), AdamNX([master], **flags)
    for _ in range(20):
        grad = torch.randn(shape).bfloat16()
        ours.grad, master.grad = grad, grad.float()
        for optimizer in optimizers:
            optimizer.step()
        rest = optimizers[0].state[ours]["param_residual"]
        joined = join(ours.detach(), rest)
        assert torch.equal(ours.detach(), split(joined)[0])
        if ours.is_cuda:
            # For each combination of dtypes the kernel is compiled anew, maybe with other multiplications and
            # additions in one. That is float32's last bit, of which each step may cost one.
            assert_close(joined, master.detach(), rtol=20 * 2**-23, atol=1e-7)
        else:
            assert torch.equal(joined, master.detach())


@every_engine
def test_parameters_are_rounded_alike_by_every_engine(flags):
    def step(**options):
        optimizer = train(
            AdamNX(parameters(torch.bfloat16), param_rounding="stochastic", lr=0.01, **options), [0]
        )
        return torch.cat([param.detach().flatten() for param in optimizer.param_groups[0]["params"]])

    ours, twin = step(**flags), step(foreach=False)
    assert (ours != twin).sum() <= 0.005 * len(twin)  # float32's last bit may tip the rounding of a few
    assert (step(**flags | {"weight_decay": 0.011}) != twin).any()


@every_engine
@pytest.mark.parametrize("rounding", ["stochastic", "kahan", "nearest"])
def test_what_nearest_loses_is_not_lost(rounding, flags):
    # An update of 1e-3 of the parameter, and a decay of 1e-4, far below bfloat16's 2^-9.
    param = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    still = nn.Parameter(torch.full((4096,), 0.5, dtype=torch.bfloat16))
    optimizer = AdamNX([param, still], lr=1e-3, weight_decay=0.1, param_rounding=rounding, **flags)
    for _ in range(10):
        param.grad, still.grad = torch.ones_like(param), torch.zeros_like(still)
        optimizer.step()
    moved = 1 - param.detach().float().mean()
    shrunk = 0.5 - still.detach().float().mean()
    if rounding == "nearest":
        assert moved == shrunk == 0
    elif rounding == "stochastic":
        assert moved.item() == pytest.approx(0.011, rel=0.1)
        assert shrunk.item() == pytest.approx(0.0005, rel=0.35)
    else:  # whole steps of bfloat16, once enough has come together
        assert moved.item() == pytest.approx(0.011, abs=2**-9)
        rest = optimizer.state[still]["param_residual"]
        assert 0.5 - join(still.detach(), rest).mean().item() == pytest.approx(0.0005, rel=1e-3)


def test_strided_parameters_keep_their_residuals_in_place():
    for flags in ({"foreach": False}, {}):
        whole = torch.ones(6, 8, dtype=torch.bfloat16)
        param, plain = nn.Parameter(whole[:, ::2]), nn.Parameter(torch.ones(6, 4, dtype=torch.bfloat16))
        optimizers = [AdamNX([p], param_rounding="kahan", **flags) for p in (param, plain)]
        for step in range(3):
            torch.manual_seed(step)
            grad = torch.randn(6, 4).bfloat16()
            for p, optimizer in zip((param, plain), optimizers, strict=True):
                p.grad = grad.clone()
                optimizer.step()
        assert torch.equal(param, plain) and (whole[:, 1::2] == 1).all()
        rests = [
            optimizer.state[p]["param_residual"]
            for p, optimizer in zip((param, plain), optimizers, strict=True)
        ]
        assert torch.equal(*map(bits, rests)) and rests[0].any()


@every_engine
@pytest.mark.parametrize("order", [(0, 2, 3, 1), (3, 2, 1, 0)], ids=["channels last", "transposed"])
def test_kahan_whatever_order_elements_lie_in(order, flags):
    """A kernel that walks memory is given tensors that all lie alike."""
    torch.manual_seed(0)
    values = torch.randn(4, 3, 2, 5).bfloat16()
    back = sorted(range(4), key=order.__getitem__)
    lying = nn.Parameter(values.permute(order).contiguous().permute(back))
    plain = nn.Parameter(values.clone())
    optimizers = [AdamNX([p], param_rounding="kahan", lr=0.01, **flags) for p in (lying, plain)]
    for _ in range(3):
        grad = torch.randn(values.shape).bfloat16()
        for p, optimizer in zip((lying, plain), optimizers, strict=True):
            p.grad = torch.empty_like(p).copy_(grad)
            optimizer.step()
    assert torch.equal(lying, plain)
    rests = [optimizer.state[p]["param_residual"] for optimizer in optimizers for p in optimizer.state]
    assert torch.equal(*map(bits, rests)) and rests[0].any()


def test_only_bfloat16_parameters_are_concerned():
    params = [nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.float32, torch.float16, torch.bfloat16)]
    optimizer = train(AdamNX(params, param_rounding="kahan"), range(2))
    assert ["param_residual" in optimizer.state[param] for param in params] == [False, False, True]


def test_no_such_rounding():
    with pytest.raises(ValueError, match="param_rounding: 'up'; choose one of nearest, stochastic, kahan"):
        AdamNX(parameters(), param_rounding="up")


# ---------------------------------------------------------------- from one format to another


def saved_with(**options):
    optimizer = train(AdamNX(parameters(torch.bfloat16), **options), range(3))
    return optimizer, copy.deepcopy(optimizer.state_dict())


def test_without_a_format_of_its_own_the_saved_one_stays():
    for options in (
        {},
        {"state_dtype": "bfloat16"},
        {"param_rounding": "kahan"},
        {"state_dtype": "bfloat16", "param_rounding": "stochastic"},
    ):
        saver, saved = saved_with(**options)
        loader = AdamNX(parameters(torch.bfloat16))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loader.load_state_dict(saved)
        for option, value in options.items():
            assert loader.param_groups[0][option] == value
        assert_same_state(loader, saver)


def assert_same_state(one, other):
    for a, b in zip(one.state.values(), other.state.values(), strict=True):
        assert set(a) == set(b)
        for key, value in b.items():
            assert a[key].dtype == value.dtype and torch.equal(bits(a[key]), bits(value))


def test_the_same_format_loads_in_silence():
    saver, saved = saved_with(state_dtype="bfloat16", param_rounding="kahan")
    loader = AdamNX(parameters(torch.bfloat16), state_dtype="bfloat16", param_rounding="kahan")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader.load_state_dict(saved)
    assert_same_state(loader, saver)


def test_wide_moments_become_bfloat16_without_a_bias():
    param = nn.Parameter(torch.zeros(2**16))
    saver = AdamNX([param])
    param.grad = torch.full_like(param, 1.001)
    saver.step()
    loader = AdamNX([nn.Parameter(torch.zeros(2**16))], state_dtype="bfloat16")
    with pytest.warns(UserWarning, match=r"converted to the one .* given \(state_dtype=bfloat16\)"):
        loader.load_state_dict(saver.state_dict())
    (state,) = loader.state.values()
    for key, exact in (("exp_avg", 1.001), ("exp_avg_sq", 1.001**2)):
        assert state[key].dtype == torch.bfloat16
        assert state[key].double().mean().item() == pytest.approx(exact, rel=1e-4)
    assert saver.state[param]["exp_avg"].dtype == torch.float32  # the saver's own are left alone


def test_bfloat16_moments_become_float32_as_they_are():
    saver, saved = saved_with(state_dtype="bfloat16")
    loader = AdamNX(parameters(torch.bfloat16), state_dtype="float32")
    with pytest.warns(UserWarning, match="state_dtype=float32"):
        loader.load_state_dict(saved)
    for a, b in zip(loader.state.values(), saver.state.values(), strict=True):
        assert a["exp_avg_sq"].dtype == torch.float32
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"].float())
    train(loader, [3])


@pytest.mark.parametrize("first", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("second", ["float32", "bfloat16", "int8"])
def test_from_each_format_to_each(first, second):
    saver, saved = saved_with(state_dtype=first)
    loader = AdamNX(parameters(torch.bfloat16), state_dtype=second)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        loader.load_state_dict(saved)
    changed = (first or "float32") != second
    assert [f"state_dtype={second}" in str(warning.message) for warning in told] == [True] * changed
    widest = {"float32": 0, "bfloat16": 2**-7, "int8": 1 / 8}
    for a, b in zip(loader.param_groups[0]["params"], saver.param_groups[0]["params"], strict=True):
        new, old = loader.dequantize(a), saver.dequantize(b)
        for key in old:
            small = 1e-4 * old[key].abs().max()  # m has 16 octaves
            assert ((new[key] - old[key]).abs() <= widest[second] * old[key].abs() + small).all()
    fresh = AdamNX(parameters(torch.bfloat16), state_dtype=second)
    train(fresh, [0])
    for one, other in zip(loader.state.values(), fresh.state.values(), strict=True):
        assert {k: (v.dtype, v.shape) for k, v in one.items()} == {
            k: (v.dtype, v.shape) for k, v in other.items()
        }
    train(loader, [3])


def test_residuals_come_and_go():
    _, saved = saved_with()
    loader = AdamNX(parameters(torch.bfloat16), param_rounding="kahan")
    with pytest.warns(UserWarning, match="param_rounding=kahan"):
        loader.load_state_dict(saved)
    assert all(not state["param_residual"].any() for state in loader.state.values())
    train(loader, [3])
    back = AdamNX(parameters(torch.bfloat16), param_rounding="stochastic")
    with pytest.warns(UserWarning, match="param_rounding=stochastic"):
        back.load_state_dict(loader.state_dict())
    assert not any("param_residual" in state for state in back.state.values())
    train(back, [4])


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled():
    """Every format in one graph, a group each: tracing is what takes the time."""
    storages = (
        {"state_dtype": "bfloat16", "param_rounding": "stochastic"},
        {"state_dtype": "bfloat16", "param_rounding": "kahan"},
        {"state_dtype": "int8"},
    )

    def build():
        groups = [
            {"params": [nn.Parameter(torch.randn(40, 3, 50).bfloat16())], **storage} for storage in storages
        ]
        return AdamNX(groups, lr=0.01)

    torch.manual_seed(0)
    eager = build()
    compiled = copy.deepcopy(eager)
    ours, theirs = (
        [group["params"][0] for group in optimizer.param_groups] for optimizer in (compiled, eager)
    )
    step = torch.compile(compiled.step, backend="aot_eager")  # as inductor sees it, without its C++
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            b.grad = torch.randn_like(b)
            a.grad = b.grad.clone()
        eager.step()
        step()
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-2, atol=1e-3)
        assert (a != b).sum() <= 0.01 * a.numel() + 1
    assert {compiled.state[ours[2]][key].dtype for key in ("exp_avg", "exp_avg_sq")} == {torch.uint8}


# ---------------------------------------------------------------- together with the rest


@every_engine
def test_equal_parameters_are_rounded_each_in_its_own_way(flags):
    params = [nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16)) for _ in range(4)]
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    optimizer = AdamNX(groups, lr=1e-3, param_rounding="stochastic", state_dtype="bfloat16", **flags)
    for param in params:
        param.grad = torch.full_like(param, 1.0078125)  # its square is no bfloat16
    optimizer.step()
    for kept in (params, [optimizer.state[param]["exp_avg_sq"] for param in params]):
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(kept, 2))


@every_engine
def test_a_parameter_is_rounded_by_its_own_bits_whoever_else_has_a_gradient(flags):
    def step(*with_gradient):
        params = [nn.Parameter(torch.ones(1000, dtype=torch.bfloat16)) for _ in range(3)]
        optimizer = AdamNX(params, lr=1e-3, param_rounding="stochastic", **flags)
        for i in with_gradient:
            params[i].grad = torch.ones_like(params[i])
        optimizer.step()
        return params[2]

    assert torch.equal(step(0, 1, 2), step(2))


def test_from_adamw_takes_the_formats():
    params = parameters(torch.bfloat16)
    adamw = train(torch.optim.AdamW(params), range(2))
    for state_dtype, dtype in (("bfloat16", torch.bfloat16), ("int8", torch.uint8)):
        options = {"state_dtype": state_dtype, "param_rounding": "kahan", "max_grad_norm": 1.0}
        optimizer = from_adamw(adamw, verbose=False, **options)
        state = optimizer.state[params[3]]
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == dtype
        assert not state["param_residual"].any() and optimizer.max_grad_norm == 1.0
        exact = adamw.state[params[3]]["exp_avg_sq"].float() / (1 - 0.999**2)
        assert_close(optimizer.dequantize(params[3])["exp_avg_sq"], exact, rtol=0.126, atol=1e-3)
        train(optimizer, [2])


def test_a_residual_is_the_business_of_bfloat16_alone():
    saver, saved = saved_with(param_rounding="kahan")
    train(saver, [3])
    wide = [nn.Parameter(param.detach().float()) for param in saver.param_groups[0]["params"]]
    before = [param.detach().clone() for param in wide]
    loader = AdamNX(wide)
    with pytest.warns(UserWarning, match=r"param_rounding=kahan for torch.float32"):
        loader.load_state_dict(saved)
    assert not any("param_residual" in state for state in loader.state.values())
    # Nor where a model has become another dtype since.
    param = nn.Parameter(torch.randn(6, 4).bfloat16())
    optimizer = train(AdamNX([param], param_rounding="kahan", lr=0.1), range(3))
    param.data = param.data.float()
    before = param.detach().clone()
    param.grad = torch.zeros(4, 6).t()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(param, before)


def test_a_rounding_that_comes_later():
    param = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = train(AdamNX([param]), [0])
    optimizer.param_groups[0]["param_rounding"] = "kahan"
    train(optimizer, [1])
    assert optimizer.state[param]["param_residual"].any()


@pytest.mark.parametrize(
    "options", [{"state_dtype": "bfloat16"}, {"state_dtype": "int8"}, {"param_rounding": "kahan"}]
)
def test_no_gradients_through_what_is_rounded_by_chance(options):
    with pytest.raises(RuntimeError, match="`differentiable` does not support what is rounded by chance"):
        AdamNX(parameters(), differentiable=True, **options)
