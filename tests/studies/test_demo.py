import json
import math
import re

import numpy as np
import pytest

from adamnx_hf import cli
from adamnx_hf.commands.demo import check_folder
from adamnx_hf.figures.__main__ import main as draw_figures
from adamnx_hf.optim.schedules import BETA2_SCHEDULES
from adamnx_hf.studies import decay
from adamnx_hf.studies.demo import study as demo
from adamnx_hf.studies.demo import training
from adamnx_hf.studies.paired import Difference, paired_difference

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What one short demo writes, and what it prints."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    assert cli.main(["demo", "--output-dir", str(folder), "--epochs", "1", "--seeds", "0", "1"]) == 0
    return folder


def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_writes_its_two_files_alone(output):
    assert {path.name for path in output.iterdir()} == {"results.json", "curves.png"}
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_results_say_what_was_run(output):
    content = results(output)
    assert content["settings"]["seeds"] == [0, 1]
    assert content["settings"]["learning_rate"] == demo.LEARNING_RATE
    assert content["versions"]["torch"]
    runs = {(run["optim"], run["seed"]): run for run in content["runs"]}
    assert set(runs) == {(optim, seed) for optim in ("adamnx", "adamw_torch_fused") for seed in (0, 1)}
    for (optim, _), run in runs.items():
        assert run["optimizer"] == {"adamnx": "AdamNX", "adamw_torch_fused": "AdamW"}[optim]
        assert run["betas"] == {"adamnx": [0.9, 0.99], "adamw_torch_fused": [0.9, 0.999]}[optim]
        assert [epoch["epoch"] for epoch in run["epochs"]] == [1]
        assert 0.1 < run["epochs"][0]["test_accuracy"] <= 1
        assert 0 < run["epochs"][0]["test_loss"] < math.log(10) + 0.5
        assert run["seconds"] > 0


def test_comparison_follows_from_the_runs(output):
    content = results(output)
    (comparison,) = content["comparisons"]
    loss = {(run["optim"], run["seed"]): run["epochs"][-1]["test_loss"] for run in content["runs"]}
    differences = [loss["adamnx", seed] - loss["adamw_torch_fused", seed] for seed in (0, 1)]
    assert comparison["loss"]["mean"] == pytest.approx(np.mean(differences))
    assert comparison["loss"]["low"] < comparison["loss"]["mean"] < comparison["loss"]["high"]


def test_no_folder_of_this_machine_in_the_results(output):
    assert str(output.parent) not in (output / "results.json").read_text(encoding="utf-8")


def test_runs_repeat_exactly_and_the_demo_overwrites_its_own(output, capsys):
    before = {(run["optim"], run["seed"]): run["epochs"] for run in results(output)["runs"]}
    argv = ["demo", "--output-dir", str(output), "--epochs", "1", "--seeds", "1", "--optim", "adamnx"]
    assert cli.main(argv) == 0
    (again,) = results(output)["runs"]
    assert again["epochs"] == before["adamnx", 1]
    printed = capsys.readouterr()
    assert "curves.png" in printed.out
    assert "AdamNX (0.9, 0.99)" in printed.out
    assert "arn" not in printed.err  # no warnings


def test_the_model_is_as_the_title_says(tmp_path):
    one = demo.Demo(epochs=1, learning_rate=1e-3)
    trainer = training.make_trainer(one, "adamnx", 0, training.load_digits(), str(tmp_path))
    assert f"{trainer.model.num_parameters():,} parameters" in demo.MODEL
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (1347, 450)


def stops(argv, capsys):
    """Runs the demo, which ends with one line that it returns."""
    assert cli.main(["demo", *argv]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("adamnx-hf demo: error: ")
    return line


def test_an_optimizer_that_does_not_exist_ends_in_one_line(tmp_path, capsys):
    line = stops(["--output-dir", str(tmp_path), "--optim", "adamnx", "adamxn"], capsys)
    assert re.search(r"--optim adamxn: '?adamxn'? is not a valid", line)


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.tex": ""},
        {"curves.png": ""},
        {"results.json": "{}"},
        {"results.json": "[1]"},
        {"results.json": "not json"},
        {"results.json": json.dumps({"made_by": demo.MADE_BY}), "thesis.tex": ""},
    ],
)
def test_leaves_a_folder_of_other_files_alone(files, tmp_path, capsys):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    line = stops(["--output-dir", str(tmp_path)], capsys)
    assert str(tmp_path) in line and "--overwrite-output-dir" in line
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files
    check_folder(tmp_path, overwrite=True)


