"""An engine, a state format and a schedule are each added in one table, and the rest follows."""

import copy
import io
import typing

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adamnx_hf import AdamNX, from_adamw
from adamnx_hf.optim import engines, formats, schedules
from adamnx_hf.optim.engines.contract import Abilities
from adamnx_hf.optim.update import adamnx_update

FLAGS = {
    "default": {},
    "foreach": {"foreach": True},
    "reference": {"foreach": False},
    "capturable": {"capturable": True},
    "triton": {"fused": True},
}
every_engine = pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
pytestmark = pytest.mark.usefixtures("on_a_card")


def build(dtype=torch.float32, **options):
    """An optimizer of a matrix, a strided matrix and a vector, on which `train` takes steps."""
    torch.manual_seed(0)
    tensors = [torch.randn(64, 80), torch.randn(6, 4)[:, ::2], torch.randn(5)]
    return AdamNX([nn.Parameter(tensor.to(dtype)) for tensor in tensors], lr=0.05, **options)


def train(*optimizers, steps=5, seed=1):
    torch.manual_seed(seed)
    for _ in range(steps):
        for params in zip(*(o.param_groups[0]["params"] for o in optimizers), strict=True):
            grad = torch.randn_like(params[0])
            for param in params:
                param.grad = grad.clone()
        for optimizer in optimizers:
            optimizer.step()


def check_equal(ours, theirs, **tolerances):
    for a, b in zip(*(o.param_groups[0]["params"] for o in (ours, theirs)), strict=True):
        assert_close(a, b, **tolerances)
        for key in ("exp_avg", "exp_avg_sq"):
            assert_close(ours.dequantize(a)[key], theirs.dequantize(b)[key], **tolerances)


# ---------------------------------------------------------------- an engine


class Loop:
    """A plain loop that says it is the fused engine of CPUs."""

    ABILITIES = Abilities(flag="fused")

    def __init__(self):
        self.steps = 0

    def why_not(self, case):
        return None if case.host_schedule and not case.differentiable else "the toy needs numbers of the host"

    def step_(self, columns, rule, extras):
        self.steps += len(columns.params)
        weights = {"weight1": rule.weight1, "weight2": rule.weight2}
        for param, grad, exp_avg, exp_avg_sq in zip(*columns.four(), strict=True):
            grad = -grad if rule.maximize else grad
            new = adamnx_update(
                param, grad, exp_avg, exp_avg_sq, **weights,
                lr=rule.lr, weight_decay=rule.weight_decay, eps=rule.eps,
            )  # fmt: skip
            for tensor, value in zip((param, exp_avg, exp_avg_sq), new, strict=True):
                tensor.copy_(value)


@pytest.fixture
def loop():
    """The toy engine, first in the table: the fastest. The order of the others is put back, too."""
    added, others = Loop(), dict(engines.ENGINES)
    engines.ENGINES.clear()
    engines.ENGINES.update({"toy": added, **others})
    yield added
    engines.ENGINES.clear()
    engines.ENGINES.update(others)


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"maximize": True}, {"state_dtype": "int8"}, {"param_rounding": "kahan"}, {"max_grad_norm": 0.1}],
    ids=str,
)
def test_an_engine(fused, options, loop):
    dtype = torch.bfloat16 if "param_rounding" in options else torch.float32
    ours, reference = build(dtype, fused=fused, **options), build(dtype, foreach=False, **options)
    train(ours, reference)
    assert loop.steps == 3 * 5
    check_equal(ours, reference)


def test_an_engine_says_what_it_cannot(loop):
    optimizer = build(fused=True, capturable=True)
    with pytest.raises(RuntimeError, match=r"fused=True cannot be used here \(toy: the toy needs numbers"):
        train(optimizer)
    optimizer = build(capturable=True)  # another engine serves
    train(optimizer)
    assert loop.steps == 0


# ---------------------------------------------------------------- a state format


class Half(formats.StateFormat):
    """float16 as codes in int16, v as its root: another dtype, other zeros, another layout."""

    narrow = packed = True

    def __init__(self):
        super().__init__(torch.int16)

    def fits(self, param):
        return param.ndim == 2 and param.dtype == torch.float32

    def shape(self, param):
        return torch.Size((param.shape[0], param.shape[1] + 1)) if param.ndim == 2 else param.shape

    def zeros(self, param):
        return torch.zeros(self.shape(param), dtype=torch.int16, device=param.device)

    def load(self, moment, param, role):
        values = moment[:, :-1].contiguous().view(torch.float16).float()
        return values if role == "exp_avg" else values.square()

    def store(self, moment, values, bits, role):
        values = values if role == "exp_avg" else values.sqrt()
        moment[:, :-1].copy_(values.half().view(torch.int16))


@pytest.fixture
def half(monkeypatch):
    monkeypatch.setitem(formats.FORMATS, "half", Half())


