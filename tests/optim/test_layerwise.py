"""Gradient release: AdamNX's very steps, with no gradient left behind."""

import copy
import gc
import io

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adamnx_hf import AdamNX, LayerwiseAdamNX


def network():
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(8, 1))


def loss_of(model, step):
    data = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
    return (model(data) - data.sum(1, keepdim=True)).square().mean()


def groups(model):
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    return [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0, "lr": 0.02}]


def assert_same(a, b):
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert_close(x, y, rtol=0, atol=0)


OPTIONS = [
    {},
    {"foreach": False},
    {"state_dtype": "bfloat16"},
    {"beta2_schedule": "adam", "maximize": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_steps_as_adamnx(options):
    released, usual = network(), network()
    if (
        "state_dtype" in options
    ):  # its random bits go by the place in the list, and here each has its own list
        usual_optimizer = [AdamNX([p], lr=0.01, **options) for p in usual.parameters()]
        optimizer = LayerwiseAdamNX(released.parameters(), lr=0.01, **options)
    else:
        usual_optimizer = [AdamNX(groups(usual), lr=0.01, **options)]
        optimizer = LayerwiseAdamNX(groups(released), lr=0.01, **options)
    schedulers = [
        torch.optim.lr_scheduler.LinearLR(one, total_iters=5) for one in (optimizer, *usual_optimizer)
    ]
    for step in range(6):
        loss_of(released, step).backward()
        assert all(param.grad is None for param in released.parameters())
        loss_of(usual, step).backward()
        for one in (optimizer, *usual_optimizer):
            one.step()
            one.zero_grad()
        for scheduler in schedulers:
            scheduler.step()
        assert_same(released, usual)
    assert {float(state["step"]) for state in optimizer.state.values()} == {6.0}


def test_no_two_layers_gradients_are_there_at_once():
    def most(make):
        model = network()
        optimizer = make(model.parameters(), lr=0.01)
        seen = []
        for layer in model:
            layer.register_full_backward_pre_hook(
                lambda *_: seen.append(sum(p.grad is not None for p in model.parameters()))
            )
        loss_of(model, 0).backward()
        optimizer.step()
        return max(seen)

    assert most(AdamNX) == 12  # all but the first layer's, when the first layer's turn comes
    assert most(LayerwiseAdamNX) == 0


def test_a_second_backward_pass_is_refused_before_anything_is_lost():
    model = network()
    optimizer = LayerwiseAdamNX(model.parameters())
    loss_of(model, 0).backward()
    before = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match=r"cannot be accumulated: call step\(\) after each backward"):
        loss_of(model, 1).backward()
    assert_same(model, before)
    optimizer.zero_grad()
    optimizer.step()
    loss_of(model, 1).backward()


def test_a_closure_and_gradients_from_elsewhere():
    models = network(), network()
    released, usual = (
        kind(m.parameters(), lr=0.01) for kind, m in zip((LayerwiseAdamNX, AdamNX), models, strict=True)
    )
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)  # no hook, and a gradient all the same
    twin = nn.Parameter(torch.ones(3))
    for optimizer, param in ((released, frozen), (usual, twin)):
        optimizer.add_param_group({"params": [param]})

    def closure(model):
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    frozen.grad, twin.grad = torch.ones(3), torch.ones(3)
    losses = [o.step(lambda m=m: closure(m)) for o, m in zip((released, usual), models, strict=True)]
    assert losses[0] == losses[1] > 0
    assert_same(*models)
    assert_close(frozen.detach(), twin.detach())
    assert frozen.grad is None


def test_clips_each_gradient_by_its_own_norm():
    model, usual = network(), network()
    optimizer = LayerwiseAdamNX(model.parameters(), lr=0.01, max_grad_norm=0.01)
    others = [AdamNX([p], lr=0.01, max_grad_norm=0.01) for p in usual.parameters()]
    for step in range(3):
        loss_of(model, step).backward()
        loss_of(usual, step).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in usual.parameters()])
        for one in (optimizer, *others):
            one.step()
        assert_close(optimizer.grad_norm, norm)
        usual.zero_grad()
        assert_same(model, usual)
    optimizer.step()
    assert optimizer.grad_norm is None


def test_saved_and_loaded_by_either_kind():
    def go_on(kind, saved, weights):
        model = network()
        model.load_state_dict(weights)
        optimizer = kind(model.parameters(), lr=0.01)
        optimizer.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
        for step in range(3, 5):
            loss_of(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    model = network()
    optimizer = LayerwiseAdamNX(model.parameters(), lr=0.01)
    for step in range(3):
        loss_of(model, step).backward()
        optimizer.step()
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    weights = copy.deepcopy(model.state_dict())
    for step in range(3, 5):
        loss_of(model, step).backward()
        optimizer.step()
    for kind in (LayerwiseAdamNX, AdamNX):
        assert_same(go_on(kind, buffer.getvalue(), weights), model)


def test_a_new_optimizer_takes_over_and_a_forgotten_one_is_gone():
    model, usual = network(), network()
    old = LayerwiseAdamNX(model.parameters(), lr=0.5)
    new = LayerwiseAdamNX(model.parameters(), lr=0.01)
    plain = AdamNX(usual.parameters(), lr=0.01)
    loss_of(model, 0).backward()
    loss_of(usual, 0).backward()
    plain.step()
    assert_same(model, usual)
    assert not old.state and new.state
    del old, new
    gc.collect()
    loss_of(model, 1).backward()
    assert all(param.grad is not None for param in model.parameters())


def test_a_copy_steps_its_own_parameters():
    model = network()
    optimizer = LayerwiseAdamNX(model.parameters(), lr=0.01)
    other, copied = copy.deepcopy((model, optimizer))
    loss_of(other, 0).backward()
    assert copied.state and not optimizer.state
    assert all(param.grad is None for param in other.parameters())
    loss_of(model, 0).backward()
    assert_same(model, other)


@pytest.mark.parametrize("option", ["differentiable", "capturable"])
def test_what_it_cannot_do(option):
    with pytest.raises(ValueError, match=f"LayerwiseAdamNX does not support {option}=True"):
        LayerwiseAdamNX(network().parameters(), **{option: True})


def test_several_processes_are_refused(monkeypatch):
    model = network()
    optimizer = LayerwiseAdamNX(model.parameters())
    before = copy.deepcopy(model)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="before their gradients are averaged"):
        loss_of(model, 0).backward()
    assert_same(model, before)
    assert not optimizer.state
