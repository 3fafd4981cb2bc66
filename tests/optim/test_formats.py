"""Moments in bfloat16: rounded stochastically, unbiased, the same at every resume."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adamnx_hf import AdamNX
from adamnx_hf.optim import schedules
from adamnx_hf.optim.formats import join, random_bits, round_stochastically, split

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


# ---------------------------------------------------------------- in the optimizer


def bits(tensor):
    """To compare what may be a nan."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


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


STORAGE = {
    "bfloat16 moments": (torch.float32, {"state_dtype": "bfloat16"}),
    "stochastic parameters": (torch.bfloat16, {"state_dtype": "bfloat16", "param_rounding": "stochastic"}),
    "kahan parameters": (torch.bfloat16, {"state_dtype": "bfloat16", "param_rounding": "kahan"}),
}


@every_engine
@pytest.mark.parametrize(("dtype", "storage"), STORAGE.values(), ids=STORAGE)
def test_resumes_bit_for_bit(dtype, storage, flags):
    straight = train(AdamNX(parameters(dtype), **storage, **flags), range(6))
    saved = train(AdamNX(parameters(dtype), **storage, **flags), range(3))
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    params = [nn.Parameter(param.detach().clone()) for param in saved.param_groups[0]["params"]]
    resumed = AdamNX(params)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(resumed, range(3, 6))
    for a, b in zip(params, straight.param_groups[0]["params"], strict=True):
        assert torch.equal(a, b)
        assert set(resumed.state[a]) == set(straight.state[b])
        for name, value in straight.state[b].items():
            assert resumed.state[a][name].dtype == value.dtype
            assert torch.equal(bits(resumed.state[a][name]), bits(value))


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
        assert torch.equal(join(ours.detach(), rest), master.detach())
        assert torch.equal(ours.detach(), split(master.detach())[0])


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


@pytest.mark.parametrize("storage", [{"param_rounding": "stochastic"}, {"param_rounding": "kahan"}])
def test_compiled(storage):
    def build():
        return AdamNX(parameters(torch.bfloat16), lr=0.01, state_dtype="bfloat16", **storage)

    eager, compiled = build(), build()
    torch._dynamo.reset()
    step = torch.compile(compiled.step, backend="aot_eager")  # as inductor sees it, without its C++
    for i in range(3):
        train(eager, [i])
        for a, b in zip(*(o.param_groups[0]["params"] for o in (compiled, eager)), strict=True):
            a.grad = b.grad.clone()
        step()
    for a, b in zip(*(o.param_groups[0]["params"] for o in (compiled, eager)), strict=True):
        assert_close(a, b, rtol=1e-2, atol=1e-3)
        assert (a != b).sum() <= 0.01 * a.numel() + 1
