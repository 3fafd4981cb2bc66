"""The paper's tables beside runs."""

import json

import pytest

from adamnx_hf import cli
from adamnx_hf.recipes.paper_tables import tables
from adamnx_hf.studies import paper


def result(folder, name, **changes):
    content = {
        "recipe": "cifar100_efficientnetv2_m",
        "optim": "adamnx",
        "optim_args": None,
        "betas": [0.9, 0.99],
        "seed": 42,
        "fast": False,
        "smoke": False,
        "changes": {},
        "train_examples": 50000,
        "eval_examples": 10000,
        "metrics": {
            "top1_error": {"best": 30.0, "best_epoch": 2, "last": 31.0},
            "top5_error": {"best": 10.0, "best_epoch": 1, "last": 11.0},
        },
        **changes,
    }
    (folder / name).mkdir(parents=True)
    (folder / name / "results.json").write_text(json.dumps(content))
    return content


def metrics(top1, top5):
    return {
        "top1_error": {"best": top1, "best_epoch": 2, "last": top1 + 1},
        "top5_error": {"best": top5, "best_epoch": 1, "last": top5 + 1},
    }


@pytest.fixture
def runs(tmp_path):
    result(tmp_path, "a", metrics=metrics(34.0, 12.0))
    result(tmp_path, "b", metrics=metrics(36.0, 13.0), seed=43, fast=True)
    result(tmp_path, "adax", optim_args="beta2_schedule=adax,fused=true", metrics=metrics(35.0, 11.5))
    result(
        tmp_path, "adam", optim_args="beta2_schedule=adam", betas=[0.9, 0.999], changes={"adam_beta2": 0.999}
    )
    result(tmp_path, "adam99", optim_args="beta2_schedule=adam")
    result(tmp_path, "short", changes={"num_train_epochs": 1.0})
    result(tmp_path, "few", eval_examples=200)
    result(tmp_path, "empty", metrics={})
    result(tmp_path, "null", metrics=None)
    result(tmp_path, "smoke", smoke=True)
    result(tmp_path, "torch", optim="adam", betas=[0.9, 0.999])
    result(tmp_path, "other", recipe="somebodys", metrics=metrics(50.0, 20.0))
    (tmp_path / "alien").mkdir()
    (tmp_path / "alien" / "results.json").write_text("[1]")
    return tmp_path


def test_the_ablation(runs):
    rows, left_out = paper.fill(tables()[7], paper.find_runs([runs]))
    by_label = {row["label"].removeprefix("β̂2 of "): row for row in rows}
    assert by_label["AdamNX"]["best"] == {"top1_error": [34.0, 36.0], "top5_error": [12.0, 13.0]}
    assert by_label["AdamNX"]["last"]["top1_error"] == [35.0, 37.0]
    assert [len(by_label[name]["runs"]) for name in ("Adam", "Adafactor", "AdaX", "AdamNX")] == [1, 0, 1, 2]
    assert by_label["AdamNX"]["runs"][1].endswith("b (--fast)")
    assert by_label["AdaX"]["published"] == {"top1_error": 35.22, "top5_error": 11.92}
    assert {one["path"].rpartition("/")[2]: one["why"] for one in left_out} == {
        "adam99": "betas [0.9, 0.99], not [0.9, 0.999]",
        "short": "changed: num_train_epochs=1.0",
        "few": "200 eval_examples, not 10000",
        "empty": "no top1_error in its results.json",
        "smoke": "a smoke run",
        "torch": "no row for its optimizer",
    }


def test_other_data_do_not_pass_for_the_papers_and_copies_of_it_do(tmp_path):
    copy = {"dataset_name": "/data/cifar", "dataset_config_name": None, "image_column": "image"}
    result(tmp_path, "copy", data_changes=copy | {"data_files": {"train": ["a.parquet"]}})
    result(tmp_path, "other", data_changes=copy | {"class_names": ["a", "b"]})
    result(tmp_path, "odd", data_changes=["class_names"])
    rows, left_out = paper.fill(tables()[7], paper.find_runs([tmp_path]))
    assert [path for row in rows for path in row["runs"]] == [str(tmp_path / "copy")]
    assert left_out == [{"path": str(tmp_path / "other"), "why": "changed: class_names=['a', 'b']"}]


