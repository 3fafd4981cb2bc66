"""Whole runs, small enough for a test."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from forks import lean
from PIL import Image as Picture
from tiny_recipe import TINY, results_of
from transformers import pipeline

from adamnx_hf import cli, recipes
from adamnx_hf.commands.run import EXTRA
from adamnx_hf.tasks import load_task

JUDGE = Path(__file__).parents[1] / "tasks" / "judge.py"
WRITTEN = {
    "results.json",
    "metrics.json",
    "curves.png",
    "environment.json",
    "recipe.yaml",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
}


@pytest.mark.parametrize(
    "name", [name for name, path in recipes.list_recipes().items() if path.parent.name != "language_modeling"]
)
def test_smoke(name, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["run", name, "--smoke", "--output_dir", str(out)]) == 0
    assert {path.name for path in out.iterdir()} >= WRITTEN
    results = results_of(out)
    assert results["smoke"] and results["data"] == "made up" and results["steps"] == 4
    assert results["optimizer"] == "AdamNX" and results["betas"] == [0.9, 0.99]
    assert 0 < results["parameters"] < 200_000
    task = load_task(results["task"])
    assert set(results["metrics"]) == set(task.METRICS)
    assert (out / "predictions.png").exists() == hasattr(task, "draw_predictions")
    assert "made-up data: 64 to train on" in capsys.readouterr().out
    values = yaml.safe_load((out / "recipe.yaml").read_text())
    assert values["architecture"] == recipes.read_recipe(recipes.find_recipe(name))["architecture"]


@pytest.mark.parametrize("optim", ["sophiag", "lion", "adax", "momentum_sgd"])
def test_other_optimizers_train(optim, tiny, tmp_path):
    out = tmp_path / "out"
    words = ["--optim", optim, "--max_steps", "12", "--output_dir", str(out)]
    assert cli.main(["run", tiny, *words, "--learning_rate", "0.001"]) == 0
    results = results_of(out)
    assert results["optim"] == optim and results["steps"] == 12
    assert all(np.isfinite(row["eval_loss"]) for row in results["per_epoch"])


def test_a_run_on_a_local_folder(tiny, tmp_path, folder):
    out = tmp_path / "out"
    assert cli.main(["run", tiny, "--output_dir", str(out), "--num_train_epochs", "6"]) == 0
    results = results_of(out)
    rows = json.loads((out / "metrics.json").read_text())
    assert rows == results["per_epoch"] and [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    for name, values in results["metrics"].items():
        errors = [row[name] for row in rows]
        assert values["best"] == min(errors) and values["last"] == errors[-1]
        assert values["best_epoch"] == rows[errors.index(min(errors))]["epoch"]
    assert results["metrics"]["top1_error"]["best"] < 50  # of three classes
    assert results["train_examples"] == 48 and results["eval_examples"] == 21
    assert results["changes"] == {"num_train_epochs": 6.0} and results["recipe"] == "tiny"
    assert results["train_images_per_second"] > 0
    assert results["throughput"]["data"] > 0 and results["throughput"]["model"] > 0
    environment = json.loads((out / "environment.json").read_text())
    assert torch.__version__.startswith(environment["packages"]["torch"])
    assert environment["processor"] and environment["command"].startswith("adamnx-hf run /")
    with Picture.open(out / "curves.png") as picture:
        assert picture.width > 1000

    # What was saved classifies as what was trained.
    answers = pipeline("image-classification", model=str(out))
    from datasets import load_dataset

    test = load_dataset(str(folder), split="test")
    names = test.features["fine_label"].names
    wrong = sum(answers(row["img"])[0]["label"] != names[row["fine_label"]] for row in test)
    assert 100 * wrong / len(test) == pytest.approx(results["metrics"]["top1_error"]["last"])


def test_the_resolved_recipe_gives_the_same_again(tiny, tmp_path):
    out = [tmp_path / "first", tmp_path / "second"]
    assert cli.main(["run", tiny, "--output_dir", str(out[0]), "--seed", "5", "--optim", "adamw"]) == 0
    assert cli.main(["run", str(out[0] / "recipe.yaml"), "--output_dir", str(out[1])]) == 0
    first, second = (results_of(folder) for folder in out)
    keys = ("eval_loss", "top1_error", "train_loss", "learning_rate")
    for a, b in zip(first["per_epoch"], second["per_epoch"], strict=True):
        assert [a[key] for key in keys] == [b[key] for key in keys]
    assert second["optim"] == "adamw" and second["seed"] == 5


@pytest.mark.parametrize("words", [["--hub_token", "hf_secret"], ["--hub-token=hf_secret"]])
def test_a_token_is_not_written_down(words, tiny, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["run", tiny, "--max_steps", "1", "--output_dir", str(out), *words]) == 0
    for name in ("recipe.yaml", "environment.json", "results.json", "metrics.json"):
        assert "hf_secret" not in (out / name).read_text(), name
    assert "***" in results_of(out)["environment"]["command"]


@pytest.mark.parametrize("before", [["--smoke"], ["--fast", "--smoke"]])
def test_smoke_may_stand_before_the_recipe(before, tiny, tmp_path):
    out = tmp_path / "out"
    words = ["--max_steps", "1", "--torch_compile", "false", "--output_dir", str(out)]
    assert cli.main(["run", *before, tiny, *words]) == 0
    results = results_of(out)
    assert results["smoke"] and results["steps"] == 1 and results["fast"] == ("--fast" in before)
    assert results["environment"]["command"].startswith(f"adamnx-hf run {tiny} --smoke")


@pytest.mark.parametrize("words", [["--seed", "3"], ["--seed=3"], ["--bf16"]])
def test_other_flags_come_after_the_recipe(words, tiny, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", *words, tiny])
    assert stop.value.code == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.endswith("; the recipe comes first: adamnx-hf run RECIPE --FIELD VALUE")


def test_fast(tiny, tmp_path):
    """But for the compiler, which takes longer than all the rest."""
    out = tmp_path / "out"
    assert cli.main(["run", tiny, "--fast", "--torch_compile", "false", "--output_dir", str(out)]) == 0
    results = results_of(out)
    assert results["fast"] and results["optim_args"] == "fused=true"
    assert yaml.safe_load((out / "recipe.yaml").read_text())["augment_on_device"] is True


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, folder):
    """What two processes of tasks/judge.py print under `accelerate launch`, and the folder of their run."""
    out = tmp_path_factory.mktemp("two")
    (out / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "dataset_name": str(folder)}))
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        str(JUDGE), str(out), str(out / "tiny.yaml"), "--num_train_epochs", "1",
    ]  # fmt: skip
    environment = lean() | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout, out / "run"


def test_two_processes_under_accelerate(two_processes):
    printed, out = two_processes
    results = results_of(out)
    assert results["total_train_batch_size"] == 16 and results["steps"] == 3
    assert results["changes"]["total_train_batch_size"] == 16
    assert results["environment"]["processes"] == 2
    assert printed.count("Written to") == 1


def test_two_processes_judge_as_one(two_processes, tmp_path, monkeypatch):
    """Every image once, though the last batch does not share out evenly, and images differ in objects."""
    monkeypatch.syspath_prepend(JUDGE.parent)
    one = importlib.import_module("judge").judge(tmp_path)
    assert one == json.loads(two_processes[0].splitlines()[-1])
    assert 0 < one["sbd_unet"]["mean_iou"] < 100 and 0 < one["cifar100_nano"]["top5_error"] < 100
    assert 5 < one["voc_yolov7_tiny"]["map_50"] < 95


def test_the_command_says_where_the_recipe_goes(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    out = capsys.readouterr().out
    assert "adamnx-hf run RECIPE [--smoke] [--fast] [--FIELD VALUE ...]" in out
    assert EXTRA == "recipes"
