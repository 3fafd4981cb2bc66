"""What others build on, and no change inside may move: public names, commands, and what a run writes."""

import json

import pytest

import adamnx_hf
import trainer_patches
from adamnx_hf import cli, optim

NAMES = {
    adamnx_hf: [
        "AdamNX",
        "LayerwiseAdamNX",
        "adamnx",
        "beta2_for_horizon",
        "from_adamw",
        "horizon",
        "param_groups",
        "register_optimizer",
    ],
    optim: [
        "AdamNX",
        "LayerwiseAdamNX",
        "adamnx",
        "beta2_for_horizon",
        "from_adamw",
        "horizon",
        "param_groups",
    ],
    trainer_patches: [
        "RunInfo",
        "last_complete_checkpoint",
        "register_optimizer",
        "registered_optimizers",
        "unwrap_optimizer",
    ],
}
COMMANDS = [
    "demo",
    "bench",
    "recipes",
    "run",
    "memory",
    "compare",
    "sharpness",
    "jitter",
    "publish",
    "paper",
]

MAYBE = type(None)
METRICS = {"top1_error": float}

#: The keys of a run's files in their order. A value is a type, some types, a list of one kind, or such a
#: table again.
ENVIRONMENT = {
    "adamnx-hf": str,
    "commit": (str, MAYBE),
    "python": str,
    "packages": {
        "torch": str,
        "torchvision": str,
        "transformers": str,
        "accelerate": str,
        "datasets": str,
        "evaluate": str,
        "pytorch-optimizer": str,
        "torchmetrics": str,
        "numpy": str,
        "pillow": str,
    },
    "system": str,
    "processor": str,
    "cpu_cores": int,
    "torch_threads": int,
    "gpus": [str],
    "cuda": (str, MAYBE),
    "processes": int,
    "command": str,
}
ROWS = [
    {
        "epoch": float,
        "step": int,
        "learning_rate": float,
        "train_loss": float,
        "eval_loss": float,
        "top1_error": float,
        "top5_error": MAYBE,  # there are three classes
        "train_seconds": float,
    }
]
RESULTS = {
    "recipe": str,
    "task": str,
    "paper_tables": [int],
    "optim": str,
    "optim_args": MAYBE,
    "optimizer": str,
    "betas": [float],
    "beta2_schedule": str,
    "learning_rate": float,
    "seed": int,
    "fast": bool,
    "smoke": bool,
    "changes": {"num_train_epochs": float},
    "data_changes": {},
    "data": str,
    "train_examples": int,
    "eval_examples": int,
    "judged_on_training_rows": bool,
    "parameters": int,
    "trainable_parameters": int,
    "memory_bytes": {"parameters": int, "gradients": int, "states": int},
    "total_train_batch_size": int,
    "steps": int,
    "epochs": float,
    "metrics": {"top1_error": {"best": float, "best_epoch": float, "last": float}},
    "weights": {"step": int, "epoch": float, "chosen_by": MAYBE, "metrics": METRICS},
    "best_is": str,
    "wall_seconds": float,
    "train_seconds": float,
    "train_images_per_second": float,
    "notes": [str],
    "throughput": {"data": float, "model": float, "unit": str},
    "environment": ENVIRONMENT,
    "per_epoch": ROWS,
}


def check(value, kind, where):
    """Asserts that `value` is of a kind that stands in the tables above."""
    if isinstance(kind, dict):
        assert list(value) == list(kind), where
        for key, inner in kind.items():
            check(value[key], inner, f"{where}, {key}")
    elif isinstance(kind, list):
        assert isinstance(value, list), where
        for item in value:
            check(item, kind[0], where)
    else:
        assert type(value) in (kind if isinstance(kind, tuple) else (kind,)), (where, value)


@pytest.mark.parametrize("module", NAMES, ids=lambda module: module.__name__)
def test_public_names(module):
    assert sorted(module.__all__) == NAMES[module]
    assert all(hasattr(module, name) for name in module.__all__)


def test_commands():
    assert list(cli.COMMANDS) == COMMANDS


@pytest.mark.parametrize(
    ("name", "kind"),
    [("results.json", RESULTS), ("environment.json", ENVIRONMENT), ("metrics.json", ROWS)],
)
def test_what_a_run_writes(name, kind, trained):
    check(json.loads((trained / name).read_text()), kind, name)
