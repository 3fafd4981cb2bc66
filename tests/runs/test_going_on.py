"""Runs that go on from checkpoints: which ones, from which, and what is kept."""

import json
import os
import shutil

import pytest
from tiny_recipe import results_of

from adamnx_hf import cli
from adamnx_hf.runs.folder import remove_results
from adamnx_hf.tasks import image_classification
from trainer_patches import checkpoints


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
        remove_results(kept)
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


def test_the_record_is_one_whoever_makes_callbacks_anew(tiny, tmp_path):
    """Transformers makes them by their class alone when it restores what a checkpoint says of them."""
    out = tmp_path / "out"
    words = ["run", tiny, *STEPS, "--num_train_epochs", "2", "--output_dir", str(out)]
    words += ["--restore_callback_states_from_checkpoint", "true"]
    assert cli.main([*words, "--max_steps", "4"]) == 0
    assert cli.main([*words, "--resume_from_checkpoint", "last"]) == 0
    results = results_of(out)
    assert results["steps"] == 12 and results["memory_bytes"]["states"] > 0
    rows = json.loads((out / "metrics.json").read_text())
    assert rows == results["per_epoch"] and all(row["train_seconds"] > 0 for row in rows)
