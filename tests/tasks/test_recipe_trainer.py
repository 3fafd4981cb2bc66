"""The recipes' Trainer: schedule, decay rule, evaluation, transforms on the device, curvature."""

import copy

import pytest
import torch
from transformers import TrainerCallback

from adamnx_hf.models import TorchvisionNetConfig, TorchvisionNetForImageClassification
from adamnx_hf.models.torchvision_net import nets
from adamnx_hf.tasks.trainer import RecipeTrainer, RecipeTrainingArguments, convert_shares

PAPER_SCHEDULE = {
    "lr_scheduler_type": "warmup_stable_decay",
    "lr_scheduler_kwargs": {
        "num_stable_steps": 0,
        "num_decay_steps": 0.6,
        "decay_type": "linear",
        "min_lr_ratio": 0.01,
    },
}


class Images(torch.utils.data.Dataset):
    def __init__(self, count=40):
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        self.labels = torch.randint(5, (count,), generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"pixel_values": self.pixels[i], "labels": self.labels[i]}


def scaled(pixels):
    return pixels.float() / 127.5 - 1


def make(folder, callback=None, net="efficientnet_v2_s", **arguments):
    args = RecipeTrainingArguments(
        output_dir=str(folder),
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        **{"per_device_train_batch_size": 8, **arguments},
    )
    torch.manual_seed(0)
    options = {**nets.NETS[net].tiny, "stochastic_depth": 0.0}
    config = TorchvisionNetConfig(net, options, num_labels=5)
    return RecipeTrainer(
        model=TorchvisionNetForImageClassification(config),
        args=args,
        train_dataset=Images(),
        eval_dataset=Images(13),
        train_transform=scaled,
        eval_transform=scaled,
        callbacks=[callback] if callback else [],
    )


@pytest.mark.parametrize("steps", [10, 781, 62_480])
def test_the_papers_schedule(steps, tmp_path):
    """Eq. 15: linear from the peak at step 0 to 1 % at 60 % of the steps, then constant."""
    trainer = make(tmp_path, learning_rate=0.01, optim="adamnx", **PAPER_SCHEDULE)
    trainer.create_optimizer()
    scheduler = trainer.create_scheduler(steps)
    factor = scheduler.lr_lambdas[0]
    turn = 0.6 * steps
    for step in (0, 1, steps // 10, steps // 3, steps // 2, round(turn) - 1, round(turn), steps - 1, steps):
        expected = max(1 - 0.99 * step / turn, 0.01)
        assert factor(step) == pytest.approx(expected, abs=1.0 / turn)
    assert factor(0) == 1.0 and factor(round(turn)) == 0.01 and factor(steps) == 0.01
    assert trainer.args.lr_scheduler_kwargs["num_decay_steps"] == 0.6  # still a share


def test_shares_and_steps():
    assert convert_shares({"num_decay_steps": 0.6, "min_lr_ratio": 0.01}, 1000) == {
        "num_decay_steps": 600,
        "min_lr_ratio": 0.01,
    }
    assert convert_shares({"num_decay_steps": 25, "num_stable_steps": 0}, 1000) == {
        "num_decay_steps": 25,
        "num_stable_steps": 0,
    }
    assert convert_shares(None, 10) == {}


@pytest.mark.parametrize("rule", ["paper", "trainer"])
def test_the_decay_rule(rule, tmp_path):
    trainer = make(tmp_path, optim="adamnx", weight_decay=0.3, decay_rule=rule)
    trainer.create_optimizer()
    decaying = {id(p) for g in trainer.optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    weights = {
        id(m.weight) for m in trainer.model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
    }
    if rule == "paper":
        assert decaying == weights
    else:
        assert decaying > weights  # the Trainer's own rule goes by names, and these batch norms have none


def test_evaluation_sees_every_example_though_training_drops_the_last(tmp_path):
    trainer = make(tmp_path, dataloader_drop_last=True, per_device_eval_batch_size=5)
    assert sum(len(batch["labels"]) for batch in trainer.get_eval_dataloader()) == 13
    assert trainer.args.dataloader_drop_last
    assert len(trainer.get_train_dataloader()) == 5


def test_transforms_and_channels_last_on_the_device(tmp_path):
    trainer = make(tmp_path, channels_last=True)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].dtype == torch.uint8
    ready = trainer._prepare_inputs(batch)["pixel_values"]
    assert torch.equal(ready, scaled(batch["pixel_values"]))
    assert ready.is_contiguous(memory_format=torch.channels_last)
    conv = trainer.model.net.features[0][0].weight
    assert conv.is_contiguous(memory_format=torch.channels_last)
    trainer.transforms[False] = lambda pixels: scaled(pixels) + 1
    trainer.model.eval()
    assert torch.equal(trainer._prepare_inputs(batch)["pixel_values"], scaled(batch["pixel_values"]) + 1)


def test_accumulated_gradients_are_averaged(tmp_path):
    """Two batches of 4 make the step of one of 8: the Trainer must not take our loss for a sum of its own."""
    updates = []
    for batch, accumulation in ((8, 1), (4, 2)):
        trainer = make(
            tmp_path,
            net="convnext_tiny",  # no batch norm
            optim="momentum_sgd",
            learning_rate=0.1,
            max_steps=1,
            max_grad_norm=0,  # which would hide a factor
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        before = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        trainer.train()
        updates.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - before)
    # Convolutions round differently for other batch sizes; a factor of 2 would be far outside.
    assert (updates[0] - updates[1]).norm() < 0.02 * updates[0].norm()


def test_sophiag_gets_its_estimates(tmp_path):
    """Every `curvature_every` steps, of labels the model samples; nothing else changes by it."""
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            optimizer = trainer.optimizer.optimizer
            hessian = [optimizer.state[p]["hessian"] for g in optimizer.param_groups for p in g["params"]]
            seen.append(sum(h.abs().sum().item() for h in hessian))
            assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())

    # Before CurvatureCallback in the list of callbacks: sees the state as the last step left it.
    trainer = make(
        tmp_path, Watch(), optim="sophiag", optim_args="curvature_every=3", max_steps=8, learning_rate=1e-3
    )
    trainer.train()
    changed = [i for i in range(1, len(seen)) if seen[i] != seen[i - 1]]
    assert seen[0] == 0.0 and changed == [3, 6]  # after the steps 3 and 6