def test_output_dir_is_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    argv = ["--output-dir", str(tmp_path / "file"), "--overwrite-output-dir"]
    assert "file is a file" in stops(argv, capsys)


def test_output_dir_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    line = stops(["--output-dir", str(tmp_path / "file" / "folder")], capsys)
    assert re.search(r"--output-dir .*folder: Not a directory", line)


def test_paired_difference_by_hand():
    # Differences 1, 2, 3: mean 2, sd 1, standard error 1/√3; t(0.975, 2 degrees of freedom) = 4.302653.
    difference = paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert difference.mean == 2
    assert difference.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert difference.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert difference.sign == 0


def test_interval_of_another_confidence():
    # Two pairs: t(0.75, 1) = 1, so the 50 % interval runs from one difference to the other.
    difference = paired_difference([1.0, 3.0], [0.0, 0.0], confidence=0.5)
    assert (difference.low, difference.high) == (pytest.approx(1), pytest.approx(3))


@pytest.mark.parametrize("values", [[0.5], [0.3, 0.2], [0.1 + 0.2, 0.2]])
def test_no_interval_without_spread(values):
    difference = paired_difference(values, [value - 0.1 for value in values])
    assert difference.mean == pytest.approx(0.1)
    assert difference.low is difference.high is difference.sign is None


def test_pairs_must_match():
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0, 2.0], [1.0])


ABOVE, BELOW, AROUND = Difference(2, 1, 3), Difference(-2, -3, -1), Difference(1, -1, 3)


def verdict(first, second, loss, accuracy):
    return demo.verdict(demo.Comparison(first, second, loss, accuracy))


def test_verdict_better():
    text = verdict("A", "B", loss=BELOW, accuracy=ABOVE)
    assert text.startswith("test loss: A is better than B here; test accuracy: A is better than B here.")


def test_verdict_worse():
    text = verdict("A", "B", loss=ABOVE, accuracy=BELOW)
    assert text.startswith("test loss: A is worse than B here; test accuracy: A is worse than B here.")


@pytest.mark.parametrize("open_", [AROUND, Difference(1, 0, 2), Difference(1, None, None)])
def test_verdict_says_neither_where_it_cannot(open_):
    text = verdict("A", "B", loss=open_, accuracy=open_)
    assert "better" not in text
    assert "worse" not in text
    assert ("no difference shown" in text) == (open_.low is not None)
    assert "\n" not in text


@pytest.mark.parametrize("schedule", sorted(BETA2_SCHEDULES))
def test_shares_add_up_to_one(schedule):
    assert decay.shares(schedule, 5000).sum() == pytest.approx(1, abs=1e-12)


def test_shares_are_those_of_the_running_average():
    weights = decay.newest_weights("adamnx", range(1, 8))
    expected = np.zeros(7)
    for i, weight in enumerate(weights):
        expected *= 1 - weight
        expected[i] = weight
    np.testing.assert_allclose(decay.shares("adamnx", 7), expected, rtol=1e-12)


def test_shares_in_closed_form():
    age = np.arange(999, -1, -1)
    adam = 0.999**age
    np.testing.assert_allclose(decay.shares("adam", 1000), adam / adam.sum(), rtol=1e-9)
    adamnx = 0.99 ** (0.01 * np.arange(1000))
    np.testing.assert_allclose(decay.shares("adamnx", 1000), adamnx / adamnx.sum(), rtol=1e-9)


def test_figure_is_drawn(tmp_path):
    draw_figures([str(tmp_path / "images")])
    assert (tmp_path / "images" / "decay.png").stat().st_size > 20_000
