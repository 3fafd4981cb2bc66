"""What users are told of a run that fails, in one line."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from adamnx_hf import cli, recipes
from adamnx_hf.runs.trial import try_optimizer
from adamnx_hf.tasks import image_classification


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
    args = recipes.resolve(tiny, words).training_arguments
    before, state = dict(vars(args)), torch.get_rng_state()
    try_optimizer(args)
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


@pytest.mark.parametrize("twice", [False, True])
def test_ctrl_c(twice, tiny, tmp_path):
    """Of a whole process, with workers, as a terminal has it: to all of them."""
    out = tmp_path / "out"
    words = ["--max_steps", "100000", "--dataloader_num_workers", "2", "--output_dir", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "adamnx_hf.cli", "run", tiny, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.monotonic() + 120
    while not (out / "metrics.json").exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    if twice:
        time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err and "Exception ignored" not in err, err[-3000:]
    if process.returncode != -signal.SIGINT:  # the shell says 130 to both
        assert process.returncode == 130 and err.splitlines()[-1] == "adamnx-hf: interrupted"
    assert twice or not (out / ".lock").exists()
    for path in out.glob("[!.]*.json"):
        json.loads(path.read_text())


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
