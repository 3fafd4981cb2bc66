"""What a run says of itself: rows, best and last, weights, titles, and words."""

import math
from types import SimpleNamespace

import pytest
import yaml
from matplotlib.figure import Figure
from tiny_recipe import results_of
from transformers import TrainerControl

from adamnx_hf import cli, recipes
from adamnx_hf.runs import train
from adamnx_hf.runs.announcements import print_results
from adamnx_hf.runs.curves import draw_runs
from adamnx_hf.runs.epochs import find_best_and_last, list_epochs
from adamnx_hf.runs.results import describe_weights
from adamnx_hf.runs.titles import find_title
from adamnx_hf.tasks import image_classification
from adamnx_hf.tasks.base import Metric
from adamnx_hf.tasks.callbacks import ResumingCallback


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


def test_a_title_is_printed_on_its_line(tiny, tmp_path, capsys):
    words = ["--title", "a\x1b[2J\nadamnx-hf: all is well", "--max_steps", "1", "--save_strategy", "no"]
    assert cli.main(["run", tiny, "--output_dir", str(tmp_path / "out"), *words]) == 0
    assert "tiny: a\\x1b[2J adamnx-hf: all is well\n" in capsys.readouterr().out


BEST = ["--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"]


def test_what_the_weights_are_is_recorded(tiny, tmp_path, monkeypatch):
    """Those of the largest loss, so that they are not the last step's; and that one is not judged by them."""
    monkeypatch.setattr("adamnx_hf.runs.curves.draw_runs", lambda *_: None)
    out = tmp_path / "out"
    words = [*BEST, "--max_steps", "5", "--load_best_model_at_end", "true"]
    resolved = recipes.resolve(tiny, [*words, "--output_dir", str(out)])
    resolved.training_arguments.greater_is_better = True
    rows = train(resolved, bare=True, keep_model=True)["per_epoch"]
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
    weights = describe_weights(trainer, table, ["top1_error", "top5_error"])
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
    print_results(results, tmp_path, "images", [])
    said = capsys.readouterr().out.splitlines()
    chosen = "(chosen on the evaluation split itself)"
    assert said[0] == f"The model is that of step 1,200, the best by eval_loss, top1_error 30.00 {chosen}"
    assert said[1] == "Judged on rows that it was trained on: the figures say nothing of others"
    results |= {"steps": 1200, "judged_on_training_rows": False}
    print_results(results, tmp_path, "images", [])
    assert capsys.readouterr().out.startswith("top1_error: 40.00 after the last epoch")


def test_a_run_on_other_data_than_the_recipes(tiny, tmp_path, folder, capsys, monkeypatch):
    """Judged on rows that it was trained on, of examples that do not all fit."""
    make_trainer = image_classification.make_trainer

    def with_dropped(resolved):
        trainer = make_trainer(resolved)
        trainer.dropped = {"train_split": 2, "eval_split": 0}
        return trainer

    monkeypatch.setattr(image_classification, "make_trainer", with_dropped)
    monkeypatch.setattr("adamnx_hf.runs.curves.draw_runs", lambda *_: None)
    out = tmp_path / "out"
    monkeypatch.chdir(folder.parent)
    words = ["--title", "Flowers", "--max_steps", "1", "--eval_split", "train[:8]", "--output_dir", str(out)]
    resolved = recipes.resolve(tiny, [*words, "--dataset_name", folder.name])
    resolved.data_changes = {"dataset_name": folder.name, "label_column": "fine_label"}
    train(resolved)
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
    resolved = recipes.resolve("cifar100_nano", ["--smoke"])
    assert resolved.arguments.title and find_title(resolved) == ""
    resolved = recipes.resolve("cifar100_nano", ["--seed", "3", "--num_train_epochs", "1"])
    assert find_title(resolved) == resolved.arguments.title


def test_metrics_that_are_not_there_or_are_no_numbers(tmp_path, monkeypatch):
    kinds = {"top1_error": "min", "top5_error": "min", "mean_iou": "max"}
    metrics = {name: Metric(kind, "", "") for name, kind in kinds.items()}
    values = [(math.nan, math.nan), (30.0, 50.0), (40.0, 60.0)]
    rows = [
        {"epoch": i, "learning_rate": 0.1, "train_loss": 1.0, "eval_loss": 1.0}
        | {"top1_error": error, "mean_iou": iou, "top5_error": None}
        for i, (error, iou) in enumerate(values, 1)
    ]
    assert find_best_and_last(rows, metrics) == {
        "top1_error": {"best": 30.0, "best_epoch": 2, "last": 40.0},
        "mean_iou": {"best": 60.0, "best_epoch": 3, "last": 60.0},
    }
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure) or save(figure, path))
    draw_runs(tmp_path / "curves.png", "a run", {"": rows}, metrics)
    labels = [text.get_text() for text in drawn[0].axes[1].get_legend().get_texts()]
    assert labels == ["top-1 error, best 30.00", "mean iou, best 60.00"]


def test_an_evaluation_again_keeps_the_training_loss():
    judged = {"epoch": 1.0, "step": 4, "eval_loss": 2.0, "eval_top1_error": 30.0}
    log = [{"step": 4, "loss": 0.5, "learning_rate": 0.1}, judged, judged | {"eval_top1_error": 20.0}]
    (row,) = list_epochs(log, ["top1_error"], {})
    assert (row["train_loss"], row["top1_error"]) == (0.5, 20.0)
