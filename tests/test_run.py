"""Whole runs, small enough for a test."""

import contextlib
import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Image
from forks import forking, lean
from PIL import Image as Picture
from tiny_recipe import TINY
from transformers import TrainerControl, pipeline

from adamnx_hf import cli
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.recipes import resolve as recipe
from adamnx_hf.runs import report
from adamnx_hf.runs import train as run
from adamnx_hf.tasks import image_classification, load_task
from adamnx_hf.tasks.base import Metric
from adamnx_hf.tasks.callbacks import ResumingCallback
from adamnx_hf.tasks.image_classification.dataset import ImageDataset
from adamnx_hf.tasks.trainer import RecipeTrainer
from trainer_patches import checkpoints

JUDGE = Path(__file__).parent / "tasks" / "judge.py"
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


def results_of(out):
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize(
    "name", [name for name, path in recipe.named().items() if path.parent.name != "language_modeling"]
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
    assert values["architecture"] == recipe.read(recipe.find(name))["architecture"]


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


def test_nothing_is_overwritten_unless_asked(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("important")
    words = ["run", tiny, "--max_steps", "2", "--output_dir", str(out)]
    assert cli.main(words) == 1
    err = capsys.readouterr().err
    # With no checkpoint there, no word about going on.
    assert err.strip().endswith("is not empty; choose another --output_dir, or pass --overwrite_output_dir")
    (out / "checkpoint-1").mkdir()
    assert cli.main(words) == 1
    assert capsys.readouterr().err.strip().endswith("or go on with --resume_from_checkpoint last")
    (out / "checkpoint-1").rmdir()
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    elsewhere = str(tmp_path / "other" / "checkpoint-6")
    assert cli.main([*words, "--resume_from_checkpoint", elsewhere]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite_output_dir"]) == 0
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    assert not {"output_dir", "overwrite_output_dir"} & set(written)
    assert (out / "thesis.txt").read_text() == "important" and (out / "results.json").exists()
    assert cli.main(["run", tiny, "--output_dir", str(out / "thesis.txt")]) == 1
    assert "thesis.txt is a file" in capsys.readouterr().err


@pytest.fixture
def dies(monkeypatch):
    """Training that dies in its first step."""

    def training_step(*args, **kwargs):
        raise RuntimeError("out of memory")

    return lambda: monkeypatch.setattr(RecipeTrainer, "training_step", training_step)


OLD = {"results.json", "metrics.json", "curves.png", "predictions.png", "checkpoint-6"}


@pytest.fixture
def earlier(tiny, tmp_path):
    """What an earlier run has left, and somebody's own files."""
    out = tmp_path / "out"
    words = ["--save_strategy", "epoch", "--num_train_epochs", "1", "--output_dir", str(out)]
    assert cli.main(["run", tiny, *words]) == 0
    (out / "predictions.png").write_bytes(b"old")
    (out / "checkpoint-best").mkdir()
    (out / "checkpoint-6.zip").write_text("mine")
    (out / "curves.pdf").write_text("mine")
    assert {path.name for path in out.iterdir()} >= OLD
    return out


def test_overwriting_removes_the_old_results_when_training_begins(earlier, tiny, dies):
    before = {path.name for path in earlier.iterdir()}
    dies()
    words = ["run", tiny, "--output_dir", str(earlier), "--overwrite_output_dir", "--seed", "7"]
    with pytest.raises(RuntimeError, match="out of memory"):
        cli.main(words)
    assert {path.name for path in earlier.iterdir()} == before - OLD
    assert yaml.safe_load((earlier / "recipe.yaml").read_text())["seed"] == 7


@pytest.mark.parametrize(
    "words", [["--learning_rate", "-1"], ["--train_split", "trian"], ["--optim_args", "betas=(2,0.9)"]]
)
def test_nothing_is_removed_for_a_run_that_cannot_begin(words, earlier, tiny, capsys):
    before = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}
    assert cli.main(["run", tiny, "--output_dir", str(earlier), "--overwrite_output_dir", *words]) == 1
    assert {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()} == before


def test_nothing_is_removed_when_going_on(earlier, tiny, dies):
    before = {path.name for path in earlier.iterdir()}
    dies()
    words = ["--num_train_epochs", "2", "--overwrite_output_dir", "--resume_from_checkpoint", "last"]
    with pytest.raises(RuntimeError, match="out of memory"):
        cli.main(["run", tiny, "--output_dir", str(earlier), *words])
    assert {path.name for path in earlier.iterdir()} == before


def test_one_batch_an_epoch_is_not_timed(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--per_device_train_batch_size", "48", "--num_train_epochs", "1", "--output_dir", str(out)]
    assert cli.main(["run", tiny, *words]) == 0
    said = capsys.readouterr().out
    assert results_of(out)["throughput"]["data"] is None
    assert "the data pipeline was not timed" in said and "bottleneck" not in said


@pytest.mark.parametrize(
    "words",
    [["--logging_steps", "100"], ["--eval_strategy", "steps", "--eval_steps", "3"]],
)
def test_each_epochs_loss_is_its_own(words, tiny, tmp_path):
    """Whatever the logging steps, the rows' losses are those of a run that logs every step."""
    tables = []
    for i, more in enumerate([["--logging_steps", "1"], words[:2]]):
        out = tmp_path / str(i)
        assert cli.main(["run", tiny, *words, *more, "--output_dir", str(out)]) == 0
        tables.append([(row["step"], row["train_loss"]) for row in results_of(out)["per_epoch"]])
    assert tables[1] == [(step, pytest.approx(loss, abs=2e-4)) for step, loss in tables[0]]  # as logged
    assert tables[1][0][1] != pytest.approx(tables[1][1][1], rel=1e-3) and len(tables[1]) >= 2


def test_the_last_steps_loss_is_there_without_evaluation(tiny, tmp_path):
    out = tmp_path / "out"
    words = ["--eval_strategy", "no", "--logging_steps", "100", "--num_train_epochs", "1"]
    assert cli.main(["run", tiny, *words, "--output_dir", str(out)]) == 0
    assert results_of(out)["per_epoch"][-1]["train_loss"] > 0


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


def test_resuming_is_as_if_never_stopped(tiny, tmp_path):
    words = ["run", tiny, "--save_strategy", "epoch", "--num_train_epochs", "3"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.main([*words, "--output_dir", str(whole)]) == 0
    assert cli.main([*words, "--output_dir", str(cut), "--save_total_limit", "5"]) == 0
    for name in ("results.json", "model.safetensors"):
        (cut / name).unlink()
    again = ["--output_dir", str(cut), "--resume_from_checkpoint"]
    assert cli.main([*words, *again, str(cut / "checkpoint-6")]) == 0
    keys = ("epoch", "eval_loss", "top1_error", "train_loss")
    rows = [[[row[key] for key in keys] for row in results_of(out)["per_epoch"]] for out in (whole, cut)]
    assert rows[0] == rows[1] and len(rows[0]) == 3


def test_resuming_from_nothing(tiny, tmp_path, capsys):
    words = ["--output_dir", str(tmp_path / "none"), "--resume_from_checkpoint", "last"]
    assert cli.main(["run", tiny, *words]) == 1
    err = capsys.readouterr().err
    assert "resume_from_checkpoint: there is no checkpoint in" in err and "leave it out to start anew" in err


STEPS = ["--save_strategy", "steps", "--save_steps", "2", "--num_train_epochs", "1"]


def saved(out):
    return sorted(int(path.name.partition("-")[2]) for path in out.glob("checkpoint-*"))


def cut(checkpoint, how):
    """What a kill leaves of a checkpoint."""
    if how == "no state":
        (checkpoint / "trainer_state.json").unlink()
    elif how == "half a file":
        path = checkpoint / "optimizer.pt"
        path.write_bytes(path.read_bytes()[:100])
    else:
        for path in checkpoint.iterdir():
            path.unlink()


@pytest.mark.parametrize("how", ["no state", "half a file", "empty"])
def test_resuming_passes_over_what_a_kill_cut_short(how, tiny, tmp_path, caplog):
    out = tmp_path / "out"
    words = ["run", tiny, *STEPS, "--output_dir", str(out)]
    assert cli.main(words) == 0
    cut(out / "checkpoint-6", how)
    (out / "checkpoint-6" / "left.txt").write_text("of the save that was cut short")
    assert cli.main([*words, "--resume_from_checkpoint", "last"]) == 0
    passed = [line for line in caplog.messages if "is passed over" in line]
    assert len(passed) == 1 and "checkpoint-6 is passed over: " in passed[0]
    assert results_of(out)["steps"] == 6
    assert checkpoints.why_incomplete(out / "checkpoint-6") is None
    assert not (out / "checkpoint-6" / "left.txt").exists()  # saved anew, not into what was there


def test_resuming_where_all_is_incomplete_or_missing(tiny, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ["run", tiny, *STEPS, "--output_dir", str(out), "--resume_from_checkpoint"]
    assert cli.main(words[:-1]) == 0
    for path in out.glob("checkpoint-*"):
        cut(path, "no state")
    capsys.readouterr()
    monkeypatch.setattr(image_classification, "make_trainer", None)  # nothing is loaded
    given, none = str(out / "checkpoint-4"), str(out / "checkpoint-5")
    for value, message in (
        ("last", f"there is no complete checkpoint in {out}: checkpoint-6 is incomplete (trainer_state.json"),
        (
            given,
            f"{given} is incomplete (trainer_state.json, which is written last, is missing); give another",
        ),
        (none, f"{none} is no folder; give another, or `last` for the newest complete one in output_dir"),
    ):
        assert cli.main([*words, value]) == 1
        err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adamnx-hf")]
        assert len(err) == 1 and f"resume_from_checkpoint: {message}" in err[0]


@pytest.mark.parametrize(("limit", "kept"), [(1, [12]), (2, [10, 12])])
def test_only_complete_checkpoints_are_kept_ones(limit, kept, tiny, tmp_path):
    out = tmp_path / "out"
    words = ["run", tiny, *STEPS, "--output_dir", str(out)]
    assert cli.main(words) == 0
    cut(out / "checkpoint-6", "half a file")
    for step in (100, 102):  # of a longer run, say
        (out / f"checkpoint-{step}").mkdir()
    words += ["--num_train_epochs", "2", "--save_total_limit", str(limit)]
    assert cli.main([*words, "--resume_from_checkpoint", str(out / "checkpoint-4")]) == 0
    assert saved(out) == kept


@pytest.mark.parametrize("jump", [-86_400, 86_400], ids=["back", "forward"])
def test_a_clock_that_jumps_removes_no_new_checkpoint(jump, tiny, tmp_path):
    out = tmp_path / "out"
    words = ["run", tiny, *STEPS, "--output_dir", str(out), "--save_total_limit", "2"]
    assert cli.main(words) == 0
    for step in (4, 6):  # as a clock that was set back, or forward, since has it
        then = (out / f"checkpoint-{step}").stat().st_mtime - jump - step
        os.utime(out / f"checkpoint-{step}", (then, then))
    assert cli.main([*words, "--num_train_epochs", "2", "--resume_from_checkpoint", "last"]) == 0
    assert saved(out) == [10, 12]


def test_checkpoints_of_before_are_older(tiny, tmp_path):
    out = tmp_path / "out"
    words = ["run", tiny, *STEPS, "--output_dir", str(out), "--num_train_epochs", "2"]
    assert cli.main(words) == 0
    words += ["--resume_from_checkpoint", str(out / "checkpoint-2"), "--save_total_limit", "2"]
    assert cli.main([*words, "--max_steps", "6"]) == 0
    assert saved(out) == [4, 6]


def test_an_epochs_evaluation_is_not_lost_to_a_save_before_it(tiny, tmp_path):
    out = tmp_path / "out"
    words = ["run", tiny, *STEPS, "--num_train_epochs", "2", "--output_dir", str(out)]
    assert cli.main(words) == 0
    rows = results_of(out)["per_epoch"]
    words += ["--resume_from_checkpoint", str(out / "checkpoint-6")]  # the first epoch's last step
    assert cli.main(words) == 0
    steps = [row["step"] for row in results_of(out)["per_epoch"]]
    assert steps == [row["step"] for row in rows] == [6, 12]


@pytest.fixture
def holder(tmp_path):
    """Another process that writes into out/, with a child of its own that outlives it."""
    code = """
import os, sys, time
from pathlib import Path
from adamnx_hf.common.files import sole_writer
with sole_writer(Path(sys.argv[1])):
    if os.fork() == 0:  # as a data loader's worker
        os.close(1)
        time.sleep(30)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""
    if not hasattr(os, "fork"):
        pytest.skip("forks")
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")], stdout=pipe, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_two_runs_into_one_folder(tiny, tmp_path, capsys, holder):
    out = tmp_path / "out"
    words = ["run", tiny, "--max_steps", "1", "--output_dir", str(out)]
    for more in ([], ["--overwrite_output_dir"], ["--resume_from_checkpoint", "last"]):
        assert cli.main([*words, *more]) == 1
        err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adamnx-hf")]
        assert len(err) == 1 and f"another run (process {holder.pid} on " in err[0]
        assert err[0].endswith(f"is writing into {out}; wait for it to end, or choose another --output_dir")
    comparison = ["compare", tiny, "--optim", "adamnx", "adamw", "--output-dir", str(out)]
    assert cli.main(comparison) == 1
    assert "is writing into" in capsys.readouterr().err
    holder.kill()
    holder.wait()
    assert [path.name for path in out.iterdir()] == [".lock"]  # it does not count, and its child has no part
    assert cli.main(words) == 0
    assert not (out / ".lock").exists()


@pytest.mark.parametrize("path", ["/proc/adamnx", "/dev/null/adamnx"])
def test_a_folder_that_cannot_be_made(path, tiny, capsys, monkeypatch):
    if not os.path.exists("/proc/self"):
        pytest.skip("where there is /proc")
    monkeypatch.setattr(image_classification, "make_trainer", None)  # nothing is loaded
    assert cli.main(["run", tiny, "--output_dir", path]) == 1
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adamnx-hf")]
    assert len(err) == 1 and f"output_dir: {path} cannot be written" in err[0]
    assert err[0].endswith("choose another --output_dir")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rate", "-1"], "Invalid learning rate: -1.0; it must be at least 0"),
        (["--learning_rate", "-1", "--optim", "adamw_torch"], "Invalid learning rate: -1.0"),
        (["--adam_beta2", "1.5"], "Invalid beta parameter at index 1: 1.5"),
        (["--adam_epsilon", "-1"], "Invalid epsilon value: -1.0"),
        (["--weight_decay", "-1"], "weight_decay"),
        (["--optim_args", "beta2_schedule=adan"], "beta2_schedule"),
        (["--optim_args", "horizon=0.5"], "horizon=0.5 must be 'auto' or at least 1 step"),
    ],
)
def test_optimizers_are_tried_before_data_are_read(words, message, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(image_classification, "make_trainer", None)
    assert cli.main(["run", tiny, "--output_dir", str(tmp_path / "a" / "out"), *words]) == 1
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adamnx-hf")]
    assert len(err) == 1 and message.replace("_", " ") in err[0].replace("_", " ")
    assert not (tmp_path / "a").exists()


def test_trying_an_optimizer_leaves_no_trace(tiny):
    words = ["--optim_args", "horizon=auto,max_grad_norm=0.5", "--output_dir", "unused"]
    args = recipe.resolve(tiny, words).training_arguments
    before, state = dict(vars(args)), torch.get_rng_state()
    run.try_optimizer(args)
    assert vars(args) == before and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            "out of memory with batches of 8 a device; try",
        ),
        (MemoryError("Unable to allocate 12 GiB"), "out of memory with batches of 8 a device; try --per_"),
        (RuntimeError("size mismatch\nfor fc.weight"), "size mismatch for fc.weight"),
        (RuntimeError("the\nfirst \x1b[2J"), "the first \\x1b[2J"),
        (KeyError("foo"), "KeyError: 'foo'"),
        (AttributeError("module has no x"), "AttributeError: module has no x"),
        (NotImplementedError(), "NotImplementedError"),
        (RecursionError("too deep"), "too deep"),
        (
            OSError(28, "No space left on device", "cache"),
            "cache cannot be written (No space left on",
        ),
    ],
)
def test_errors_before_training(error, message, tiny, tmp_path, capsys, monkeypatch):
    def make_trainer(recipe):
        raise error

    monkeypatch.setattr(image_classification, "make_trainer", make_trainer)
    assert cli.main(["run", tiny, "--output_dir", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"adamnx-hf run: error: {message}")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def forked():
    """Runs code in processes that have imported what the command needs."""
    imports = "import matplotlib.pyplot, adamnx_hf.tasks.image_classification, adamnx_hf.runs.train\n"
    imports += "from transformers.models.auto import modeling_auto"
    with forking(imports, check=False) as run:
        yield run


CTRL_C = """
import os, signal, sys
from adamnx_hf import cli
open("pid", "w").write(str(os.getpid()))
signal.signal(signal.SIGINT, signal.default_int_handler)
os.setsid()
sys.argv[1:] = {}
sys.exit(cli.main())
"""


@pytest.mark.parametrize("twice", [False, True])
def test_ctrl_c(twice, tiny, tmp_path, forked):
    """Of a whole process, with workers, as a terminal has it: to all of them."""
    out = tmp_path / "out"
    words = ["run", tiny, "--max_steps", "100000", "--dataloader_num_workers", "2", "--output_dir", str(out)]
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(forked, CTRL_C.format(words), tmp_path)
        until = time.monotonic() + 120
        while not (out / "metrics.json").exists() and time.monotonic() < until and not ended.done():
            time.sleep(0.05)
        pid = int((tmp_path / "pid").read_text())
        os.killpg(pid, signal.SIGINT)
        if twice:
            time.sleep(0.01)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGINT)
        status, _, err = ended.result(timeout=60)
    assert "Traceback" not in err and "Exception ignored" not in err, err[-3000:]
    if status != -signal.SIGINT:  # the shell says 130 to both
        assert status == 130 and err.splitlines()[-1] == "adamnx-hf: interrupted"
    assert twice or not (out / ".lock").exists()
    for path in out.glob("[!.]*.json"):
        json.loads(path.read_text())


def test_a_folder_that_cannot_be_written(tiny, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert cli.main(["run", tiny, "--output_dir", str(tmp_path / "file" / "out")]) == 1
    said = f"as {tmp_path / 'file'} is not a folder that you may write into; choose another --output_dir"
    assert said in capsys.readouterr().err
    # Whoever runs the tests may be allowed everything.
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != str(tmp_path))
    assert cli.main(["run", tiny, "--output_dir", str(tmp_path / "a" / "b")]) == 1
    assert f"as {tmp_path} is not a folder that you may write into" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_fast(tiny, tmp_path):
    """But for the compiler, which takes longer than all the rest."""
    out = tmp_path / "out"
    assert cli.main(["run", tiny, "--fast", "--torch_compile", "false", "--output_dir", str(out)]) == 0
    results = results_of(out)
    assert results["fast"] and results["optim_args"] == "fused=true"
    assert yaml.safe_load((out / "recipe.yaml").read_text())["augment_on_device"] is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset_name", "uoft-cs/cifar100"], "either connect to the Hub (and unset HF_HUB_OFFLINE), or "),
        (["--train_split", "trian"], "train_split: "),
        (["--image_column", "image"], "image_column: the data set has no column 'image'; did you mean 'img'"),
        (["--image_column", "fine_label"], "'fine_label' does not hold images; those that do: img"),
        (["--label_column", "img"], "label_column: 'img' does not hold class ids"),
        (["--learning_rate", "-1"], "Invalid learning rate: -1.0"),
        (["--optim_args", "betas=(2,0.9)"], "Invalid beta parameter at index 0: 2"),
    ],
)  # fmt: skip
def test_errors_leave_nothing_behind(words, message, tiny, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["run", tiny, "--output_dir", str(out), *words]) == 1
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adamnx-hf")]
    assert len(err) == 1 and message in err[0]
    assert not out.exists() or not any(out.iterdir())


def test_a_missing_extra(tiny, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "adamnx_hf.tasks.transforms", raising=False)
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["run", tiny, "--output_dir", str(tmp_path / "out")]) == 1
    assert 'pip install "adamnx-hf[recipes]"' in capsys.readouterr().err


@pytest.mark.parametrize("keep_decoded", [True, False])
def test_images_are_read_as_they_are(keep_decoded):
    random = np.random.default_rng(0)
    colour = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pictures = [
        Picture.fromarray(colour),
        Picture.fromarray(colour[..., 0]),  # grey
        Picture.fromarray(np.full((48, 64, 3), 77, np.uint8)),  # of another size
    ]
    data = Dataset.from_dict(
        {"image": pictures, "label": [4, 2, 0]}, features=Features({"image": Image(), "label": ClassLabel(5)})
    )
    images = ImageDataset(
        data, image_column="image", labels=data["label"], size=32, keep_decoded=keep_decoded
    )
    batch = images.__getitems__([0, 2, 1])
    assert batch["labels"].tolist() == [4, 0, 2] and batch["labels"].dtype == torch.int64
    pixels = batch["pixel_values"]
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 3, 32, 32)
    assert torch.equal(pixels[0], torch.tensor(colour).permute(2, 0, 1))
    assert (pixels[1] == 77).all()
    assert torch.equal(pixels[2], torch.tensor(colour[..., 0]).expand(3, 32, 32))
    assert torch.equal(images[1]["pixel_values"], pixels[2]) and len(images) == 3


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "has none; leave the row out"),
        (np.full((32, 32), 30000, np.uint16), "cannot be read (its pixels have more than 8 bits"),
        ({"bytes": b"no image", "path": None}, "cannot be read (cannot identify image file"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(image, message):
    good = Picture.fromarray(np.zeros((32, 32, 3), np.uint8))
    features = Features({"image": Image(), "label": ClassLabel(5)})
    data = Dataset.from_dict({"image": [good, image, good], "label": [4, 2, 0]}, features=features)
    images = ImageDataset(data, image_column="image", labels=[4, 2, 0], size=32, split="test")
    with pytest.raises(RecipeError) as error:
        images.__getitems__([0, 2, 1])
    assert str(error.value).startswith("image: row 1 of the split 'test' ") and message in str(error.value)


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
    assert run.EXTRA == "recipes"


def test_a_title_is_printed_on_its_line(tiny, tmp_path, capsys):
    words = ["--title", "a\x1b[2J\nadamnx-hf: all is well", "--max_steps", "1", "--save_strategy", "no"]
    assert cli.main(["run", tiny, "--output_dir", str(tmp_path / "out"), *words]) == 0
    assert "tiny: a\\x1b[2J adamnx-hf: all is well\n" in capsys.readouterr().out


SAVES = ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2"]


@pytest.fixture
def kept(tiny, tmp_path):
    """A run with checkpoints at the steps 2, 4 and 6."""
    out = tmp_path / "out"
    assert cli.main(["run", tiny, *SAVES, "--seed", "3", "--output_dir", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "checkpoint-6 is of a run with seed 3, not 42; go on with --seed as it was, or start anew with"),
        (["--seed", "3", "--optim", "adamw"], "is of a run with optim 'adamnx', not 'adamw'"),
        (["--seed", "3", "--optim_args", "eps=1e-3"], "is of a run with optim_args None, not 'eps=1e-3'"),
        (["--seed", "3", "--learning_rate", "0.1"], "is of a run with learning_rate 0.01, not 0.1"),
        (["--seed", "3", "--jitter_probability", "0"], "is of a run with jitter_probability 0.5, not 0.0"),
    ],
)
def test_another_run_does_not_go_on(words, message, kept, tiny, capsys):
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    argv = ["run", tiny, *SAVES, *words, "--output_dir", str(kept), "--resume_from_checkpoint", "last"]
    assert cli.main(argv) == 1
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == before


def test_a_run_may_go_on_for_longer_and_from_a_folder_that_has_moved(kept, tiny, tmp_path, folder):
    data = shutil.copytree(folder, tmp_path / "moved")
    argv = [
        "run",
        tiny,
        *SAVES,
        "--seed",
        "3",
        "--output_dir",
        str(kept),
        "--resume_from_checkpoint",
        "last",
    ]
    assert cli.main([*argv, "--max_steps", "8", "--dataset_name", str(data), "--eval_strategy", "no"]) == 0
    assert results_of(kept)["steps"] == 8


def test_what_was_measured_is_kept(kept, tiny):
    before = results_of(kept)
    words = [
        "--seed",
        "3",
        "--output_dir",
        str(kept),
        "--resume_from_checkpoint",
        str(kept / "checkpoint-2"),
    ]
    assert cli.main(["run", tiny, *SAVES, *words]) == 0
    after = results_of(kept)
    assert after["memory_bytes"] == before["memory_bytes"] is not None
    words[-1] = str(kept / "checkpoint-6")
    assert cli.main(["run", tiny, *SAVES, *words]) == 0  # a finished run
    last = results_of(kept)
    assert [row["train_seconds"] for row in last["per_epoch"]] == [
        row["train_seconds"] for row in after["per_epoch"]
    ]
    assert last["train_seconds"] == after["train_seconds"] > 0 and last["train_images_per_second"] > 0
    assert last["memory_bytes"] == before["memory_bytes"]


def test_an_interrupted_removal_leaves_nothing_to_go_on_from(kept, monkeypatch):
    def removed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer_patches.checkpoints.remove", removed)
    with pytest.raises(KeyboardInterrupt):
        run._remove_results(kept)
    assert checkpoints.last_complete_checkpoint(kept) is None and (kept / "results.json").exists()


def test_an_evaluation_on_start_is_of_the_start(tiny, tmp_path):
    tables = []
    for name in ("whole", "cut"):
        out = tmp_path / name
        words = ["run", tiny, *SAVES, "--eval_on_start", "true", "--output_dir", str(out)]
        assert cli.main(words) == 0
        if name == "cut":
            assert cli.main([*words, "--resume_from_checkpoint", str(out / "checkpoint-4")]) == 0
        tables.append([row["step"] for row in results_of(out)["per_epoch"]])
    assert tables[0] == tables[1]


def test_a_checkpoint_of_the_model_alone(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["run", tiny, *SAVES, "--save_only_model", "true", "--output_dir", str(out)]
    assert cli.main(words) == 0
    for which in ("last", str(out / "checkpoint-2")):
        assert cli.main([*words, "--resume_from_checkpoint", which]) == 1
        assert "holds no optimizer's state (save_only_model); " in capsys.readouterr().err


def test_no_limit_is_no_limit(tiny, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["run", tiny, *SAVES, "--save_total_limit", "-1", "--output_dir", str(out)]) == 0
    assert sorted(path.name for path in out.glob("checkpoint-*")) == [f"checkpoint-{i}" for i in (2, 4, 6)]


@pytest.mark.parametrize(
    "words",
    [
        ["--output_dir", "x" * 300],
        ["--output_dir", "/".join(["y" * 200] * 30)],
        ["--output_dir", "a\udc80b"],
        ["--output_dir", "a\0b"],
        ["--resume_from_checkpoint", "z" * 5000],
    ],
)
def test_what_can_be_no_path(words, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert cli.main(["run", tiny, *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"adamnx-hf run: error: {words[0][2:]}: ") and "is no path (" in line
    assert set(tmp_path.iterdir()) == before


BEST = ["--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"]


def test_what_the_weights_are_is_recorded(tiny, tmp_path, monkeypatch):
    """Those of the largest loss, so that they are not the last step's; and that one is not judged by them."""
    monkeypatch.setattr("adamnx_hf.runs.report.draw", lambda *_: None)
    out = tmp_path / "out"
    words = [*BEST, "--max_steps", "5", "--load_best_model_at_end", "true"]
    resolved = recipe.resolve(tiny, [*words, "--output_dir", str(out)])
    resolved.training_arguments.greater_is_better = True
    rows = run.train(resolved, bare=True, keep_model=True)["per_epoch"]
    assert [row["step"] for row in rows] == [2, 4, 5]
    worst = max(rows, key=lambda row: row["eval_loss"])
    assert worst["step"] != 5 and rows[-1]["eval_loss"] < worst["eval_loss"]
    results = results_of(out)
    known = {name: worst[name] for name in results["metrics"]}
    place = {"step": worst["step"], "epoch": worst["epoch"]}
    assert results["weights"] == {**place, "chosen_by": "eval_loss", "metrics": known}
    saved = out / f"checkpoint-{worst['step']}" / "model.safetensors"
    assert (out / "model.safetensors").read_bytes() == saved.read_bytes()


@pytest.mark.parametrize(
    ("loads", "best", "expected"),
    [
        (True, "checkpoint-4", (4, 2.0, "top1_error", {"top1_error": 20.0})),
        (True, "checkpoint-2", (6, 3.0, None, {"top1_error": 40.0})),  # which is no longer there
        (True, None, (6, 3.0, None, {"top1_error": 40.0})),
        (False, "checkpoint-4", (6, 3.0, None, {"top1_error": 40.0})),
    ],
)
def test_the_last_steps_weights_are_there_unless_others_were_loaded(loads, best, expected, tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    trainer = SimpleNamespace(
        args=SimpleNamespace(load_best_model_at_end=loads, metric_for_best_model="eval_top1_error"),
        state=SimpleNamespace(global_step=6, best_model_checkpoint=best and str(tmp_path / best)),
    )
    table = [
        {"step": 2 * i, "epoch": float(i), "top1_error": error, "top5_error": None}
        for i, error in enumerate((30.0, 20.0, 40.0), 1)
    ]
    weights = run._weights(trainer, table, ["top1_error", "top5_error"])
    assert tuple(weights[key] for key in ("step", "epoch", "chosen_by", "metrics")) == expected


@pytest.mark.parametrize(
    ("strategy", "logged", "at_step", "at_epoch"),
    [
        ("steps", [], True, True),
        ("steps", [{"step": 5, "eval_loss": 1.0}], True, False),  # the step's own
        ("epoch", [{"step": 4, "eval_loss": 1.0}], False, True),  # though eval_delay has not passed
        ("no", [], False, False),
    ],
)
def test_the_last_step_is_evaluated_within_training(strategy, logged, at_step, at_epoch):
    callback = ResumingCallback(None)
    args = SimpleNamespace(eval_strategy=strategy, logging_strategy="steps")
    state = SimpleNamespace(epoch=0.5, global_step=5, log_history=logged)
    for ends, expected in ((callback.on_step_end, at_step), (callback.on_epoch_end, at_epoch)):
        assert ends(args, state, TrainerControl(should_training_stop=True)).should_evaluate == expected
        assert not ends(args, state, TrainerControl()).should_evaluate


def test_the_end_of_a_run_says_which_weights_are_there(capsys, tmp_path):
    results = {
        "weights": {"step": 1200, "epoch": 2, "chosen_by": "eval_loss", "metrics": {"top1_error": 30.0}},
        "steps": 3000,
        "judged_on_training_rows": True,
        "metrics": {"top1_error": {"best": 20.0, "best_epoch": 4, "last": 40.0}},
        "throughput": {"data": None, "model": None},
        "train_images_per_second": None,
        "wall_seconds": 1.0,
    }
    run._say_results(results, tmp_path, "images", [])
    said = capsys.readouterr().out.splitlines()
    chosen = "(chosen on the evaluation split itself)"
    assert said[0] == f"The model is that of step 1,200, the best by eval_loss, top1_error 30.00 {chosen}"
    assert said[1] == "Judged on rows that it was trained on: the figures say nothing of others"
    results |= {"steps": 1200, "judged_on_training_rows": False}
    run._say_results(results, tmp_path, "images", [])
    assert capsys.readouterr().out.startswith("top1_error: 40.00 after the last epoch")


def test_a_run_on_other_data_than_the_recipes(tiny, tmp_path, folder, capsys, monkeypatch):
    """Judged on rows that it was trained on, of examples that do not all fit."""
    make_trainer = image_classification.make_trainer

    def with_dropped(resolved):
        trainer = make_trainer(resolved)
        trainer.dropped = {"train_split": 2, "eval_split": 0}
        return trainer

    monkeypatch.setattr(image_classification, "make_trainer", with_dropped)
    monkeypatch.setattr("adamnx_hf.runs.report.draw", lambda *_: None)
    out = tmp_path / "out"
    monkeypatch.chdir(folder.parent)
    words = ["--title", "Flowers", "--max_steps", "1", "--eval_split", "train[:8]", "--output_dir", str(out)]
    resolved = recipe.resolve(tiny, [*words, "--dataset_name", folder.name])
    resolved.data_changes = {"dataset_name": folder.name, "label_column": "fine_label"}
    run.train(resolved)
    said = capsys.readouterr().out
    assert said.startswith("tiny\n") and "Flowers" not in said
    note = "eval_split: train[:8] has rows of train_split (train): what is judged on has been trained on, "
    assert f"  {note}" in said
    results = results_of(out)
    assert results["data_changes"] == {"dataset_name": str(folder), "label_column": "fine_label"}
    assert results["judged_on_training_rows"] and [text for text in results["notes"] if text.startswith(note)]
    assert results["dropped_examples"] == {"train_split": 2}
    assert "title" not in yaml.safe_load((out / "recipe.yaml").read_text())


def test_a_smoke_run_does_not_bear_the_title_of_its_recipe():
    resolved = recipe.resolve("cifar100_nano", ["--smoke"])
    assert resolved.arguments.title and run.true_title(resolved) == ""
    resolved = recipe.resolve("cifar100_nano", ["--seed", "3", "--num_train_epochs", "1"])
    assert run.true_title(resolved) == resolved.arguments.title


def test_metrics_that_are_not_there_or_are_no_numbers(tmp_path, monkeypatch):
    kinds = {"top1_error": "min", "top5_error": "min", "mean_iou": "max"}
    metrics = {name: Metric(kind, "", "") for name, kind in kinds.items()}
    values = [(math.nan, math.nan), (30.0, 50.0), (40.0, 60.0)]
    rows = [
        {"epoch": i, "learning_rate": 0.1, "train_loss": 1.0, "eval_loss": 1.0}
        | {"top1_error": error, "mean_iou": iou, "top5_error": None}
        for i, (error, iou) in enumerate(values, 1)
    ]
    assert report.best_and_last(rows, metrics) == {
        "top1_error": {"best": 30.0, "best_epoch": 2, "last": 40.0},
        "mean_iou": {"best": 60.0, "best_epoch": 3, "last": 60.0},
    }
    drawn = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path: drawn.append(figure))
    report.draw(tmp_path / "curves.png", "a run", rows, metrics)
    labels = [text.get_text() for text in drawn[0].axes[1].get_legend().get_texts()]
    assert labels == ["top-1 error, best 30.00", "mean iou, best 60.00"]


def test_an_evaluation_again_keeps_the_training_loss():
    judged = {"epoch": 1.0, "step": 4, "eval_loss": 2.0, "eval_top1_error": 30.0}
    log = [{"step": 4, "loss": 0.5, "learning_rate": 0.1}, judged, judged | {"eval_top1_error": 20.0}]
    (row,) = report.epochs(log, ["top1_error"], {})
    assert (row["train_loss"], row["top1_error"]) == (0.5, 20.0)
