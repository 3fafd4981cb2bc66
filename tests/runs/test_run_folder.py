"""What a run finds in its folder: whose it is, what it removes, and what it goes on from."""

import os
import signal
import subprocess
import sys

import pytest
import yaml

from adamnx_hf import cli
from adamnx_hf.tasks import image_classification
from adamnx_hf.tasks.trainer import RecipeTrainer


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
