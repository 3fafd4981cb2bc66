"""The counter of steps goes on beyond 2^24, where float32 would stand still; and so do the random bits."""

import io

import pytest
import torch
from flags_of_engines import ENGINES
from torch import nn

from adamnx_hf import AdamNX, LayerwiseAdamNX, adamnx

every_engine = pytest.mark.parametrize("flags", [{}, *ENGINES.values()], ids=["default", *ENGINES])
pytestmark = pytest.mark.usefixtures("on_a_card")
LATE = 2**24 - 2


def start(dtype, at=LATE, kind=AdamNX, size=64, **options):
    """An optimizer, and its parameter, after `at` steps."""
    param = nn.Parameter(torch.ones(size, dtype=dtype))
    optimizer = kind([param], lr=1e-3, weight_decay=0.0, **options)
    param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.state[param]["step"].fill_(at)
    return param, optimizer


def step(param, optimizer):
    param.grad = torch.ones_like(param)
    optimizer.step()
    return float(optimizer.state[param]["step"])


def through_file(saved):
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_engine
def test_every_step_counts(flags):
    param, optimizer = start(torch.float32, **flags)
    assert [step(param, optimizer) for _ in range(5)] == [LATE + i for i in range(1, 6)]
    # Loaded where torch would cast it to float32, too.
    for other in ({}, {"fused": True}, {"capturable": True}):
        twin, loader = start(torch.float32, at=1, **other)
        loader.load_state_dict(through_file(optimizer.state_dict()))
        loader.param_groups[0].update({"capturable": False, "fused": None} | other)
        assert step(twin, loader) == LATE + 6
        assert loader.state[twin]["step"].dtype == torch.float64


@every_engine
@pytest.mark.parametrize(
    "options", [{"param_rounding": "stochastic"}, {"state_dtype": "bfloat16"}], ids=["parameters", "moments"]
)
@pytest.mark.parametrize("late", [LATE, 2**31 - 2], ids=["2^24", "2^31"])
def test_random_bits_do_not_repeat(late, options, flags):
    param, optimizer = start(torch.bfloat16, at=late, **flags, **options)
    moment = optimizer.state[param]["exp_avg"]
    changes = set()
    for _ in range(6):
        with torch.no_grad():
            param.fill_(1.0)
            moment.fill_(1 / 3)
        step(param, optimizer)
        seen = param.detach() if "param_rounding" in options else moment
        changes.add(tuple(seen.float().tolist()))
    assert len(changes) == 6


def test_every_engine_has_the_same_bits():
    results = []
    for flags in ({"fused": True}, {"foreach": False}, {"capturable": True}):
        param, optimizer = start(torch.bfloat16, param_rounding="stochastic", **flags)
        for _ in range(4):
            step(param, optimizer)
        results.append(param.detach())
    assert all(torch.equal(result, results[0]) for result in results)


def test_within_the_backward_pass():
    param, optimizer = start(torch.float32, kind=LayerwiseAdamNX)
    assert [step(param, optimizer) for _ in range(4)] == [LATE + i for i in range(1, 5)]


@every_engine
@pytest.mark.parametrize("step_of", [float, int, torch.tensor, lambda s: torch.tensor(float(s))])
def test_a_state_of_before_goes_on(step_of, flags):
    """Steps were float32 tensors; the authors', and older ones, are numbers."""
    param, optimizer = start(torch.float32, **flags)
    saved = optimizer.state_dict()
    saved["state"][0]["step"] = step_of(LATE)
    optimizer.load_state_dict(saved)
    assert [step(param, optimizer) for _ in range(4)] == [LATE + i for i in range(1, 5)]


def test_a_float32_step_of_the_callers_is_refused_where_it_ends():
    numbers = {"beta1": 0.9, "beta2": 0.99, "lr": 0.5, "weight_decay": 0.0, "eps": 1e-8}
    for dtype in (torch.float32, torch.float64):
        tensors = [[torch.ones(3)] for _ in range(4)]
        late = torch.tensor(LATE + 1.0, dtype=dtype)
        adamnx(*tensors, [late], **numbers)
        before = tensors[0][0].clone()
        if dtype == torch.float64:
            adamnx(*tensors, [late], **numbers)
            assert late == LATE + 3
            continue
        with pytest.raises(ValueError, match="a step of float32 counts to 16,777,216 and no further"):
            adamnx(*tensors, [late], **numbers)
        assert late == LATE + 2 and torch.equal(tensors[0][0], before)


@pytest.mark.parametrize("foreach", [True, False])
def test_counters_that_cannot_be_read_are_told_before_anything_is_stepped(foreach):
    dtypes = (
        torch.float32,
        torch.float64,
        torch.float64,
    )  # two buckets; counters of the second differ
    params, moments, squares = ([torch.ones(3, dtype=dtype) for dtype in dtypes] for _ in range(3))
    steps = [torch.zeros(()), torch.zeros(()), torch.zeros(1)]
    grads = [torch.ones_like(param) for param in params]
    options = {"beta1": 0.9, "beta2": 0.99, "lr": 0.1, "weight_decay": 0.1, "eps": 1e-8}
    with pytest.raises(RuntimeError, match="stack expects each tensor"):
        adamnx(params, grads, moments, squares, steps, capturable=True, foreach=foreach, **options)
    assert all((tensor == 1).all() for tensor in (*params, *moments, *squares)) and not any(steps)