def test_the_ablation_of_segmentation(tmp_path):
    iou = {"mean_iou": {"best": 40.0, "best_epoch": 1, "last": 39.0}}
    split = {"train_examples": 10582, "eval_examples": 1449}
    result(tmp_path, "own", recipe="sbd_unet", metrics=iou, **split)
    better = {"mean_iou": {"best": 41.0, "best_epoch": 1, "last": 38.0}}
    result(tmp_path, "sbds", recipe="sbd_unet", metrics=better, train_examples=8498, eval_examples=2857)
    runs = paper.find_runs([tmp_path])
    rows, left_out = paper.fill(tables()[10], runs)
    published = [34.43, 31.76, 36.37, 37.81]
    assert [row["published"] for row in rows] == [{"mean_iou": value} for value in published]
    assert rows[3]["best"] == {"mean_iou": [41.0]} and rows[3]["last"] == {"mean_iou": [38.0]}
    assert [one["why"] for one in left_out] == ["10582 train_examples, not 8498"]
    (recipes_own,) = (run for run in runs if run["train_examples"] == 10582)
    rows, left_out = paper.fill(tables()[10], [recipes_own])
    assert rows[3]["last"] == {"mean_iou": [39.0]} and not left_out


def test_as_markdown(runs, capsys):
    assert cli.main(["paper", str(runs), "--table", "7", "--table", "3", "--table", "11"]) == 0
    out = capsys.readouterr().out
    assert "| β̂2 of AdamNX | 34.27 / 11.40 | 35.00 ± 1.41 / 12.50 ± 0.71 |" in out
    assert "| β̂2 of Adafactor | 41.22 / 15.23 | \N{EN DASH} / \N{EN DASH} |" in out
    assert "| Adam | \N{EN DASH} / \N{EN DASH} | 30.00 / 10.00 | 31.00 / 11.00 | 1 |" in out
    assert "| SophiaG | 41.01 / 15.42 | \N{EN DASH} / \N{EN DASH} |" in out
    assert "changed: num_train_epochs=1.0" in out
    assert "somebodys, adamnx, last epoch: top-1 error 51.00, top-5 error 21.00" in out


def test_every_table_without_a_run(tmp_path, capsys):
    assert cli.main(["paper", "--json", str(tmp_path)]) == 0
    known = json.loads(capsys.readouterr().out)
    assert [table["number"] for table in known] == list(range(3, 13))
    assert not any(row["runs"] for table in known for row in table["rows"])
    assert all(table["recipe"] for table in known)
    assert cli.main(["paper", str(tmp_path)]) == 0
    assert "There is no recipe for this table yet." not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--table", "2"], "--table 2: the paper's tables are 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"),
        (["nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_does_not_fit(argv, message, capsys):
    assert cli.main(["paper", *argv]) == 1
    assert capsys.readouterr().err == f"adamnx-hf paper: error: {message}\n"


def test_curves_of_several_runs(tmp_path, capsys):
    rows = [
        {"epoch": i, "train_loss": None if i == 1 else 1 / i, "eval_loss": 1.0, "learning_rate": 0.1 / i}
        | {"top1_error": 50.0 - i, "top5_error": 20.0}
        for i in (1, 2, 3)
    ]
    for seed in (1, 2):
        result(tmp_path, f"s{seed}", seed=seed, per_epoch=rows, task="image_classification")
    picture = tmp_path / "curves.png"
    assert cli.main(["paper", str(tmp_path), "--table", "7", "--curves", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    result(tmp_path, "other", recipe="somebodys")
    capsys.readouterr()
    assert cli.main(["paper", str(tmp_path), "--curves", str(picture)]) == 1
    assert "needs runs of one recipe, found cifar100_efficientnetv2_m, somebodys" in capsys.readouterr().err
