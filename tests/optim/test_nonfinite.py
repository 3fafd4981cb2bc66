"""NaN and inf in gradients: every engine does what torch's AdamW does, element by element."""

import copy

import pytest
import torch
from torch import nn

from adamnx_hf import AdamNX

ENGINES = {
    "default": {},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "reference": {"foreach": False},
    "capturable": {"capturable": True},
    "triton": {"fused": True},  # conftest.py has it on a card, or interpreted on the CPU
    "bfloat16 moments": {"state_dtype": "bfloat16"},  # of 8 bits: test_formats.py
    "triton bfloat16 moments": {"fused": True, "state_dtype": "bfloat16"},
}
pytestmark = pytest.mark.usefixtures("on_a_card")
every_engine = pytest.mark.parametrize("flags", ENGINES.values(), ids=ENGINES)
BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
# Finite, but its square is not in float32.
HUGE = 1e25


def randn(shape, generator):
    """Numbers that are the same on every device."""
    return torch.empty(shape).copy_(torch.randn(shape, generator=generator, device="cpu"))


def train(make, poison=None, poisoned_step=2, steps=5):
    """Two tensors over some steps, with `poison` in one element of one gradient."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(randn((4, 3), generator)), nn.Parameter(torch.randn(7))]
    params[1].data.fill_(0.5)
    optimizer = make(params)
    for step in range(1, steps + 1):
        for param in params:
            param.grad = randn(param.shape, generator)
        if poison is not None and step == poisoned_step:
            params[0].grad[1, 2] = poison
        optimizer.step()
    return params, optimizer


@every_engine
@pytest.mark.parametrize("poison", BAD.values(), ids=BAD)
@pytest.mark.parametrize("poisoned_step", [1, 2])
def test_the_element_becomes_nan_and_stays_so_and_no_other_does(flags, poison, poisoned_step):
    params, optimizer = train(lambda p: AdamNX(p, lr=0.1, **flags), poison, poisoned_step)
    torchs, _ = train(lambda p: torch.optim.AdamW(p, lr=0.1), poison, poisoned_step)
    clean, _ = train(lambda p: AdamNX(p, lr=0.1, **flags))
    for ours, theirs in zip(params, torchs, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
    assert params[0].isnan().nonzero().tolist() == [[1, 2]]
    params[0].data[1, 2] = clean[0].data[1, 2]
    assert torch.equal(params[0], clean[0])
    assert torch.equal(params[1], clean[1])
    assert {float(state["step"]) for state in optimizer.state.values()} == {5}


@every_engine
def test_a_square_that_overflows_stops_the_element(flags):
    """v becomes inf, and the element stands still, silently, as in torch's Adam. Clipping prevents it."""
    for make in (lambda p: AdamNX(p, lr=0.1, weight_decay=0.0, **flags), torch.optim.Adam):
        before, _ = train(make, HUGE, poisoned_step=2, steps=2)
        after, optimizer = train(make, HUGE, poisoned_step=2, steps=5)
        assert not optimizer.state[after[0]]["exp_avg_sq"][1, 2].isfinite()
        assert after[0][1, 2] == before[0][1, 2]
        assert after[0].isfinite().all()


@every_engine
@pytest.mark.parametrize("poison", BAD.values(), ids=BAD)
def test_error_if_nonfinite_stops_before_the_step(flags, poison):
    params, optimizer = train(lambda p: AdamNX(p, lr=0.1, **flags))
    before = copy.deepcopy([params, list(optimizer.state.values())])
    params[0].grad[0, 0] = poison
    with pytest.raises(RuntimeError, match="non-finite"):
        nn.utils.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    after = [params, list(optimizer.state.values())]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@every_engine
def test_clipping_spreads_a_nan_as_torch_documents_it(flags):
    """Without error_if_nonfinite the norm is NaN, and so is every gradient that it divides."""
    params, optimizer = train(lambda p: AdamNX(p, lr=0.1, **flags))
    params[0].grad[0, 0] = float("nan")
    nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    assert all(param.isnan().all() for param in params)
