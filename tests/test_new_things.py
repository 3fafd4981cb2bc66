"""A task is added by one entry, and so is an optimizer: everything else finds them there."""

import json

import pytest
import toys
from tiny_recipe import results_of
from transformers import TrainingArguments

import trainer_patches
from adamnx_hf import catalog, cli
from adamnx_hf.models import MODELS
from adamnx_hf.recipes import resolve
from adamnx_hf.tasks import TASKS, load_task
from adamnx_hf.tasks.base import Metric, Task

RECIPE = """
task: line_fitting
optim: adasign
learning_rate: 0.05
num_train_epochs: 4
eval_strategy: epoch
per_device_train_batch_size: 4
report_to: none
use_cpu: true
"""


@pytest.fixture
def mine(tmp_path, monkeypatch, timed_briefly):
    """A recipe of both, once they are added."""
    record = catalog.Optimizer("adasign", "AdaSign", "AdaSign", "toys:AdaSign", decay="adax")
    monkeypatch.setitem(TASKS, "line_fitting", "toys")
    monkeypatch.setitem(catalog.OPTIMIZERS, "adasign", record)
    before = trainer_patches.registered_optimizers()
    catalog.register()
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    yield str(path)
    registry = trainer_patches.registry.REGISTERED
    registry.clear()
    registry.update(before)


def test_both_are_found(mine, capsys):
    resolved = resolve(mine, ["--smoke", "--slope", "3"])
    assert resolved.task is toys and resolved.task_arguments.slope == 3
    assert cli.main(["run", mine, "--help"]) == 0
    help_text = capsys.readouterr().out
    assert "--slope" in help_text and "Slope of the line." in help_text


def test_a_smoke_run(mine, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["run", mine, "--smoke", "--max_steps", "16", "--output_dir", str(out)]) == 0
    results = results_of(out)
    assert (results["task"], results["optimizer"]) == ("line_fitting", "AdaSign")
    assert "points/s in training" in capsys.readouterr().out
    errors = [epoch["error"] for epoch in results["per_epoch"]]
    assert errors[-1] < errors[0]


def test_a_comparison_draws_its_decay(mine, tmp_path):
    """SGD has none: the picture is there for the new one alone."""
    out = tmp_path / "out"
    words = ["--smoke", "--max_steps", "4", "--output-dir", str(out)]
    assert cli.main(["compare", mine, "--optim", "adasign", "momentum_sgd", *words]) == 0
    labels = [one["label"] for one in json.loads((out / "comparison.json").read_text())["contenders"]]
    assert labels == ["adasign", "momentum_sgd"]
    assert (out / "decay.png").is_file()


def test_any_trainer_takes_the_optimizer(mine, tmp_path):
    args = TrainingArguments(str(tmp_path), optim="adasign", report_to="none", use_cpu=True)
    assert (args.adam_beta1, args.adam_beta2) == (0.9, 0.9)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_what_the_protocol_lists(name):
    task = load_task(name)
    assert isinstance(task, Task)
    assert all(isinstance(metric, Metric) for metric in task.METRICS.values())


def test_a_model_is_a_folder_and_a_line():
    import adamnx_hf.models as models

    for model_type, model in MODELS.items():
        assert models.is_ours(model_type)
        assert getattr(models, model.configuration).model_type == model_type
        network = getattr(models, model.network)
        assert network.config_class is getattr(models, model.configuration)
        assert network.__module__ == f"adamnx_hf.models.{model_type}.network"
    assert not models.is_ours("vit") and not models.is_ours(None)
    for name, where in (  # the paths that models were pickled with
        ("TorchvisionNetForImageClassification", "image_classifier"),
        ("UNetForSemanticSegmentation", "unet"),
        ("Yolov7TinyForObjectDetection", "yolov7_tiny"),
        ("TorchvisionNetConfig", "configuration"),
        ("UNetConfig", "configuration"),
        ("Yolov7TinyConfig", "configuration"),
    ):
        module = __import__(f"adamnx_hf.models.{where}", fromlist=[name])
        assert getattr(module, name) is getattr(models, name)
