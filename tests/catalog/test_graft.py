"""A graft: one optimizer's direction, another's length."""

import copy

import pytest
import torch
from transformers import Trainer, TrainingArguments

from adamnx_hf import AdamNX, beta2_for_horizon
from adamnx_hf.catalog.graft import Graft
from trainer_patches import registered_optimizers


def make_params(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5,), (3, 4))]


def fill_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def step_norm(before, after):
    return torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)]).norm()


def test_the_direction_is_the_ones_and_the_length_the_others():
    params = make_params()
    graft = Graft(
        [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "weight_decay": 0.0}],
        0.01,
        torch.optim.AdamW,
        lambda groups: torch.optim.SGD(groups, momentum=0.9),
    )
    sgd, adamw = copy.deepcopy(graft.length), copy.deepcopy(graft.direction)
    for seed in range(5):
        graft.param_groups[1]["lr"] = 0.01 / (seed + 1)  # as a schedule would
        before = [param.detach().clone() for param in params]
        fill_gradients(params, seed)
        alone = {}
        for optimizer in (sgd, adamw):  # each from the graft's weights, with a state of its own
            theirs = [param for group in optimizer.param_groups for param in group["params"]]
            for param, old, new, group in zip(
                theirs, before, params, (graft.param_groups[0], graft.param_groups[1]), strict=True
            ):
                param.data.copy_(old)
                param.grad = new.grad.clone()
                for own in optimizer.param_groups:
                    if own["params"][0] is param:
                        own["lr"] = group["lr"]
            optimizer.step()
            alone[optimizer] = [param.detach().clone() for param in theirs]
        graft.step()
        ratio = step_norm(before, alone[sgd]) / step_norm(before, alone[adamw])
        torch.testing.assert_close(graft.ratio, ratio)
        for param, old, aim in zip(params, before, alone[adamw], strict=True):
            torch.testing.assert_close(param.detach(), old + ratio * (aim - old))


def test_of_twins_it_is_their_step():
    ours, theirs = make_params(), make_params()
    graft, adamnx = Graft(ours, 0.01, AdamNX, AdamNX), AdamNX(theirs, 0.01)
    for seed in range(3):
        for params, optimizer in ((ours, graft), (theirs, adamnx)):
            fill_gradients(params, seed)
            optimizer.step()
    assert graft.ratio == 1
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_it_goes_on_from_its_state():
    def run(params, graft, seeds):
        for seed in seeds:
            fill_gradients(params, seed)
            graft.step()

    whole = make_params()
    run(whole, Graft(whole, 0.01, torch.optim.AdamW, AdamNX), range(6))
    params = make_params()
    graft = Graft(params, 0.01, torch.optim.AdamW, AdamNX)
    run(params, graft, range(3))
    other = Graft(params, 0.5, torch.optim.AdamW, AdamNX)
    other.load_state_dict(graft.state_dict())
    run(params, other, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, params, strict=True))
    with pytest.raises(ValueError, match="not a graft's: it has no direction and no length"):
        other.load_state_dict(AdamNX(params).state_dict())


def test_nothing_to_step_and_a_closure():
    params = make_params()
    graft = Graft(params, 0.01, torch.optim.AdamW, AdamNX)
    assert graft.step(lambda: 3.0) == 3.0 and graft.ratio is None
    for param in params:
        param.grad = torch.zeros_like(param)
    graft.step()  # neither makes a step: 0 / 0
    assert all(param.isfinite().all() for param in params)


def make_by_name(tmp_path, **options):
    args = TrainingArguments(
        tmp_path, optim="graft", learning_rate=0.02, use_cpu=True, report_to="none", max_steps=500, **options
    )
    return Trainer(torch.nn.Linear(2, 2), args).create_optimizer()


def test_by_name(tmp_path):
    graft = make_by_name(tmp_path, weight_decay=0.3)
    assert (type(graft.direction), type(graft.length)) == (torch.optim.AdamW, AdamNX)
    for optimizer, beta2 in ((graft.direction, 0.999), (graft.length, 0.99)):
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
        assert {group["betas"] for group in optimizer.param_groups} == {(0.9, beta2)}
        assert {group["lr"] for group in optimizer.param_groups} == {0.02}


def test_by_name_with_settings(tmp_path):
    graft = make_by_name(
        tmp_path, optim_args="direction=momentum_sgd(momentum=0.8),length=adamnx(horizon=auto)"
    )
    assert graft.direction.param_groups[0]["momentum"] == 0.8
    assert graft.length.param_groups[0]["betas"] == (0.9, pytest.approx(beta2_for_horizon(500)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("length=adamnxx", r"length=adamnxx is not NAME or NAME\(KEY=VALUE,...\); NAME: adam, "),
        ("length=graft", "length=graft is not NAME"),
        ("direction=adamnx(beta=1)", "'beta' is not an option of optim='adamnx'"),
        ("direction=adamnx(max_grad_norm=1)", "give max_grad_norm to TrainingArguments instead"),
        ("directoin=adamnx", "Did you mean 'direction'"),
    ],
)
def test_what_cannot_be_grafted(text, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        make_by_name(tmp_path, optim_args=text)
    assert "graft" in registered_optimizers()
