"""Moments in bfloat16: rounded stochastically, unbiased, the same at every resume."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adamnx_hf import AdamNX
from adamnx_hf.optim import schedules
from adamnx_hf.optim.formats import random_bits, round_stochastically

CPU = torch.device("cpu")
FLAGS = {
    "default": {},
    "reference": {"foreach": False},
    "foreach": {"foreach": True},
    "capturable": {"capturable": True},
    "triton": {"fused": True},
    "triton capturable": {"fused": True, "capturable": True},
}
every_engine = pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)


# ---------------------------------------------------------------- rounding


def test_random_bits_are_uniform_and_independent():
    first, later, elsewhere = (random_bits(2**18, *at, CPU) for at in ((7, 3), (8, 3), (7, 4)))
    halves = [half for bits in (first, later, elsewhere) for half in (bits & 0xFFFF, bits >> 16)]
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


# ---------------------------------------------------------------- in the optimizer


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((3, 4), (1030,), ())]


def train(optimizer, steps):
    for step in steps:
        for i, param in enumerate(optimizer.param_groups[0]["params"]):
            generator = torch.Generator().manual_seed(100 * step + i)
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()
    return optimizer


@every_engine
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_engine_rounds_alike(dtype, flags):
    ours = train(AdamNX(parameters(dtype), state_dtype="bfloat16", lr=0.01, **flags), range(4))
    twin = train(AdamNX(parameters(dtype), state_dtype="bfloat16", lr=0.01, foreach=False), range(4))
    for a, b in zip(*(o.param_groups[0]["params"] for o in (ours, twin)), strict=True):
        assert_close(a, b, rtol=1e-2, atol=1e-3)
        for name in ("exp_avg", "exp_avg_sq"):
            x, y = ours.state[a][name], twin.state[b][name]
            assert x.dtype == torch.bfloat16
            # float32's last bit may tip the rounding of a few.
            assert (x != y).sum() <= 0.005 * x.numel()
            assert_close(x, y, rtol=2e-2, atol=1e-3)


@every_engine
def test_resumes_bit_for_bit(flags):
    straight = train(AdamNX(parameters(), state_dtype="bfloat16", **flags), range(6))
    saved = train(AdamNX(parameters(), state_dtype="bfloat16", **flags), range(3))
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    params = [nn.Parameter(param.detach().clone()) for param in saved.param_groups[0]["params"]]
    resumed = AdamNX(params)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(resumed, range(3, 6))
    for a, b in zip(params, straight.param_groups[0]["params"], strict=True):
        assert torch.equal(a, b)
        for name in ("exp_avg", "exp_avg_sq"):
            assert resumed.state[a][name].dtype == torch.bfloat16
            assert torch.equal(resumed.state[a][name], straight.state[b][name])


def test_v_tracks_its_float32_twin_where_rounding_to_nearest_stands_still():
    torch.manual_seed(0)
    size = torch.randn(512).exp()
    exact, ours = (nn.Parameter(torch.zeros(512)) for _ in range(2))
    optimizers = AdamNX([exact], lr=0.0), AdamNX([ours], lr=0.0, state_dtype="bfloat16", foreach=False)
    nearest = torch.zeros(512, dtype=torch.bfloat16)
    errors = []
    for step in range(1, 5001):
        exact.grad = ours.grad = size * torch.randn(512)
        for optimizer in optimizers:
            optimizer.step()
        weight = schedules.adamnx(float(step), 0.99)
        nearest = nearest.float().lerp(exact.grad.square(), float(weight)).bfloat16()
        if step % 250 == 0:
            v = optimizers[0].state[exact]["exp_avg_sq"]
            errors.append(optimizers[1].state[ours]["exp_avg_sq"].float() / v - 1)
    # Each element goes its own random way, so the mean over 512 is what shows a bias.
    assert torch.stack(errors).mean(1).abs().max() < 0.01
    assert torch.stack(errors).mean().abs() < 0.005
    assert errors[-1].square().mean().sqrt() < 0.06
    assert (nearest.float() / v - 1).mean() > 0.3


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


@pytest.mark.parametrize("state_dtype", ["int8", torch.float16, "bf16"])
def test_other_formats_are_refused(state_dtype):
    with pytest.raises(
        ValueError, match=rf"Invalid state_dtype: {state_dtype}; choose one of float32, bfloat16"
    ):
        AdamNX(parameters(), state_dtype=state_dtype)
