"""from_adamw: a live torch.optim.Adam or AdamW goes on as AdamNX."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.testing import assert_close

from adamnx_hf import AdamNX, from_adamw
from adamnx_hf.optim.schedules import adamnx as adamnx_weight


def parameters(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes or [(3, 4), (4,)]]


def grouped(params):
    return [{"params": [params[0]], "lr": 0.02, "weight_decay": 0.1}, {"params": [params[1]], "eps": 1e-4}]


def all_params(optimizer):
    return list(itertools.chain(*(group["params"] for group in optimizer.param_groups)))


def train(optimizer, steps, start=0):
    for step in range(start, start + steps):
        for i, param in enumerate(all_params(optimizer)):
            generator = torch.Generator().manual_seed(1000 * step + i)
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


def twins(make, **kwargs):
    """Two of the same Adam over parameters of their own, a few steps in."""
    pair = [make(parameters(), **{"lr": 0.01, "betas": (0.9, 0.999), **kwargs}) for _ in range(2)]
    for optimizer in pair:
        train(optimizer, 5)
    return pair


SOURCES = {
    "AdamW": (AdamW, {}),
    "AdamW forloop": (AdamW, {"foreach": False}),
    "AdamW foreach": (AdamW, {"foreach": True}),
    "AdamW fused": (AdamW, {"fused": True}),
    "AdamW maximize": (AdamW, {"maximize": True, "weight_decay": 0.1}),
    "AdamW Tensor lr": (AdamW, {"lr": torch.tensor(0.01)}),
    "AdamW beta1 0": (AdamW, {"betas": (0.0, 0.999)}),
    "Adam": (Adam, {}),
    "Adam decoupled": (Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
}


@pytest.mark.parametrize(("make", "kwargs"), SOURCES.values(), ids=SOURCES)
def test_with_adams_schedule_training_goes_on_as_if_nothing_had_happened(make, kwargs):
    stays, converts = twins(make, **kwargs)
    converted = from_adamw(converts, beta2=0.999, beta2_schedule="adam", verbose=False)
    assert isinstance(converted, AdamNX)
    train(stays, 30, start=5)
    train(converted, 30, start=5)
    assert_close(all_params(converted), all_params(stays), rtol=1e-5, atol=1e-5)
    assert {int(state["step"]) for state in converted.state.values()} == {35}


def test_several_groups_keep_their_options():
    stays, converts = AdamW(grouped(parameters())), AdamW(grouped(parameters()))
    for optimizer in (stays, converts):
        optimizer.param_groups[1]["initial_lr"] = 0.5  # as schedulers leave it
        train(optimizer, 5)
    converted = from_adamw(converts, beta2=0.999, beta2_schedule="adam", verbose=False)
    for group, old in zip(converted.param_groups, converts.param_groups, strict=True):
        assert all(group[key] == old[key] for key in ("lr", "eps", "weight_decay", "betas", "maximize"))
        assert not {"amsgrad", "decoupled_weight_decay"} & set(group)
    assert converted.param_groups[1]["initial_lr"] == 0.5
    train(stays, 10, start=5)
    train(converted, 10, start=5)
    assert_close(all_params(converted), all_params(stays), rtol=1e-5, atol=1e-5)


def test_beta2_is_the_papers_unless_asked_otherwise():
    _, adamw = twins(AdamW)
    assert from_adamw(adamw, verbose=False).param_groups[0]["betas"] == (0.9, 0.99)
    converted = from_adamw(adamw, beta2=0.95, verbose=False)
    assert converted.param_groups[0]["betas"] == converted.defaults["betas"] == (0.9, 0.95)
    assert converted.param_groups[0]["beta2_schedule"] == "adamnx"


def test_moments_are_debiased_and_kept_in_float32():
    param = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    adamw = AdamW([param], betas=(0.9, 0.999))
    for _ in range(2):
        param.grad = torch.full_like(param, 2.0)
        adamw.step()
    state = from_adamw(adamw, verbose=False).state[param]
    # A constant gradient's unbiased averages are itself and its square; AdamW's v is in bfloat16.
    assert_close(state["exp_avg"], torch.full((3,), 2.0), rtol=1e-2, atol=0)
    assert_close(state["exp_avg_sq"], torch.full((3,), 4.0), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    "options", [{}, {"foreach": True}, {"foreach": False}, {"fused": True}, {"capturable": True}]
)
def test_options_are_those_of_adamnx(options):
    _, adamw = twins(AdamW)
    converted = from_adamw(adamw, verbose=False, **options)
    plain = from_adamw(copy.deepcopy(adamw), verbose=False)
    for optimizer in (converted, plain):
        train(optimizer, 3, start=5)
    assert options.items() <= converted.param_groups[0].items()
    assert_close(all_params(converted), all_params(plain))


def test_capturable_source_stays_capturable_without_fused(capsys):
    # torch keeps a capturable optimizer off the CPU; its state can be made by hand.
    params = parameters()
    adamw = AdamW(params)
    train(adamw, 3)
    adamw.param_groups[0].update(capturable=True, fused=True)
    converted = from_adamw(adamw)
    assert converted.param_groups[0]["capturable"]
    assert converted.param_groups[0]["fused"] is None
    assert "fused=True dropped" in capsys.readouterr().out
    train(converted, 1, start=3)
    assert converted.state[params[0]]["step"] == 4


def test_parameters_without_state_and_frozen_ones_keep_their_own_step():
    params = parameters((3,), (4,), (2,))
    adamw = AdamW(params)
    for step in range(4):
        params[0].grad = torch.ones(3)
        params[1].grad = torch.ones(4) if step == 0 else None
        adamw.step()
    converted = from_adamw(adamw, verbose=False)
    assert [int(converted.state[p]["step"]) for p in params[:2]] == [4, 1]
    assert params[2] not in converted.state
    # Constant gradients: each one's averages are right for its own step.
    for param in params[:2]:
        for name in ("exp_avg", "exp_avg_sq"):
            assert_close(converted.state[param][name], torch.ones_like(param))
    train(converted, 1)
    assert [int(converted.state[p]["step"]) for p in params] == [5, 2, 1]


def test_named_parameters_keep_their_names():
    adamw = AdamW(nn.Linear(3, 2).named_parameters())
    train(adamw, 1)
    assert from_adamw(adamw, verbose=False).param_groups[0]["param_names"] == ["weight", "bias"]


def test_source_is_left_as_it_was():
    _, adamw = twins(AdamW, lr=torch.tensor(0.01))
    params = all_params(adamw)
    before = copy.deepcopy([adamw.state[p] for p in params])
    groups = copy.deepcopy([{k: v for k, v in g.items() if k != "params"} for g in adamw.param_groups])
    converted = from_adamw(adamw, verbose=False)
    train(converted, 2)
    converted.param_groups[0]["lr"].fill_(0.5)  # how schedulers set a tensor lr
    converted.param_groups[0]["params"].pop()
    assert_close([adamw.state[p] for p in params], before, rtol=0, atol=0)
    assert all_params(adamw) == params
    assert [{k: v for k, v in g.items() if k != "params"} for g in adamw.param_groups] == groups


def test_report_says_what_was_done(capsys):
    adamw = AdamW(grouped(parameters((3,), (4,))))
    params = all_params(adamw)
    for step in range(4):
        params[0].grad = torch.ones(3)
        params[1].grad = torch.ones(4) if step else None
        adamw.step()
    from_adamw(adamw)
    report = capsys.readouterr().out
    assert "2 of 2 parameters" in report
    assert "2 groups" in report
    assert "(0.9, 0.99)" in report
    assert "step 3 to 4" in report
    assert f"weight {adamnx_weight(5.0, 0.99):.2g}" in report
    assert "schedulers" in report
    assert "amsgrad" not in report
    assert "L2" not in report


@pytest.mark.parametrize(
    ("make", "kwargs", "note"),
    [
        (AdamW, {"amsgrad": True}, "amsgrad's running maximum dropped"),
        (
            Adam,
            {"weight_decay": 0.25},
            "weight_decay=0.25 was added to the gradient (L2) and is now decoupled",
        ),
    ],
)
def test_what_changes_meaning_is_noted(make, kwargs, note, capsys):
    _, adam = twins(make, **kwargs)
    from_adamw(adam)
    assert capsys.readouterr().out.count(note) == 1
    from_adamw(adam, verbose=False)
    assert not any(capsys.readouterr())


def test_optimizer_that_has_not_stepped_is_converted_too(capsys):
    converted = from_adamw(AdamW(parameters(), lr=0.5))
    assert "0 of 2 parameters" in capsys.readouterr().out
    assert not converted.state
    assert converted.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("make", [SGD, AdamNX])
def test_other_optimizers_are_refused(make):
    with pytest.raises(TypeError, match=f"AdamW or Adam, got {make.__name__}"):
        from_adamw(make(parameters(), lr=0.1))


def test_wrong_options_are_refused():
    with pytest.raises(TypeError, match="momentum"):
        from_adamw(AdamW(parameters()), momentum=0.9)
    with pytest.raises(ValueError, match=r"at index 1: 1\.5"):
        from_adamw(AdamW(parameters()), beta2=1.5)
