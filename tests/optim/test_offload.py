"""What torchao's CPUOffloadOptimizer asks of the optimizer that it is given, with and without a card."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adamnx_hf import AdamNX

STORAGE = [{}, {"state_dtype": "bfloat16"}, {"state_dtype": "int8"}]


def train(model, optimizer, steps):
    for step in steps:
        torch.manual_seed(step)
        device = next(model.parameters()).device
        model(torch.randn(8, 64).to(device)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


class Offloaded:
    """As torchao does it: an optimizer for each parameter, on a copy that requires no gradient."""

    def __init__(self, params, optimizer_class, **options):
        self.params = list(params)
        self.copies = [param.detach().clone() for param in self.params]
        for copied in self.copies:
            copied.grad = torch.empty_like(copied)
        self.optimizers = [optimizer_class([{"params": copied}], **options) for copied in self.copies]

    @torch.no_grad()
    def step(self):
        for param, copied, optimizer in zip(self.params, self.copies, self.optimizers, strict=True):
            copied.grad.copy_(param.grad)
            optimizer.step()
            param.copy_(copied)

    def zero_grad(self):
        for param in self.params:
            param.grad = None


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))


@pytest.mark.parametrize("storage", STORAGE, ids=str)
def test_an_optimizer_for_each_copy_that_requires_no_gradient(storage):
    model, twin = build(), build()
    offloaded = Offloaded(model.parameters(), AdamNX, lr=0.01, **storage)
    # One of each parameter's own: its random bits do not depend on the others.
    plain = Offloaded(twin.parameters(), AdamNX, lr=0.01, foreach=False, **storage)
    train(model, offloaded, range(4))
    train(twin, plain, range(4))
    assert_close(list(model.parameters()), list(twin.parameters()), rtol=1e-4, atol=2e-4)
    if not storage:
        whole = build()
        train(whole, AdamNX(whole.parameters(), lr=0.01), range(4))
        assert_close(list(model.parameters()), list(whole.parameters()), rtol=0, atol=0)

    saved = copy.deepcopy([optimizer.state_dict() for optimizer in offloaded.optimizers])
    resumed = build()
    resumed.load_state_dict(model.state_dict())
    again = Offloaded(resumed.parameters(), AdamNX, lr=0.01, **storage)
    for optimizer, state in zip(again.optimizers, saved, strict=True):
        optimizer.load_state_dict(state)
    train(model, offloaded, range(4, 6))
    train(resumed, again, range(4, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("storage", STORAGE, ids=str)
def test_within_torchaos_own(storage):
    optim = pytest.importorskip("torchao.optim")
    model, twin = build().cuda(), build()
    offloaded = optim.CPUOffloadOptimizer(model.parameters(), AdamNX, minimal_size=0, lr=0.01, **storage)
    train(model, offloaded, range(4))
    train(twin, Offloaded(twin.parameters(), AdamNX, lr=0.01, **storage), range(4))
    assert_close([p.cpu() for p in model.parameters()], list(twin.parameters()), rtol=1e-2, atol=5e-3)
    held = offloaded.state_dict()["offloaded"]
    assert len(held) == 4 and all(v.is_cpu for s in held for v in s["state"][0].values())
    offloaded.load_state_dict(copy.deepcopy(offloaded.state_dict()))
    train(model, offloaded, [4])
