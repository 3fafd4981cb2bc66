"""fp16: a step whose gradients overflowed changes nothing, and schedulers wait for it.

Transformers and Accelerate have fp16 on accelerators only; the GradScaler they use runs on the CPU as well.
"""

import copy

import pytest
import torch
from torch import nn

from adamnx_hf import AdamNX

transformers = pytest.importorskip("transformers")
from accelerate import Accelerator  # noqa: E402
from accelerate.optimizer import AcceleratedOptimizer  # noqa: E402
from accelerate.scheduler import AcceleratedScheduler  # noqa: E402
from test_trainer import adamnx_of, grad_norms, make_trainer  # noqa: E402

ENGINES = {
    "default": {},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "reference": {"foreach": False},
}
every_engine = pytest.mark.parametrize("flags", ENGINES.values(), ids=ENGINES)


def everything(model, optimizer):
    """All that a step may change."""
    states = [optimizer.state[parameter] for parameter in model.parameters()]
    return copy.deepcopy([list(model.parameters()), states])


def assert_equal(before, after):
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def overflow(model, scaler, inputs):
    scaler.scale(model(inputs).sum()).backward()
    next(model.parameters()).grad.view(-1)[0] = float("inf")


@every_engine
@pytest.mark.parametrize("unscaled_first", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_overflowed_step_changes_nothing(flags, unscaled_first, poison):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = AdamNX(model.parameters(), lr=0.1, **flags)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    steps = []
    for step in range(6):
        scaler.scale(model(torch.randn(5, 4)).square().mean()).backward()
        bad = step in (2, 3)
        if bad:
            model[1].bias.grad[1] = poison
        before = everything(model, optimizer) if step else None
        if unscaled_first:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if bad:
            assert_equal(before, everything(model, optimizer))
        steps.append({float(state["step"]) for state in optimizer.state.values()})
    assert steps == [{1}, {2}, {2}, {2}, {3}, {4}]
    assert scaler.get_scale() == 2.0


@every_engine
def test_overflow_at_the_very_first_step(flags):
    model = nn.Linear(4, 3)
    start = copy.deepcopy(list(model.parameters()))
    optimizer = AdamNX(model.parameters(), lr=0.1, **flags)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    overflow(model, scaler, torch.ones(1, 4))
    scaler.step(optimizer)
    scaler.update()
    assert_equal(start, list(model.parameters()))
    assert not any(float(state.get("step", 0)) for state in optimizer.state.values())


def test_the_scaled_run_is_the_plain_run():
    """Powers of two scale without rounding: with a scaler and skipped steps, the same bits."""
    runs = []
    for scaler in (torch.amp.GradScaler("cpu", init_scale=2.0**10), None):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = AdamNX(model.parameters(), lr=0.1)
        for step in range(8):
            inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
            if step % 3 == 1:
                if scaler is not None:
                    overflow(model, scaler, inputs)
                    scaler.step(optimizer)
                    scaler.update()
            elif scaler is not None:
                scaler.scale(model(inputs).square().mean()).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                model(inputs).square().mean().backward()
                optimizer.step()
            optimizer.zero_grad()
        runs.append(everything(model, optimizer))
    assert_equal(*runs)


@every_engine
def test_accelerates_scheduler_waits(flags):
    Accelerator(cpu=True)  # makes the state that the wrappers ask for
    model = nn.Linear(4, 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    plain = AdamNX(model.parameters(), lr=0.1, **flags)
    optimizer = AcceleratedOptimizer(plain, scaler=scaler)
    schedule = torch.optim.lr_scheduler.LambdaLR(plain, lambda step: 0.5**step)
    scheduler = AcceleratedScheduler(schedule, optimizer)
    rates = []
    for step in range(5):
        if step in (1, 3):
            overflow(model, scaler, torch.ones(1, 4))
            before = everything(model, plain)
        else:
            scaler.scale(model(torch.randn(5, 4)).square().mean()).backward()
        optimizer.step()
        assert optimizer.step_was_skipped == (step in (1, 3))
        scheduler.step()
        if step in (1, 3):
            assert_equal(before, everything(model, plain))
        optimizer.zero_grad()
        rates.append(plain.param_groups[0]["lr"])
    assert rates == [0.05, 0.05, 0.025, 0.025, 0.0125]
    assert {float(state["step"]) for state in plain.state.values()} == {3}


class OverflowAt(transformers.TrainerCallback):
    """Puts an inf into a gradient, and looks at what the step made of it."""

    def __init__(self, step):
        self.step, self.before, self.rates = step, None, []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **_):
        if state.global_step == self.step:
            next(model.parameters()).grad.view(-1)[0] = float("inf")
            self.before = everything(model, optimizer)

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **_):
        if state.global_step == self.step:
            assert_equal(self.before, everything(model, optimizer))

    def on_step_end(self, args, state, control, optimizer=None, **_):
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("optim_args", [None, "fused=true", "fused=true,max_grad_norm=0.1"])
def test_the_trainers_scheduler_waits(optim_args, tmp_path):
    callback = OverflowAt(3)
    options = {"max_steps": 6, "max_grad_norm": 0.0, "lr_scheduler_type": "linear", "optim_args": optim_args}
    trainer = make_trainer(tmp_path, **options)
    trainer.add_callback(callback)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.train()
    assert callback.before is not None
    assert {float(state["step"]) for state in adamnx_of(trainer).state.values()} == {5}
    # The rate of the step after the overflowed one is that of the overflowed one.
    rates = callback.rates
    assert rates[2] == rates[3]
    assert sorted(rates, reverse=True) == rates
    assert len(set(rates)) == 5


class LossOverflowsAt(transformers.TrainerCallback):
    """Makes gradients inf in the backward pass of a step."""

    def __init__(self, step):
        self.step, self.now = step, False

    def on_train_begin(self, args, state, control, model=None, **_):
        last = list(model.parameters())[-1]
        last.register_hook(lambda grad: grad * float("inf") if self.now else grad)

    def on_step_begin(self, args, state, control, **_):
        self.now = state.global_step == self.step


@pytest.mark.parametrize("logging_steps", [1, 2, 3])
def test_a_skipped_step_logs_the_norm_that_adamw_logs(logging_steps, tmp_path):
    logged = []
    for options in (
        {"optim": "adamw_torch", "max_grad_norm": 0.1},
        {"optim": "adamnx", "optim_args": "max_grad_norm=0.1"},
    ):
        trainer = make_trainer(
            tmp_path, max_steps=6, logging_steps=logging_steps, learning_rate=0.0, **options
        )
        trainer.add_callback(LossOverflowsAt(3))
        # On the CPU the Trainer's norm is that of the scaled gradients: the scale is 1 and stays 1.
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0, backoff_factor=1.0 - 1e-9)
        trainer.train()
        logged.append(grad_norms(trainer))
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)
    assert len(logged[0]) == 6 // logging_steps
    assert [norm == float("inf") for norm in logged[0]].count(True) == (logging_steps != 3)
