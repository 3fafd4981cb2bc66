"""Gradient release: AdamNX's very steps, with no gradient left behind."""

import copy
import gc
import io
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adamnx_hf import AdamNX, LayerwiseAdamNX


def network(width=8):
    torch.manual_seed(0)
    widths = [8] + [width] * 6
    layers = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def loss_of(model, step):
    data = torch.randn(16, 8, generator=torch.Generator().manual_seed(step)).to(
        next(model.parameters()).dtype
    )
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
    {"state_dtype": "int8", "param_rounding": "stochastic", "lr": 0.02},
    {"beta2_schedule": "adam", "maximize": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_steps_as_adamnx(options):
    released, usual = (network(64 if "state_dtype" in options else 8) for _ in range(2))
    if "param_rounding" in options:
        released, usual = released.bfloat16(), usual.bfloat16()
    optimizer = LayerwiseAdamNX(groups(released), **{"lr": 0.01, **options})
    usual_optimizer = [AdamNX(groups(usual), **{"lr": 0.01, **options})]
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


@pytest.fixture
def swapping():
    """Has modules swap their parameters where they convert them, as torch does where it must."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("swapping")
@pytest.mark.parametrize(
    ("convert", "state_dtype"),
    [
        (lambda model: model.to(torch.bfloat16), "int8"),
        (lambda model: model.double(), None),
        (lambda model: model.load_state_dict(copy.deepcopy(model.state_dict())), None),
    ],
    ids=["bfloat16", "float64", "load_state_dict"],
)
def test_parameters_that_are_swapped(convert, state_dtype):
    """torch refuses to swap what has weak references, and loses the hooks of what it swaps."""
    models = network(64), network(64)
    optimizers = [
        kind(model.parameters(), lr=0.01, state_dtype=state_dtype)
        for kind, model in zip((LayerwiseAdamNX, AdamNX), models, strict=True)
    ]
    left = []
    for step in range(5):
        if step in (0, 2):
            for model in models:
                convert(model)
        for model, optimizer in zip(models, optimizers, strict=True):
            loss_of(model, step).backward()
            left.append(sum(param.grad is not None for param in model.parameters()))
            optimizer.step()
            optimizer.zero_grad()
        assert_same(*models)
    # Of the first pass after each conversion step() finds the gradients; all others leave none.
    count = len(list(models[0].parameters()))
    assert left[::2] == [count, 0, count, 0, 0] and set(left[1::2]) == {count}


@pytest.mark.usefixtures("swapping")
def test_swapped_parameters_keep_a_single_optimizer_and_the_hooks_of_others():
    model, seen = network(), []
    weight = model[0].weight
    weight.register_post_accumulate_grad_hook(lambda param: seen.append(param.grad is not None))
    old = LayerwiseAdamNX(model.parameters(), lr=0.5)
    model.double()
    new = LayerwiseAdamNX(model.parameters(), lr=0.01)
    loss_of(model, 0).backward()
    new.step()
    assert not old.state and new.state[weight]["step"] == 1
    assert seen == [True]


def test_a_parameter_that_was_frozen_is_stepped_in_backward_from_its_second_step_on():
    model = network()
    model[0].requires_grad_(False)
    optimizer = LayerwiseAdamNX(model.parameters())
    model[0].requires_grad_(True)
    for step, left in enumerate([2, 0]):
        loss_of(model, step).backward()
        assert sum(param.grad is not None for param in model.parameters()) == left
        optimizer.step()
    assert {float(state["step"]) for state in optimizer.state.values()} == {2}


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


def test_autograd_notices_a_parameter_that_it_still_needs():
    # W is used twice, once held fixed: its gradient is there before the pass is through with its value.
    weight, before = (nn.Parameter(torch.randn(4, 4)) for _ in range(2))
    optimizer = LayerwiseAdamNX([weight, before])
    hidden = (torch.randn(2, 4) @ before) @ weight.detach()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (hidden @ weight).sum().backward()
    assert before not in optimizer.state


def test_after_a_pass_that_broke_off():
    model = network()
    optimizer = LayerwiseAdamNX(model.parameters())

    def fail(_):
        raise MemoryError

    handle = model[0].weight.register_hook(fail)
    with pytest.raises(MemoryError):
        loss_of(model, 0).backward()
    handle.remove()
    with pytest.raises(RuntimeError, match=r"that broke off, .* call zero_grad\(\)"):
        loss_of(model, 1).backward()
    optimizer.zero_grad()
    loss_of(model, 1).backward()
    optimizer.step()
    assert optimizer.state[model[0].weight]["step"] == 1
    assert optimizer.state[model[-1].weight]["step"] == 2