@every_engine
def test_a_format(flags, half):
    ours, plain = build(state_dtype="half", **flags), build(foreach=False)
    train(ours, plain)
    first, _, vector = ours.param_groups[0]["params"]
    assert ours.state[first]["exp_avg_sq"].dtype == torch.int16
    assert ours.state[first]["exp_avg_sq"].shape == (64, 81)
    assert ours.state[vector]["exp_avg_sq"].dtype == torch.float32  # the format does not fit
    check_equal(ours, plain, rtol=5e-3, atol=1e-3)
    reference = build(state_dtype="half", foreach=False)
    train(reference)
    check_equal(ours, reference, rtol=1e-3, atol=1e-4)


def test_a_format_is_saved_and_loaded(half):
    whole, halted = build(state_dtype="half"), build(state_dtype="half")
    train(whole, halted)
    file = io.BytesIO()
    torch.save(halted.state_dict(), file)
    file.seek(0)
    resumed = AdamNX(copy.deepcopy(halted.param_groups[0]["params"]), lr=0.05)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(whole, resumed, seed=2)
    for a, b in zip(*(o.param_groups[0]["params"] for o in (whole, resumed)), strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(whole.state[a][key], resumed.state[b][key]) for key in whole.state[a])


def test_a_state_is_converted_to_a_format_and_back(half):
    ours = build(state_dtype="half")
    plain = build()
    train(plain)
    with pytest.warns(UserWarning, match=r"converted to the one .*state_dtype=half"):
        ours.load_state_dict(plain.state_dict())
    (first, *_), (theirs, *_) = ours.param_groups[0]["params"], plain.param_groups[0]["params"]
    assert ours.state[first]["exp_avg"].dtype == torch.int16
    assert_close(ours.dequantize(first), plain.dequantize(theirs), rtol=5e-3, atol=1e-3)
    back = build(state_dtype="float32")
    with pytest.warns(UserWarning, match="state_dtype=float32"):
        back.load_state_dict(ours.state_dict())
    assert_close(back.state[back.param_groups[0]["params"][0]]["exp_avg"], ours.dequantize(first)["exp_avg"])


def test_a_format_is_refused_where_it_is_not_known(half, monkeypatch):
    optimizer = build(state_dtype="half")
    train(optimizer)
    saved = optimizer.state_dict()
    with pytest.raises(RuntimeError, match=r"`differentiable` does not support .*state_dtype=half"):
        build(state_dtype="half", differentiable=True)
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    state["exp_avg"] = state["exp_avg"][:, :-1]
    with pytest.raises(RuntimeError, match=r"shape \(64, 80\), the parameter \(64, 80\), packed \(64, 81\)"):
        train(optimizer)
    monkeypatch.delitem(formats.FORMATS, "half")
    for load in (lambda: build().load_state_dict(saved), lambda: build(state_dtype="half")):
        with pytest.raises(ValueError, match=r"half|int16|shape"):
            load()


def test_formats_are_told_apart_by_their_dtypes():
    assert len({known.dtype for known in formats.FORMATS.values()}) == len(formats.FORMATS)
    assert set(typing.get_args(formats.StateDtype)) == set(formats.FORMATS)
    assert typing.get_args(formats.ParamRounding) == formats.PARAM_ROUNDINGS


# ---------------------------------------------------------------- a schedule


def square_root(step, beta2):
    return step**-0.5


@pytest.fixture
def toy_schedule(monkeypatch):
    monkeypatch.setitem(schedules.BETA2_SCHEDULES, "toy", schedules.Schedule(square_root, 0.0))


@every_engine
def test_a_schedule(flags, toy_schedule):
    ours, reference = (build(beta2_schedule="toy", **options) for options in (flags, {"foreach": False}))
    train(ours, reference)
    check_equal(ours, reference, rtol=1e-5, atol=1e-6)
    first = ours.param_groups[0]["params"][0]
    other = build(foreach=False)
    train(other)
    assert not torch.equal(first, other.param_groups[0]["params"][0])


def test_a_schedule_is_saved_loaded_converted_and_refused(toy_schedule, monkeypatch):
    optimizer = build(beta2_schedule="toy")
    train(optimizer)
    twin = build()
    twin.load_state_dict(optimizer.state_dict())
    assert twin.param_groups[0]["beta2_schedule"] == "toy"
    adamw = torch.optim.AdamW(optimizer.param_groups[0]["params"])
    assert from_adamw(adamw, beta2_schedule="toy", verbose=False).param_groups[0]["beta2_schedule"] == "toy"
    monkeypatch.delitem(schedules.BETA2_SCHEDULES, "toy")
    with pytest.raises(ValueError, match="Invalid beta2_schedule: 'toy'; choose one of adamnx, adam"):
        build(beta2_schedule="toy")
    with pytest.raises(ValueError, match="options cannot be AdamNX's: Invalid beta2_schedule: 'toy'"):
        build().load_state_dict(optimizer.state_dict())


def test_the_default_beta2_is_the_schedules():
    assert AdamNX([nn.Parameter(torch.ones(1))]).defaults["betas"][1] == (
        schedules.BETA2_SCHEDULES["adamnx"].default_beta2
    )