def test_an_estimate_is_gauss_newton_bartletts(tmp_path):
    """Its expectation is the diagonal of Jᵀ(diag(p) − ppᵀ)J, averaged over the batch."""
    trainer = make(tmp_path, optim="sophiag", max_steps=1)
    trainer.create_optimizer()
    model, optimizer = trainer.model, trainer.optimizer
    model.eval()  # fixed statistics: images do not depend on each other
    batch = {"pixel_values": scaled(Images(4).pixels), "labels": torch.zeros(4, dtype=torch.int64)}
    bias = model.net.classifier[-1].bias
    probabilities = model(batch["pixel_values"]).logits.softmax(-1)
    exact = (probabilities * (1 - probabilities)).mean(0)  # the Jacobian of a bias is 1
    total, draws = torch.zeros(5), 150
    torch.manual_seed(0)
    for _ in range(draws):
        loss, count = trainer.sampled_loss(batch)
        assert count == 4
        (gradient,) = torch.autograd.grad(loss, bias)
        total += count * gradient**2
    assert torch.allclose(total / draws, exact, rtol=0.4)
    trainer.sampled_loss(batch)[0].backward()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.update_curvature(4)
    assert not before
    assert torch.allclose(optimizer.state[bias]["hessian"], 0.01 * 4 * bias.grad**2)


def test_the_extra_pass_leaves_batch_norms_alone(tmp_path):
    states = {}
    for every in (1, 100):
        trainer = make(
            tmp_path, optim="sophiag", optim_args=f"curvature_every={every}", max_steps=1, learning_rate=0.0
        )
        trainer.train()
        states[every] = dict(trainer.model.named_buffers())
    assert any("running_mean" in name for name in states[1])
    assert all(torch.equal(states[1][name], states[100][name]) for name in states[1])


def test_a_schedules_keys_are_checked_at_once(tmp_path):
    with pytest.raises(ValueError, match="linear has no 'min_lr_ratio'"):
        make(tmp_path, lr_scheduler_type="linear", lr_scheduler_kwargs={"min_lr_ratio": 0.1})
