"""A task and an optimizer as somebody would add them."""

import dataclasses

import torch
from torch import nn

from adamnx_hf.tasks.base import Metric, make_field
from adamnx_hf.tasks.data import DataArguments, train_fast
from adamnx_hf.tasks.loading import load_data
from adamnx_hf.tasks.trainer import RecipeTrainer

METRICS = {"error": Metric("min", "mae", "Mean absolute error", float)}
UNIT = "points"
fast = train_fast


@dataclasses.dataclass
class Arguments(DataArguments):
    """The fields of a recipe that fits a line."""

    slope: float = make_field(2.0, "Slope of the line.")


def smoke(arguments):
    return {"max_train_samples": 16, "max_eval_samples": 8}


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x, labels=None):
        logits = self.linear(x)
        return {"loss": nn.functional.mse_loss(logits, labels), "logits": logits}


def make_up(arguments):
    def split(count):
        return [{"x": x, "labels": arguments.slope * x} for x in torch.linspace(-1, 1, count)[:, None]]

    return split(arguments.max_train_samples), split(arguments.max_eval_samples)


def make_trainer(recipe):
    (train, test), notes = load_data(recipe, make_up)
    torch.manual_seed(recipe.training_arguments.seed)
    trainer = RecipeTrainer(
        model=Line(),
        args=recipe.training_arguments,
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=lambda told: {"error": float(abs(told.predictions - told.label_ids).mean())},
    )
    trainer.notes += notes
    return trainer


class AdaSign(torch.optim.Optimizer):
    """Goes by the sign of the gradient."""

    def __init__(self, params, lr=0.01, betas=(0.9, 0.9)):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                param -= group["lr"] * param.grad.sign()
