"""Residuals belong to the weights that a step has left: to others that are set anew they are not added."""

import copy
import io

import pytest
import torch
from flags_of_engines import every_engine
from torch import nn

from adamnx_hf import AdamNX, LayerwiseAdamNX
from adamnx_hf.optim.engines import runtime
from adamnx_hf.optim.formats import join

pytestmark = pytest.mark.usefixtures("on_a_card")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).bfloat16()


def train(model, optimizer, steps):
    for step in steps:
        for i, param in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(100 * step + i)
            param.grad = torch.randn(param.shape, generator=generator, device="cpu").to(param)
        optimizer.step()


def through_file(saved):
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def masters(model, optimizer):
    """The float32 that parameters and residuals are together."""
    return [join(p.detach(), optimizer.state[p]["param_residual"]) for p in model.parameters()]


def equal(*runs):
    return all(torch.equal(a, b) for a, b in zip(*(masters(*run) for run in runs), strict=True))


def new_weights():
    return {key: value + 1 for key, value in net().state_dict().items()}


@torch.no_grad()
def fill(model):
    for param in model.parameters():
        param.fill_(0.75)


@torch.no_grad()
def swap_in_an_average(model):
    for param, value in zip(model.parameters(), new_weights().values(), strict=True):
        param.copy_(value)


@every_engine
@pytest.mark.parametrize(
    "write", [fill, swap_in_an_average, lambda model: model.load_state_dict(new_weights())]
)
def test_weights_that_are_set_anew_start_without_a_residual(write, flags):
    runs = []
    for by_hand in (False, True):
        model = net()
        optimizer = AdamNX(model.parameters(), lr=0.01, param_rounding="kahan", **flags)
        train(model, optimizer, range(3))
        assert any(state["param_residual"].any() for state in optimizer.state.values())
        write(model)
        if by_hand:
            for state in optimizer.state.values():
                state["param_residual"].zero_()
            optimizer.__setstate__(optimizer.__getstate__())  # forgets who has written
        train(model, optimizer, range(3, 6))  # the residuals of these steps count again
        runs.append((model, optimizer))
    assert equal(*runs)


@every_engine
def test_one_parameter_that_is_set_anew(flags):
    model = net()
    optimizer = AdamNX(model.parameters(), lr=0.0, weight_decay=0.0, param_rounding="kahan", **flags)
    train(model, optimizer, [0])
    for state in optimizer.state.values():
        state["param_residual"].view(torch.int16).fill_(7)
    with torch.no_grad():
        model[1].weight.mul_(2)
    train(model, optimizer, [1])  # moves nothing, so what was added stays as it was
    for param in model.parameters():
        residual = optimizer.state[param]["param_residual"].view(torch.int16)
        assert (residual == (0 if param is model[1].weight else 7)).all()


@every_engine
@pytest.mark.parametrize("first", ["model", "optimizer"])
@pytest.mark.parametrize("lived", [False, True])
def test_resumes_bit_for_bit_in_either_order(lived, first, flags):
    straight = net()
    expected = AdamNX(straight.parameters(), lr=0.01, param_rounding="kahan", **flags)
    train(straight, expected, range(3))
    saved = through_file({"model": straight.state_dict(), "optimizer": expected.state_dict()})
    train(straight, expected, range(3, 6))

    model = net()
    optimizer = AdamNX(model.parameters(), lr=0.01, param_rounding="kahan", **flags)
    if lived:
        train(model, optimizer, range(10, 12))
    parts = {"model": model, "optimizer": optimizer}
    for name in sorted(parts, key=lambda name: name != first):
        parts[name].load_state_dict(saved[name])
    train(model, optimizer, range(3, 6))
    assert equal((model, optimizer), (straight, expected))


def test_a_copy_goes_on_alike():
    model = net()
    optimizer = AdamNX(model.parameters(), lr=0.01, param_rounding="kahan")
    train(model, optimizer, range(2))
    copied = copy.deepcopy({"model": model, "optimizer": optimizer})
    train(model, optimizer, range(2, 4))
    train(copied["model"], copied["optimizer"], range(2, 4))
    assert equal((model, optimizer), tuple(copied.values()))


