"""`optim="adamnx_bf16"` and `"adamnx_layerwise"` in the real Trainer."""

import shutil

import pytest
import torch
from test_trainer import (
    OutOfMemory,
    adamnx_of,
    assert_same_parameters,
    beta2s,
    grad_norms,
    losses,
    make_trainer,
    tiny_llama,
)

from adamnx_hf import AdamNX, LayerwiseAdamNX, beta2_for_horizon


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"optim": "adamnx_bf16"},
        {"optim": "adamnx_bf16", "optim_args": "param_rounding=kahan"},
        {
            "optim": "adamnx_layerwise",
            "max_grad_norm": 0,
            "optim_args": "max_grad_norm=0.5,state_dtype=bfloat16",
        },
    ],
    ids=["bf16", "bf16 kahan", "layerwise"],
)
def test_trains_and_resumes_bit_for_bit(tmp_path, dtype, kwargs):
    whole = make_trainer(tmp_path / "whole", tiny_llama(dtype), save_strategy="steps", save_steps=4, **kwargs)
    whole.train()
    assert losses(whole)[-1] < losses(whole)[0]
    shutil.rmtree(tmp_path / "whole" / "checkpoint-8")
    resumed = make_trainer(tmp_path / "whole", tiny_llama(dtype), **kwargs)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    assert_same_parameters(whole.model, resumed.model)
    for a, b in zip(adamnx_of(whole).state.values(), adamnx_of(resumed).state.values(), strict=True):
        assert a.keys() == b.keys()
        assert a["exp_avg"].dtype == b["exp_avg"].dtype == torch.bfloat16
        assert all(torch.equal(a[key].float(), b[key].float()) for key in a if key != "param_residual")
        assert ("param_residual" in a) == (dtype == torch.bfloat16 and "kahan" in str(kwargs))


def test_bf16_stands_for_its_defaults(tmp_path):
    trainer = make_trainer(tmp_path, optim="adamnx_bf16")
    trainer.create_optimizer()
    group = trainer.optimizer.param_groups[0]
    assert (group["state_dtype"], group["param_rounding"]) == ("bfloat16", "stochastic")
    assert group["betas"] == (0.9, 0.99)
    trainer = make_trainer(tmp_path, optim="adamnx_bf16", optim_args="state_dtype=float32")
    trainer.create_optimizer()
    assert trainer.optimizer.param_groups[0]["state_dtype"] == "float32"


def test_layerwise_goes_adamnxs_way(tmp_path):
    usual = make_trainer(tmp_path / "a", optim="adamnx", max_grad_norm=0)
    released = make_trainer(tmp_path / "b", optim="adamnx_layerwise")
    with pytest.warns(UserWarning, match="adamnx_layerwise': gradients are not clipped"):
        released.train()
    usual.train()
    assert type(adamnx_of(usual)) is AdamNX and type(adamnx_of(released)) is LayerwiseAdamNX
    assert_same_parameters(usual.model, released.model)
    assert losses(usual) == losses(released)
    assert grad_norms(released) == []  # not 0: nobody has found it
    rates = [[entry.get("learning_rate") for entry in t.state.log_history] for t in (usual, released)]
    assert rates[0] == rates[1]


def test_layerwise_logs_the_norm_that_it_finds(tmp_path):
    usual = make_trainer(tmp_path / "a", optim="adamnx", max_grad_norm=1e6)
    released = make_trainer(tmp_path / "b", optim="adamnx_layerwise", optim_args="max_grad_norm=1e6")
    for trainer in (usual, released):
        trainer.train()
    assert len(grad_norms(usual)) == 8
    assert grad_norms(released) == pytest.approx(grad_norms(usual), rel=1e-4)


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"gradient_accumulation_steps": 2}, "set gradient_accumulation_steps=1 .now 2."),
        ({"max_grad_norm": 0.3}, 'max_grad_norm=0.3 asks: set it to 0, or .*optim_args="max_grad_norm=0.3"'),
    ],
)
def test_layerwise_refuses_what_it_cannot_do(tmp_path, kwargs, told):
    trainer = make_trainer(tmp_path, optim="adamnx_layerwise", **kwargs)
    before = [param.detach().clone() for param in trainer.model.parameters()]
    with pytest.raises(ValueError, match=told):
        trainer.train()
    for a, b in zip(trainer.model.parameters(), before, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"optim": "adamw_torch"},
        {"optim": "adamnx_layerwise"},
        {"optim": "adamnx_layerwise", "optim_args": "max_grad_norm=0.5,horizon=auto"},
    ],
    ids=["adamw", "layerwise", "layerwise, clipped"],
)
def test_a_backward_pass_without_memory_is_begun_again_with_a_smaller_batch(tmp_path, kwargs):
    options = {"per_device_train_batch_size": 16, "auto_find_batch_size": True, "max_grad_norm": 0, **kwargs}
    trainer = make_trainer(tmp_path, max_steps=-1, num_train_epochs=3, **options)
    memory = OutOfMemory(trainer.model, fits=4, within_backward=True)
    trainer.train()
    assert memory.sizes[0] == 16
    assert trainer.state.global_step == trainer.state.max_steps >= 12
    assert losses(trainer)[-1] < losses(trainer)[0]
    if "optim_args" in kwargs:
        assert beta2s(trainer) == {beta2_for_horizon(trainer.state.max_steps)}
        assert len(grad_norms(trainer)) == trainer.state.max_steps


@pytest.mark.filterwarnings("ignore:.*gradients are not clipped")
def test_layerwise_trains_again_after_a_backward_pass_that_was_interrupted(tmp_path):
    trainer = make_trainer(tmp_path, optim="adamnx_layerwise")

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = trainer.model.model.layers[0].mlp.register_full_backward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    handle.remove()
    trainer.train()
    assert trainer.state.global_step == 8
