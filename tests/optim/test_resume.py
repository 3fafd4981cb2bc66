"""A state saved by any engine, or an earlier version, resumes in any engine; and AdamW's from a file."""

import importlib.util
import io
from pathlib import Path

import pytest
import torch
from torch import nn

from adamnx_hf import AdamNX, from_adamw, param_groups

ENGINES = {
    "default": {},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "reference": {"foreach": False},
    "capturable": {"capturable": True},
    "triton": {"fused": True},  # conftest.py has it on a card, or interpreted on the CPU
}
pytestmark = pytest.mark.usefixtures("on_a_card")
GOLDEN = Path(__file__).parents[1] / "golden"


def through_file(saved):
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)).to(dtype)


def train(model, optimizer, steps):
    for step in steps:
        inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(step), device="cpu")
        optimizer.zero_grad()
        model(inputs.to(next(model.parameters()))).square().mean().backward()
        optimizer.step()


def use(optimizer, flags):
    """Options come with a state, as in torch.optim: another engine is chosen afterwards."""
    for group in optimizer.param_groups:
        group.update({"foreach": None, "fused": None, "capturable": False, **flags})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loads", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("saves", ENGINES.values(), ids=ENGINES)
def test_any_engine_goes_on_from_any_other(saves, loads, dtype):
    straight = net(dtype)
    train(straight, AdamNX(straight.parameters(), lr=0.01, **saves), range(8))

    model = net(dtype)
    optimizer = AdamNX(model.parameters(), lr=0.01, **saves)
    train(model, optimizer, range(4))
    saved = through_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    model = net(dtype)
    model.load_state_dict(saved["model"])
    optimizer = AdamNX(model.parameters(), **loads)
    optimizer.load_state_dict(saved["optimizer"])
    assert all(optimizer.param_groups[0][key] == value for key, value in saves.items())
    use(optimizer, loads)
    train(model, optimizer, range(4, 8))
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    if saves == loads:
        tolerance = {"rtol": 0, "atol": 0}
    torch.testing.assert_close(list(model.parameters()), list(straight.parameters()), **tolerance)
    assert {float(state["step"]) for state in optimizer.state.values()} == {8}


@pytest.mark.parametrize("flags", ENGINES.values(), ids=ENGINES)
def test_checkpoint_of_an_earlier_version(flags):
    """Saved by adamnx-hf 0.1.0 with torch 2.8; see make_checkpoint.py."""
    spec = importlib.util.spec_from_file_location("make_checkpoint", GOLDEN / "make_checkpoint.py")
    make_checkpoint = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_checkpoint)
    saved = torch.load(make_checkpoint.PATH, weights_only=True)
    model = make_checkpoint.make_model()
    model.load_state_dict(saved["model"])
    groups = [{"params": part.parameters()} for part in model]
    optimizer = AdamNX(groups)
    optimizer.load_state_dict(saved["optimizer"])
    use(optimizer, flags)
    make_checkpoint.train(model, optimizer, range(3, 6))
    for name, value in model.state_dict().items():
        tolerance = 1e-5 if value.dtype is torch.float32 else 1e-2
        expected = saved["expected"][name].to(value.device)
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=1e-6)
    assert [group["beta2_schedule"] for group in optimizer.param_groups] == ["adamnx", "adax"]


@pytest.mark.parametrize("kind", [{"fused": True}, {"foreach": True}, {"foreach": False}])
@pytest.mark.parametrize("flags", ENGINES.values(), ids=ENGINES)
def test_adamw_checkpoint_from_a_file(tmp_path, kind, flags):
    """With Adam's schedule the run goes on as AdamW's would have."""
    path = tmp_path / "optimizer.pt"
    model = net()
    adamw = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=0.01, **kind)
    train(model, adamw, range(4))
    torch.save(adamw.state_dict(), path)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, adamw, range(4, 8))

    resumed = net()
    resumed.load_state_dict(weights)
    adamw = torch.optim.AdamW(param_groups(resumed, weight_decay=0.1))
    adamw.load_state_dict(torch.load(path, weights_only=True))
    options = {"foreach": None, "fused": None, **flags}
    optimizer = from_adamw(adamw, beta2=0.999, beta2_schedule="adam", verbose=False, **options)
    assert type(optimizer) is AdamNX
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    train(resumed, optimizer, range(4, 8))
    torch.testing.assert_close(list(resumed.parameters()), list(model.parameters()), rtol=1e-4, atol=1e-5)