def test_within_the_backward_pass():
    """A step within it marks the parameter as written; that is no other's write."""
    runs = []
    for kind, write in ((AdamNX, False), (LayerwiseAdamNX, False), (AdamNX, True), (LayerwiseAdamNX, True)):
        model = net()
        optimizer = kind(model.parameters(), lr=0.01, param_rounding="kahan")
        for step in range(4):
            if write and step == 2:
                fill(model)
            model(torch.full((2, 6), 0.5 + step, dtype=torch.bfloat16)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        runs.append((model, optimizer))
    assert equal(*runs[:2]) and equal(*runs[2:])


@every_engine
def test_steps_without_residuals_leave_none_behind(flags):
    """From "kahan" to "nearest" and back: what was cut off before is not added to what has come since."""
    model = net()
    optimizer = AdamNX(model.parameters(), lr=0.01, param_rounding="kahan", **flags)
    (group,) = optimizer.param_groups
    train(model, optimizer, range(3))
    group["param_rounding"] = "nearest"
    train(model, optimizer, range(3, 5))
    group["param_rounding"] = "kahan"
    twin, other = copy.deepcopy((model, optimizer))
    for param in twin.parameters():
        other.state[param]["param_residual"].zero_()
    for run in ((model, optimizer), (twin, other)):
        train(*run, [5])
    assert equal((model, optimizer), (twin, other))


@pytest.mark.parametrize("kind", [AdamNX, LayerwiseAdamNX])
def test_the_step_of_one_part_of_a_buffer_is_no_write_to_another(kind):
    """Parameters that are parts of one share its version counter, whatever group they are in."""
    runs = []
    for whole in (torch.ones(8, dtype=torch.bfloat16), None):
        halves = (torch.ones(4, dtype=torch.bfloat16) for _ in range(2)) if whole is None else whole.split(4)
        model = nn.ParameterList(nn.Parameter(half) for half in halves)
        groups = [{"params": [param]} for param in model]
        optimizer = kind(groups, lr=0.001, param_rounding="kahan")
        for step in range(4):
            sum(((i + 1 + step) * param).sum() for i, param in enumerate(model)).backward()
            optimizer.step()
            optimizer.zero_grad()
        runs.append((model, optimizer))
    assert equal(*runs) and all(state["param_residual"].any() for state in optimizer.state.values())


@every_engine
def test_tensors_of_inference_have_no_versions(flags):
    with torch.inference_mode():
        param = torch.ones(4, dtype=torch.bfloat16)
        param.grad = torch.ones_like(param)
        optimizer = AdamNX([param], lr=1e-3, param_rounding="kahan", **flags)
        for _ in range(3):
            optimizer.step()
        master = join(param, optimizer.state[param]["param_residual"])
    assert torch.allclose(master, torch.full((4,), 1 - 3e-3 - 3e-5), atol=1e-5)


@pytest.mark.parametrize("flags", [{"foreach": True}, {"capturable": True}])
def test_nothing_is_told_while_a_graph_is_captured(flags, monkeypatch):
    """A capture would note the 0 down, and each replay would set it again."""
    model = net()
    optimizer = AdamNX(model.parameters(), lr=0.0, weight_decay=0.0, param_rounding="kahan", **flags)
    train(model, optimizer, [0])
    for state in optimizer.state.values():
        state["param_residual"].view(torch.int16).fill_(7)
    fill(model)
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "is_capturing", lambda: True)
        optimizer.step()
    optimizer.step()  # nor after it: replays change weights, and raise no version
    assert all((state["param_residual"].view(torch.int16) == 7).all() for state in optimizer.state.values())
    fill(model)
    optimizer.step()
    assert not any(state["param_residual"].any() for state in optimizer.state.values())


def test_a_compiled_step_is_no_others_write(fresh_dynamo):
    runs = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(5, 3, bias=False).bfloat16()
        optimizer = AdamNX(model.parameters(), lr=0.01, param_rounding="kahan", foreach=True)
        train(model, optimizer, range(2))
        step = optimizer.step
        if compiled:
            optimizer.step = torch.compile(step, backend="aot_eager")
        train(model, optimizer, range(2, 4))
        optimizer.step = step
        train(model, optimizer, range(4, 6))
        runs.append((model, optimizer))
    for a, b in zip(*(masters(*run) for run in runs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
