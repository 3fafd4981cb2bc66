"""Clipping as part of the step, against torch.nn.utils.clip_grad_norm_ and then a step."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adamnx_hf import AdamNX
from adamnx_hf.optim.clipping import compute_total_norm

pytestmark = pytest.mark.usefixtures("on_a_card")

FLAGS = {
    "default": {},
    "reference": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "triton": {"fused": True},
    "triton capturable": {"fused": True, "capturable": True},
    "capturable": {"capturable": True},
}
every_engine = pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (1030,), (), (0,), (7, 2)]
    values = [torch.randn(shape, generator=generator, device="cpu") for shape in shapes]
    return [nn.Parameter(value.to(torch.get_default_device())) for value in values]


def give_gradients(params, step, scale=1.0):
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        grad = scale * torch.randn(param.shape, generator=generator, device="cpu")
        param.grad = grad.to(param.device, param.dtype)


@every_engine
@pytest.mark.parametrize("max_grad_norm", [0.5, 20.0, 1e6])
def test_same_as_clip_grad_norm_and_then_a_step(max_grad_norm, flags):
    ours, theirs = parameters(), parameters()
    groups = [{"params": ours[:2]}, {"params": ours[2:], "lr": 0.05, "weight_decay": 0.1}]
    clipping = AdamNX(groups, lr=0.01, max_grad_norm=max_grad_norm, **flags)
    groups = [{"params": theirs[:2]}, {"params": theirs[2:], "lr": 0.05, "weight_decay": 0.1}]
    plain = AdamNX(groups, lr=0.01, foreach=False)
    assert clipping.grad_norm is None
    for step in range(4):
        for params in (ours, theirs):
            give_gradients(params, step, scale=3.0**step)
        untouched = [param.grad.clone() for param in ours]
        clipping.step()
        norm = nn.utils.clip_grad_norm_(theirs, max_grad_norm)
        plain.step()
        assert_close(clipping.grad_norm, norm)
        assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert all(torch.equal(p.grad, before) for p, before in zip(ours, untouched, strict=True))
    assert_close(
        [clipping.state[p]["exp_avg_sq"] for p in ours],
        [plain.state[p]["exp_avg_sq"] for p in theirs],
        rtol=1e-5,
        atol=0,
    )


@every_engine
def test_a_norm_without_clipping(flags):
    ours, plain = parameters(), parameters()
    optimizers = AdamNX(ours, max_grad_norm=float("inf"), **flags), AdamNX(plain, **flags)
    for params, optimizer in zip((ours, plain), optimizers, strict=True):
        give_gradients(params, 0, scale=100.0)
        optimizer.step()
    assert_close(ours, plain)
    expected = sum(p.grad.double().square().sum() for p in plain).sqrt()
    assert_close(optimizers[0].grad_norm.double(), expected)


@every_engine
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_does_what_it_does_in_torch(bad, flags):
    # clip_grad_norm_(error_if_nonfinite=False), torch's default: nan goes everywhere, to be seen.
    ours, theirs = parameters(), parameters()
    clipping, plain = AdamNX(ours, max_grad_norm=1.0, **flags), AdamNX(theirs, foreach=False)
    for params in (ours, theirs):
        give_gradients(params, 0)
        params[1].grad[3] = bad
    clipping.step()
    norm = nn.utils.clip_grad_norm_(theirs, 1.0)
    plain.step()
    assert_close(clipping.grad_norm, norm, equal_nan=True)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_no_gradients_no_norm():
    optimizer = AdamNX(parameters(), max_grad_norm=1.0)
    give_gradients(optimizer.param_groups[0]["params"], 0)
    optimizer.step()
    assert optimizer.grad_norm > 0
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.grad_norm is None


def test_a_norm_without_clipping_touches_nothing():
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.tensor([1.0, float("inf"), 1.0])
    AdamNX([param], lr=0.5, weight_decay=0.0, max_grad_norm=float("inf")).step()
    assert_close(param.detach(), torch.tensor([0.5, float("nan"), 0.5]), equal_nan=True)


def test_half_precision_is_added_up_in_float32():
    grads = [torch.full((1000,), 0.1).to(torch.bfloat16) for _ in range(40)]
    exact = (40_000 * float(grads[0][0]) ** 2) ** 0.5
    assert compute_total_norm(grads).item() == pytest.approx(exact, rel=1e-6)
    assert compute_total_norm(grads).dtype == torch.float32


def test_mixed_dtypes_and_complex_numbers():
    grads = [torch.tensor([3 + 4j]), torch.tensor([12.0], dtype=torch.float64), torch.zeros(2).bfloat16()]
    norm = compute_total_norm(grads)
    assert norm.item() == pytest.approx(13.0)
    assert norm.dtype == torch.float64
    params = [nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer = AdamNX(params, max_grad_norm=1.3, eps=1.0, lr=1.0, weight_decay=0.0)
    optimizer.step()
    assert_close(optimizer.state[params[0]]["exp_avg"], torch.tensor([0.3 + 0.4j]), rtol=1e-5, atol=0)
    assert_close(optimizer.state[params[1]]["exp_avg"], torch.tensor([1.2]).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("max_grad_norm", [0.0, -1.0, float("nan")])
def test_invalid_norms_are_named(max_grad_norm):
    with pytest.raises(
        ValueError, match=f"Invalid max_grad_norm: {max_grad_norm}; it must be above 0, or None"
    ):
        AdamNX(parameters(), max_grad_norm=max_grad_norm)


def test_a_norm_of_one_group_is_refused():
    params = parameters()
    with pytest.raises(ValueError, match="give it to AdamNX itself"):
        AdamNX([{"params": params, "max_grad_norm": 1.0}])


@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_clip_too(way):
    optimizer = AdamNX(parameters(), max_grad_norm=0.5)
    give_gradients(optimizer.param_groups[0]["params"], 0)
    optimizer.step()
    copied = way(optimizer)
    for one in (optimizer, copied):
        give_gradients(one.param_groups[0]["params"], 1)
        one.step()
    assert copied.max_grad_norm == 0.5
    assert_close(copied.grad_norm, optimizer.grad_norm)
    assert_close(copied.param_groups[0]["params"], optimizer.param_groups[0]["params"], rtol=0, atol=0)


def test_loading_a_state_leaves_the_clipping_as_it_is():
    saved = AdamNX(parameters())
    give_gradients(saved.param_groups[0]["params"], 0)
    saved.step()
    optimizer = AdamNX(parameters(), max_grad_norm=0.5)
    optimizer.load_state_dict(saved.state_dict())
    assert optimizer.max_grad_norm == 0.5
    assert "max_grad_norm" not in optimizer.state_dict()["param_groups"][0]
