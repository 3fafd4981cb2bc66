"""A Trainer's AdamW checkpoint on disk becomes an AdamNX run."""

import pytest
import torch

from adamnx_hf import AdamNX, from_adamw, param_groups

transformers = pytest.importorskip("transformers")
from test_trainer import FORGIVING, adamnx_of, assert_same_parameters, make_trainer  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_optimizer_pt_of_the_trainer(tmp_path, optim):
    """With Adam's schedule, the steps that follow are those that AdamW would have made."""
    settings = {"lr_scheduler_type": "constant", "per_device_train_batch_size": 16, "max_grad_norm": 0.5}
    settings |= FORGIVING
    whole = make_trainer(tmp_path, optim=optim, max_steps=6, save_strategy="steps", save_steps=3, **settings)
    whole.train()

    checkpoint = tmp_path / "checkpoint-3"
    model = LlamaForCausalLM.from_pretrained(checkpoint)
    adamw = torch.optim.AdamW(param_groups(model, weight_decay=0.1))
    adamw.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))
    optimizer = from_adamw(adamw, beta2=0.999, beta2_schedule="adam", verbose=False)

    resumed = make_trainer(tmp_path / "resumed", model, max_steps=3, **settings)
    resumed.optimizer = optimizer
    resumed.train()
    assert type(adamnx_of(resumed)) is AdamNX
    assert {float(state["step"]) for state in optimizer.state.values()} == {6}
    assert_same_parameters(whole.model, resumed.model, rtol=1e-3, atol=1e-5)


def test_resuming_it_without_converting_is_refused(tmp_path):
    make_trainer(tmp_path, optim="adamw_torch", max_steps=2, save_strategy="steps", save_steps=1).train()
    trainer = make_trainer(tmp_path, max_steps=4)
    with pytest.raises(ValueError, match=r"adamnx_hf\.from_adamw"):
        trainer.train(resume_from_checkpoint=True)
