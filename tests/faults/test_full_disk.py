"""A disk that is full ends a run in one line, with all whole that was there before; it goes on afterwards."""

import errno
import json
import os
import subprocess

import pytest

pytest.importorskip("torchvision")

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Trainer

from adamnx_hf import cli
from adamnx_hf.common import files
from adamnx_hf.runs import curves
from adamnx_hf.tasks.trainer import RecipeTrainer
from trainer_patches.checkpoints import why_incomplete

#: In bytes, what each file of the small recipe's run is smaller or larger than.
LARGEST = {"recipe.yaml": 300, "model.safetensors": 8_000, "optimizer.pt": 20_000, "curves.png": 20_000}


def one_line(err):
    lines = [line for line in err.splitlines() if line.startswith("adamnx-hf")]
    assert len(lines) == 1 and "Traceback" not in err, err[-3000:]
    return lines[0]


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def limited():
    """Lets no file of this process grow beyond so many bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


SAVES = ["--save_strategy", "steps", "--save_steps", "3", "--disable_tqdm", "true"]


@pytest.mark.parametrize("name", ["recipe.yaml", "model.safetensors", "optimizer.pt"])
def test_a_limit_at_the_first_save(name, tiny, tmp_path, monkeypatch, capsys, limited):
    out = tmp_path / "out"
    words = ["run", tiny, "--output_dir", str(out), "--save_strategy", "steps", "--save_steps", "3"]
    train = RecipeTrainer.train

    def with_limit(*args, **kwargs):
        limited(LARGEST[name])
        try:
            return train(*args, **kwargs)
        finally:
            limited(-1)

    with monkeypatch.context() as patch:
        patch.setattr(RecipeTrainer, "train", with_limit)
        assert cli.main(words) == 1
    line = one_line(capsys.readouterr().err)
    assert f"{out}" in line and "cannot be written" in line
    assert line.endswith("free space there, or make it writable, and start again with --overwrite_output_dir")
    assert not out.exists() or names(out) <= {"recipe.yaml", "environment.json"}
    assert cli.main([*words, "--overwrite_output_dir"]) == 0


def raising(error, at):
    """A function that fails at its call of this number."""

    def wrap(function):
        calls = []

        def wrapped(*args, **kwargs):
            calls.append(args)
            if len(calls) == at:
                raise error
            return function(*args, **kwargs)

        return wrapped

    return wrap


ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    RuntimeError("basic_ios::clear: iostream error"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__}-{str(error)[:20]}")
def test_a_full_disk_at_the_second_save_goes_on_from_the_first(error, tiny, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    words = ["run", tiny, "--output_dir", str(out), "--save_strategy", "steps", "--save_steps", "3"]
    with monkeypatch.context() as patch:
        name = "_save_optimizer_and_scheduler"
        patch.setattr(Trainer, name, raising(error, 2)(getattr(Trainer, name)))
        assert cli.main(words) == 1
    line = one_line(capsys.readouterr().err)
    assert str(out) in line and line.endswith("and go on with --resume_from_checkpoint last")
    assert why_incomplete(out / "checkpoint-3") is None
    assert not (out / "checkpoint-6").exists()  # it would take room
    assert cli.main([*words, "--resume_from_checkpoint", "last"]) == 0
    assert json.loads((out / "results.json").read_text())["steps"] == 12


def test_a_full_disk_when_the_model_is_saved(tiny, tmp_path, monkeypatch, capsys):
    """The old model stays whole, and the run goes on from its last checkpoint, with nothing left to train."""
    out = tmp_path / "out"
    words = ["run", tiny, "--output_dir", str(out), "--save_strategy", "epoch"]
    assert cli.main(words) == 0
    model = (out / "model.safetensors").read_bytes()
    capsys.readouterr()

    def save_model(self, output_dir=None, _internal_call=False):
        real(self, output_dir, _internal_call)
        if not _internal_call:
            with open(os.path.join(output_dir or self.args.output_dir, "model.safetensors"), "r+b") as file:
                file.truncate(100)
            raise SafetensorError("Error while serializing: I/O error: File too large (os error 27)")

    real = RecipeTrainer.save_model
    with monkeypatch.context() as patch:
        patch.setattr(RecipeTrainer, "save_model", save_model)
        assert cli.main([*words, "--overwrite_output_dir", "--seed", "5"]) == 1
    line = one_line(capsys.readouterr().err)
    assert line.endswith("and go on with --resume_from_checkpoint last") and "(File too large)" in line
    assert (out / "model.safetensors").read_bytes() == model
    assert not [name for name in names(out) if name.startswith(".")]
    assert cli.main([*words, "--resume_from_checkpoint", "last", "--seed", "5"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["steps"] == 12 and len(results["per_epoch"]) == 2
    saved, last = load_file(out / "model.safetensors"), load_file(out / "checkpoint-12" / "model.safetensors")
    assert all(torch.equal(saved[key], last[key]) for key in last)


def test_a_picture_without_room_loses_no_results(tiny, tmp_path, capsys, limited):
    out = tmp_path / "out"
    draw = curves.draw_runs

    def drawn(*args):
        limited(LARGEST["curves.png"])
        try:
            draw(*args)
        finally:
            limited(-1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw_runs", drawn)
        assert cli.main(["run", tiny, "--output_dir", str(out), "--num_train_epochs", "1"]) == 1
    line = one_line(capsys.readouterr().err)
    assert f"{out / 'curves.png'} cannot be written (File too large); the model and results.json" in line
    assert json.loads((out / "results.json").read_text())["steps"] == 6
    assert not [name for name in names(out) if name.endswith(".png") or name.startswith(".")]
    assert cli.main(["paper", str(out), "--curves", str(tmp_path / "curves.png")]) == 0


@pytest.mark.parametrize("name", ["metrics.json", "results.json", "environment.json"])
def test_json_is_whole_or_not_there(name, tiny, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    write_text = files.write_text

    def full(path, text):
        if path.name != name:
            return write_text(path, text)
        with files.beside(path) as draft:
            draft.write_text(text[: len(text) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_text", full)
    assert cli.main(["run", tiny, "--output_dir", str(out), "--num_train_epochs", "1"]) == 1
    assert f"{out / name} cannot be written (No space left on device)" in one_line(capsys.readouterr().err)
    assert name not in names(out) and not [one for one in names(out) if one.startswith(".")]


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def write():
        with files.beside(path) as draft:
            draft.write_text("{")
            raise OSError(errno.EDQUOT, "quota")

    with pytest.raises(OSError, match="quota") as raised:
        write()
    assert raised.value.filename == str(path)
    assert json.loads(path.read_text()) == {"a": 1} and names(tmp_path) == {"a.json"}


def test_a_small_disk(tiny, tmp_path, capsys):
    """A disk of 192 kB, where one may be mounted: it holds three checkpoints and no more."""
    out = tmp_path / "out"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(out)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("nothing can be mounted here")
    try:
        words = ["run", tiny, "--output_dir", str(out), "--save_strategy", "steps", "--save_steps", "2"]
        assert cli.main(words) == 1
        line = one_line(capsys.readouterr().err)
        assert line.endswith("go on with --resume_from_checkpoint last")
        kept = sorted(path.name for path in out.glob("checkpoint-*"))
        assert kept and all(why_incomplete(out / name) is None for name in kept)
        again = [*words, "--resume_from_checkpoint", "last", "--save_total_limit", "1"]
        subprocess.run(["mount", "-o", "remount,size=1m", str(out)], check=True)
        assert cli.main(again) == 0
        assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-12"]
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_other_commands_say_it_in_a_line(monkeypatch, capsys):
    def run(args):
        raise OSError(errno.ENOSPC, "No space left on device", "report.json")

    monkeypatch.setattr("adamnx_hf.commands.recipes.run", run)
    assert cli.main(["recipes"]) == 1
    assert one_line(capsys.readouterr().err).startswith("adamnx-hf: report.json cannot be written (No space")
