"""Comparisons: what is trained on what, what is said of it, and what an interruption costs."""

import argparse
import hashlib
import json
import math
import statistics
from pathlib import Path

import pytest
import yaml

from adamnx_hf import cli, recipes
from adamnx_hf.commands import compare as command
from adamnx_hf.runs import training as run
from adamnx_hf.studies.compare import charts
from adamnx_hf.studies.compare.contenders import Contender
from adamnx_hf.studies.compare.plan import make_plan
from adamnx_hf.studies.compare.plan_file import read_plan_file
from adamnx_hf.studies.compare.refine import choose_next_places
from adamnx_hf.studies.paired import compare_pairs

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def content_of(out):
    return json.loads((out / "comparison.json").read_text())


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by a landscape: what was asked for, in order, and losses that are known."""
    asked = []
    best = {"adamnx": 0.01, "adamw": 0.001}

    def train(resolved, command=None, *, bare, keep_model, callbacks):
        args, data = resolved.training_arguments, resolved.task_arguments
        held_out = (data.sweep_hold_out, data.eval_on_sweep_rows)
        asked.append(
            (args.optim, args.learning_rate, args.seed, data.train_split, data.eval_split, *held_out)
        )
        loss = 1 + abs(math.log10(args.learning_rate / best[args.optim])) + args.seed / 1e4
        if args.optim == "adamw":
            loss += 0.5
        row = {"step": 8, "eval_loss": loss, "top1_error": 50 * loss, "top5_error": math.nan}
        results = {"per_epoch": [row], "optimizer": "X", "betas": None, "steps": 8, "train_seconds": 1.0,
                   "learning_rate": args.learning_rate, "environment": {}}  # fmt: skip
        out = Path(args.output_dir)
        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.yaml").write_text(yaml.safe_dump(recipes.as_file(resolved)))
        (out / "results.json").write_text(json.dumps(results))
        return results

    monkeypatch.setattr(run, "train", train)
    return asked


TWO = ["--optim", "adamnx", "adamw"]
AUTO = ["--sweep", "learning_rate=auto", "--sweep-seeds", "1", "--seeds", "2"]
SWEEP = ["--sweep", "learning_rate=0.1,0.01,0.001", "--sweep-seeds", "1", "--seeds", "3"]


def test_each_is_judged_at_its_own_best(tiny, tmp_path, trained, capsys):
    out = tmp_path / "out"
    assert cli.main(["compare", tiny, "--optim", "adamnx", "adamw", *SWEEP, "--output_dir", str(out)]) == 0
    sweep, judged = trained[:6], trained[6:]
    # The sweep: every value for both, on rows that no run trains on or is judged on, by a seed of its own.
    assert {(optim, rate) for optim, rate, *_ in sweep} == {
        (optim, rate) for optim in ("adamnx", "adamw") for rate in (0.1, 0.01, 0.001)
    }
    assert {row[2:] for row in sweep} == {(1042, "train", "test", 10, True)}
    # The judges: seed by seed, at the best rate, on the recipe's own split, trained on the same rows.
    assert judged == [
        (optim, rate, seed, "train", "test", 10, False)
        for seed in (42, 43, 44)
        for optim, rate in (("adamnx", 0.01), ("adamw", 0.001))
    ]
    content = content_of(out)
    assert [one["chosen"] for one in content["contenders"]] == [
        {"learning_rate": "0.01"},
        {"learning_rate": "0.001"},
    ]
    assert [one["at_the_edge"] for one in content["contenders"]] == [[], ["learning_rate"]]
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    loss = next(item for item in content["comparisons"] if item["metric"] == "eval_loss")
    assert loss["differences"] == pytest.approx([-0.5] * 3)
    text = capsys.readouterr().out
    assert "The best learning_rate of adamw lies at the edge of the sweep" in text
    assert text.startswith((out / "comparison.md").read_text())


def test_without_a_sweep_all_rows_are_trained_on(tiny, tmp_path, trained):
    words = ["--optim", "adamnx", "adamw", "--seeds", "1", "--learning_rate", "0.02", "--seed", "7"]
    assert cli.main(["compare", tiny, *words, "--output_dir", str(tmp_path / "out")]) == 0
    assert trained == [(optim, 0.02, 7, "train", "test", 0, False) for optim in ("adamnx", "adamw")]
    assert not (tmp_path / "out" / "sweep.png").exists()
    content = content_of(tmp_path / "out")
    assert content["judged_by"] == "top1_error" and content["chosen_by"] is None
    assert [item["verdict"] for item in content["comparisons"]] == [
        "not judged, only top1_error is",
        "one seed: cannot be judged",
        "not judged, only top1_error is",  # it is nan, too
    ]


def test_a_validation_split_leaves_the_training_split_whole(tiny, tmp_path, trained):
    words = ["--optim", "adamnx", "adamw", *SWEEP, "--validation-split", "test[:50%]"]
    words += ["--eval_split", "test[50%:]", "--sweep-seeds", "2", "--output-dir", str(tmp_path / "out")]
    assert cli.main(["compare", tiny, *words]) == 0
    whole = ("train", "test[:50%]", 0, False)
    assert {row[2:] for row in trained[:12]} == {(seed, *whole) for seed in (1042, 1043)}
    assert {row[3:] for row in trained[12:]} == {("train", "test[50%:]", 0, False)}


def test_what_an_optimizers_settings_fix_is_not_swept(tiny, tmp_path, trained):
    words = ["--optim", "adamnx learning_rate=0.05 beta2_schedule=adax", "adamw", *SWEEP]
    assert cli.main(["compare", tiny, *words, "--output_dir", str(tmp_path / "out")]) == 0
    assert [row[:2] for row in trained[:3]] == [("adamw", rate) for rate in (0.1, 0.01, 0.001)]
    assert {row[1] for row in trained[3:] if row[0] == "adamnx"} == {0.05}
    label = "adamnx learning_rate=0.05 beta2_schedule=adax"
    folder = tmp_path / "out" / Contender(label).folder / "as-given" / "seed0"
    assert recipes.read_recipe(folder / "recipe.yaml")["optim_args"] == "beta2_schedule=adax"


def test_goes_on_where_it_was_interrupted(tiny, tmp_path, trained, monkeypatch):
    words = ["compare", tiny, "--optim", "adamnx", "adamw", *SWEEP, "--output_dir", str(tmp_path / "out")]
    whole, train = run.train, run.train

    def interrupted(*args, **kwargs):
        if len(trained) == 8:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(run, "train", interrupted)
    assert cli.main(words) == 130
    monkeypatch.setattr(run, "train", train)
    assert len(trained) == 8 and not (tmp_path / "out" / "comparison.json").exists()
    assert cli.main(words) == 0
    assert len(trained) == 12 == len(set(trained))  # none of them twice
    assert cli.main(words) == 0 and len(trained) == 12
    # More seeds: only those are run.
    words[words.index("--seeds") + 1] = "4"
    assert cli.main(words) == 0
    assert {row[2] for row in trained[12:]} == {45} and len(trained) == 14


def test_other_settings_do_not_pass_for_the_same_runs(tiny, tmp_path, trained, capsys):
    words = ["compare", tiny, "--optim", "adamnx", "adamw", *SWEEP, "--output_dir", str(tmp_path / "out")]
    assert cli.main(words) == 0
    capsys.readouterr()
    changed = [*words, "--weight_decay", "0.3"]
    assert cli.main(changed) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "weight_decay=None, not 0.3" in line and "--overwrite-output-dir" in line
    assert len(trained) == 12
    assert cli.main([*changed, "--overwrite-output-dir"]) == 0 and len(trained) == 24


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--optim", "adamnx"], "two optimizers or more"),
        (["--optim", "adamnx", "adamnx"], "'adamnx' is 'adamnx' again"),
        (["--optim", "adamnx a=1 b=2", "adamnx  b=2 a=1"], "is 'adamnx a=1 b=2' again"),
        (["--optim", "adamnx", ""], "an empty name"),
        (["--optim", "adamnx run_name=a;b", "adamnx run_name=a:b"], "again"),  # one folder
        (["--optim", "adamnx seed=7", "adamw"], "seed is the comparison's"),
        (["--optim", "adamnx eval_split=train", "adamw"], "has to be the same for all"),
        ([*TWO, "--sweep", "seed=1,2"], "seed is the comparison's"),
        ([*TWO, "--sweep", "optim=lion,radam"], "optim is what is compared"),
        ([*TWO, "--sweep", "learning_rate=0.01,1e-2"], "two values or more"),
        (
            ["--optim", "adamnx learning_rate=1", "adamw learning_rate=2", *SWEEP],
            "the settings of every optimizer fix",
        ),
        (
            ["--optim", "adamnx", "adamw", *SWEEP, "--validation-split", "test"],
            "has rows of eval_split (test)",
        ),
        (
            ["--optim", "adamnx", "adamw", *SWEEP, "--validation-split", "train[90%:]"],
            "has rows of train_split",
        ),
        (["--optim", "adamnx", "adamnx beta2=0.9 horizon=auto"], "give it or beta2, not both"),
        (["--optim", "adamnx", "adamnx colour=red"], "'colour' is not an option of optim='adamnx'"),
        (["--optim", "adamnx", "adamx"], "adamx: optim: 'adamx' is not valid; did you mean 'adamnx'?"),
        (["--optim", "adamnx", "adamw beta"], "NAME KEY=VALUE"),
        (["--optim", "adamnx", "graft adamw adamnx lion"], "NAME KEY=VALUE"),
        (["--optim", "adamnx", "graft adamw adamw2"], "length=adamw2 is not NAME or NAME("),
        ([*TWO, "--sweep", "learning_rate"], "FIELD=VALUE,VALUE"),
        ([*TWO, *AUTO, "--sweep", "weight_decay=0,1"], "cannot be swept together with another field"),
        ([*TWO, "--sweep", "weight_decay=auto"], "two values or more"),
        ([*TWO, "--sweep", "learning_rate=1,1"], "two values or more"),
        ([*TWO, "--sweep", "learning_rat=1,2"], "did you mean '--learning_rate'?"),
        ([*TWO, "--sweep", "learning_rate=1,x"], "invalid float value: 'x'"),
        ([*TWO, "--metric", "accuracy"], "eval_loss, top1_error, top5_error"),
        ([*TWO, *SWEEP, "--hold-out", "60"], "50 at most"),
        ([*TWO, "--max_stepps", "3"], "did you mean '--max_steps'?"),
        (["--optim", "adamnx", "adamw beta2_schedule=adam", "--adam_epsilon", "x"], "invalid float value"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(words, told, tiny, tmp_path, trained, capsys):
    assert cli.main(["compare", tiny, *words, "--output_dir", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("adamnx-hf compare: error: ") and told in line
    assert not trained and not (tmp_path / "out").exists()


ON_TRAINING_ROWS = ", on rows that they were trained on"


def test_what_is_judged_on_training_rows_says_so(tiny, tmp_path, trained, capsys, monkeypatch):
    titles = []
    monkeypatch.setattr("matplotlib.figure.Figure.suptitle", lambda self, title, **_: titles.append(title))
    words = ["compare", tiny, *TWO, "--seeds", "2"]
    for name, more in (("on", ["--eval_split", "train[50%:]"]), ("off", [])):
        assert cli.main([*words, *more, "--output_dir", str(tmp_path / name)]) == 0
        on = name == "on"
        said = capsys.readouterr()
        assert ("eval_split: train[50%:] has rows of train_split (train): " in said.err) == on
        content = content_of(tmp_path / name)
        assert content["judged_on_training_rows"] == on
        assert content["splits"]["judged"] == ("train[50%:]" if on else "test")
        verdicts = [item["verdict"] for item in content["comparisons"]]
        assert [verdict.endswith(ON_TRAINING_ROWS) for verdict in verdicts] == [on] * 3
        assert ("Judged on train[50%:], which has rows that were trained on (train)" in said.out) == on
        assert titles.pop().endswith(" · judged on rows that were trained on") == on


def test_a_comparison_on_other_data_names_them(tiny, tmp_path, trained, folder, monkeypatch):
    resolve = recipes.resolve

    def with_changes(*words):
        resolved = resolve(*words)
        resolved.data_changes = {"dataset_name": str(folder)}
        return resolved

    monkeypatch.setattr(recipes, "resolve", with_changes)
    words = [*TWO, "--seeds", "1", "--title", "Flowers", "--output_dir", str(tmp_path / "out")]
    assert cli.main(["compare", tiny, *words]) == 0
    content = content_of(tmp_path / "out")
    assert (content["title"], content["data"]) == ("", "colours")
    assert content["data_changes"] == {"dataset_name": "colours"}
    told = "On colours, by flags that change the recipe's data: dataset_name colours."
    assert told in (tmp_path / "out" / "comparison.md").read_text()
    # The title that a run writes down or not tells no runs apart.
    for path in (tmp_path / "out").rglob("recipe.yaml"):
        written = yaml.safe_load(path.read_text())
        del written["title"]
        path.write_text(yaml.safe_dump(written))
    assert cli.main(["compare", tiny, *words]) == 0 and len(trained) == 2


def test_a_sweep_does_not_choose_by_the_rows_that_judge(tiny, tmp_path, trained, capsys):
    written = yaml.safe_load(Path(tiny).read_text())
    Path(tiny).write_text(yaml.safe_dump({**written, "hold_out": 20, "eval_on_held_out": True}))
    words = ["compare", tiny, *TWO, "--output_dir", str(tmp_path / "out")]
    assert cli.main([*words, *SWEEP, "--validation-split", "test[:9]"]) == 1 and not trained  # of eval_split
    assert cli.main([*words, *SWEEP, "--validation-split", "test[:9]", "--eval_split", "test[9:]"]) == 0
    assert {row[3:] for row in trained[:6]} == {("train", "test[:9]", 0, False)}
    assert {row[3:] for row in trained[6:]} == {("train", "test[9:]", 0, False)}
    judged = "another 20 % of train, drawn at random"
    told = {"train": "80 % of train", "sweep": "test[:9]", "judged": judged}
    assert content_of(tmp_path / "out")["splits"] == told


def test_one_split_is_parted_in_three(tiny, tmp_path, trained, monkeypatch):
    """By flags: a part to judge by, of what is left a part to choose by, and the rest to train on."""
    seen, train = [], run.train

    def look(resolved, *args, **kwargs):
        data = resolved.task_arguments
        seen.append((data.hold_out, data.eval_on_held_out, data.sweep_hold_out, data.eval_on_sweep_rows))
        return train(resolved, *args, **kwargs)

    monkeypatch.setattr(run, "train", look)
    words = ["--hold_out", "20", "--eval_on_held_out", "true", "--output_dir", str(tmp_path / "out")]
    assert cli.main(["compare", tiny, *TWO, *SWEEP, *words]) == 0
    assert set(seen[:6]) == {(20, True, 20, True)} and set(seen[6:]) == {(20, True, 20, False)}
    assert content_of(tmp_path / "out")["splits"] == {
        "train": "64 % of train",
        "sweep": "another 16 % of train, drawn at random",
        "judged": "another 20 % of train, drawn at random",
    }
    assert not content_of(tmp_path / "out")["judged_on_training_rows"]


NO_TOP5 = {"per_epoch": [{"step": 8, "eval_loss": 1.0, "top5_error": None}]}
NO_METRIC = "--metric: no evaluation on these data gives top5_error; name another, such as --metric eval_loss"


@pytest.mark.parametrize(
    ("results", "words", "told"),
    [
        (NO_TOP5, [*SWEEP, "--metric", "top5_error"], NO_METRIC),
        (NO_TOP5, ["--metric", "top5_error"], NO_METRIC),
        ({"steps": 0}, SWEEP, "adamnx: took no step in "),
    ],
)
def test_what_cannot_be_compared(results, words, told, tiny, tmp_path, trained, capsys, monkeypatch):
    train = run.train
    monkeypatch.setattr(run, "train", lambda *args, **kwargs: train(*args, **kwargs) | results)
    words = ["compare", tiny, *TWO, *words, "--output_dir", str(tmp_path / "out")]
    assert cli.main(words) == 1
    assert told in capsys.readouterr().err and len(trained) == 1  # at once


def test_other_commands_still_refuse_what_they_do_not_know(capsys):
    with pytest.raises(SystemExit):
        cli.main(["recipes", "--optim", "adamnx"])
    assert "unrecognized arguments: --optim" in capsys.readouterr().err


def test_a_whole_comparison(tiny, tmp_path):
    # The second is the first, written otherwise: paired runs of it must agree to the last bit.
    labels = ["adamnx", "adamnx beta2_schedule=adamnx", "momentum_sgd"]
    out = tmp_path / "out"
    words = ["--optim", *labels, "--seeds", "3", "--num_train_epochs", "1", "--weight_decay", "0"]
    assert cli.main(["compare", tiny, *words, "--output_dir", str(out)]) == 0
    content = content_of(out)
    assert content["seeds"] == [42, 43, 44]
    first, same, other = content["contenders"]
    losses = [row["eval_loss"] for row in first["runs"]]
    assert len(set(losses)) == 3  # the seeds do differ
    assert [row["eval_loss"] for row in same["runs"]] == losses
    assert other["optimizer"] == "SGD" and other["beta2_schedule"] is None
    by = {(item["second"], item["metric"]): item for item in content["comparisons"]}
    assert by[labels[1], "top1_error"]["verdict"] == "the same in every seed"
    item = by["momentum_sgd", "eval_loss"]
    expected = [a - b["eval_loss"] for a, b in zip(losses, other["runs"], strict=True)]
    assert item["differences"] == pytest.approx(expected)
    assert item["low"] < statistics.fmean(expected) < item["high"]
    for name in ("comparison.png", "decay.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in (out / "comparison.json").read_text()
    assert not list(out.rglob("model.safetensors"))


@pytest.mark.parametrize("name", ["ablation/comparison", "flatness/sharpness", "llm/lora"])
def test_kept_comparisons_come_out_again_from_their_runs(name):
    content = json.loads((RESULTS / f"{name}.json").read_text())
    runs = {one["label"]: one["runs"] for one in content["contenders"]}
    for item in content["comparisons"]:
        names = (item["first"], item["second"])
        values = [[run[item["metric"]] for run in runs[name]] for name in names]
        record, difference = compare_pairs(names, item["metric"], item["better"], *values)
        assert list(record) == [key for key in item if key not in ("diverged", "verdict")]
        for key, value in record.items():
            assert item[key] == (pytest.approx(value) if isinstance(value, float | list) else value)
        assert difference.mean == record["mean"]


def test_what_is_recorded_of_a_run_that_diverged():
    record, difference = compare_pairs(
        ("A", "B"), "loss", "lower", [1.0, math.nan, 3.0], [1.5, 1.0, math.nan]
    )
    assert record["differences"] == [-0.5, None, None] and difference is None
    assert record["mean"] is record["low"] is record["high"] is None


def test_tokens_and_folders_stay_out_of_the_command(tmp_path):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(["some", "--optim", "adamnx", "adamw beta1=0.8"])
    args.flags = [
        "--dataset_name",
        str(tmp_path / "cifar"),
        "--hub_token",
        "hf_x",
        "--push_to_hub_token=hf_y",
    ]
    assert command.make_study(args).command == (
        "adamnx-hf compare some --optim adamnx 'adamw beta1=0.8' --seeds=8 --dataset_name cifar "
        "--hub_token '***' '--push_to_hub_token=***'"
    )


def test_a_wider_sweep_keeps_what_has_been_run(tiny, tmp_path, trained):
    words = ["compare", tiny, "--optim", "adamnx", "adamw", *SWEEP, "--output_dir", str(tmp_path / "out")]
    assert cli.main(words) == 0
    assert len(trained) == 12
    words[words.index("--sweep") + 1] += ",0.0003"  # as the edge of the first one advised
    assert cli.main(words) == 0
    assert [row[:2] for row in trained[12:]] == [("adamnx", 0.0003), ("adamw", 0.0003)]


def test_a_damaged_result_is_run_again(tiny, tmp_path, trained):
    words = [
        "compare",
        tiny,
        "--optim",
        "adamnx",
        "adamw",
        "--seeds",
        "1",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert cli.main(words) == 0
    (tmp_path / "out" / "adamw" / "as-given" / "seed0" / "results.json").write_text('{"per_')
    assert cli.main(words) == 0
    assert [row[0] for row in trained] == ["adamnx", "adamw", "adamw"]


def test_an_optimizers_settings_come_to_those_of_the_recipe(tiny, tmp_path, trained):
    written = yaml.safe_load(Path(tiny).read_text())
    Path(tiny).write_text(yaml.safe_dump({**written, "optim_args": "beta1=0.8,horizon=auto"}))
    out = tmp_path / "out"
    labels = ["adamnx", "adamnx horizon=500", "adamw"]
    assert cli.main(["compare", tiny, "--optim", *labels, "--seeds", "1", "--output_dir", str(out)]) == 0
    given = [
        recipes.read_recipe(out / Contender(label).place({}, 0) / "recipe.yaml").get("optim_args")
        for label in labels
    ]
    assert given == ["beta1=0.8,horizon=auto", "beta1=0.8,horizon=500", None]


def test_the_parts_of_a_graft_may_go_without_their_names():
    settings = {"direction": "adamw", "length": "adamnx(horizon=auto)"}
    assert Contender("graft adamw adamnx(horizon=auto)").settings == settings
    assert Contender("graft direction=adamw length=adamnx(horizon=auto)").settings == settings
    assert Contender("graft adamw adamnx(horizon=auto)").flags([]) == [
        "--optim=graft",
        "--optim_args=direction=adamw,length=adamnx(horizon=auto)",
    ]


PLAN = """
optim: [adamw, adamnx, adamnx beta2_schedule=adam]
fields: {weight_decay: 0.1, seed: 7}
sweep: {learning_rate: [0.0316, 0.01, 0.00316]}
sweep_seeds: 2
seeds: 3
metric: eval_loss
smallest_effect: 0.005
family: [[adamnx, adamw], [adamnx, adamnx beta2_schedule=adam]]
"""


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def test_a_plan_settles_what_is_run_and_judged(tiny, tmp_path, trained, plan, folder, capsys):
    out = tmp_path / "out"
    words = ["compare", tiny, "--plan", str(plan), "--output-dir", str(out)]
    assert (
        cli.main([*words, "--dataset_name", str(folder), "--disable_tqdm", "true"]) == 0
    )  # a place, no change
    content = content_of(out)
    assert content["plan"] == {"sha256": hashlib.sha256(PLAN.encode()).hexdigest(), "deviations": []}
    assert [one["label"] for one in content["contenders"]] == [
        "adamw",
        "adamnx",
        "adamnx beta2_schedule=adam",
    ]
    assert (
        content["seeds"] == [7, 8, 9] and content["sweep_seeds"] == 2 and content["judged_by"] == "eval_loss"
    )
    pairs = [(row["first"], row["second"]) for row in content["comparisons"] if row["metric"] == "eval_loss"]
    assert pairs == [("adamnx", "adamw"), ("adamnx", "adamnx beta2_schedule=adam")]
    assert len(trained) == 3 * 3 * 2 + 3 * 3
    assert (
        "--smallest-effect=0.005" in content["command"]
        and "--sweep=learning_rate=0.0316" in content["command"]
    )
    assert "Deviations: none." in capsys.readouterr().out


def test_what_is_not_as_planned_is_said(tiny, tmp_path, trained, plan, capsys):
    words = ["compare", tiny, "--plan", str(plan), "--output-dir", str(tmp_path / "out"), "--seeds", "2"]
    words += ["--weight_decay=0.3", "--adam_epsilon", "1e-6", "--sweep", "learning_rate=0.0316,0.01,0.00316"]
    assert cli.main(words) == 0
    assert content_of(tmp_path / "out")["plan"]["deviations"] == [
        "seeds 2 instead of 3",
        "weight_decay 0.3 instead of 0.1",
        "adam_epsilon 1e-6 instead of nothing",
    ]
    assert "Deviations: seeds 2 instead of 3; weight_decay 0.3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("optim: adamnx", "optim: 'adamnx' is not a list, each entry a word"),
        ("optims: [a, b]", "'optims' is no key of a plan; did you mean 'optim'?"),
        ("seeds: 3.5", "seeds: 3.5 is not a whole number"),
        ("seeds: 0", "seeds: 0 is not above 0"),
        ("seeds: true", "seeds: True is not a whole number"),
        ("- a", "is no list of `key: value`; keys are recipe, optim"),
        ("a: [", "--plan "),
        ("optim: [adamnx, adamw]\nfamily: [[adamnx, lion]]", "family: ['adamnx', 'lion'] is not two of the"),
        ("optim: [adamnx, adamw]\nfamily: [[adamnx, adamw], [adamw, adamnx]]", "family: names a pair twice"),
        ("seeds: 3", "--optim: names two optimizers or more; or name a --plan that does"),
    ],
)
def test_a_plan_that_cannot_be(text, told, tiny, tmp_path, trained, plan, capsys):
    plan.write_text(text)
    assert cli.main(["compare", tiny, "--plan", str(plan), "--output-dir", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("adamnx-hf compare: error: ") and told in line and not trained


def test_a_sweep_finds_its_own_rates(tiny, tmp_path, trained, capsys):
    words = ["compare", tiny, *TWO, *AUTO, "--learning_rate", "0.01", "--metric", "eval_loss"]
    assert cli.main([*words, "--output-dir", str(tmp_path / "out")]) == 0
    tried = {optim: [row[1] for row in trained[:-4] if row[0] == optim] for optim in ("adamnx", "adamw")}
    first = [0.0025, 0.005, 0.01, 0.02, 0.04]  # the recipe's and ×2 apart
    assert tried["adamnx"] == [*first, 0.00707, 0.0141]  # the best is inside: its neighbours
    assert tried["adamw"] == [*first, 0.00125, 0.000625, 0.000884, 0.00177]  # two beyond the edge, neighbours
    content = content_of(tmp_path / "out")
    assert [one["chosen"]["learning_rate"] for one in content["contenders"]] == ["0.01", "0.000884"]
    assert [one["at_the_edge"] for one in content["contenders"]] == [[], []]
    assert {row[:2] for row in trained[-4:]} == {("adamnx", 0.01), ("adamw", 0.000884)}
    assert "0.000625, 0.000884, 0.00125, 0.00177, 0.0025" in capsys.readouterr().out
    # Once more: all is there, and the same is chosen.
    count = len(trained)
    assert cli.main([*words, "--output-dir", str(tmp_path / "out")]) == 0 and len(trained) == count


@pytest.mark.parametrize(("more", "count"), [(["--sweep-budget", "6"], 6), (["--smallest-effect", "0.5"], 5)])
def test_a_sweep_ends_with_its_budget_or_where_little_is_left(more, count, tiny, tmp_path, trained):
    words = ["compare", tiny, "--optim", "adamnx", "adamnx beta2_schedule=adam", *AUTO, *more]
    words += ["--learning_rate", "0.01", "--metric", "eval_loss", "--output-dir", str(tmp_path / "out")]
    assert cli.main(words) == 0
    assert len(trained) == 2 * count + 4


@pytest.mark.parametrize(
    ("means", "places"),
    [
        ({-2: 1.0, 0: 2.0, 2: 3.0}, [-4]),
        ({-2: 3.0, 0: 2.0, 2: 1.0}, [4]),
        ({-2: 3.0, 0: 1.0, 2: 2.0}, [-1, 1]),
        ({-2: 3.0, -1: 2.0, 0: 1.0, 2: 2.0}, [1]),
        ({-2: 3.0, -1: 2.0, 0: 1.0, 1: 2.0}, []),
        ({-2: math.inf, 0: math.inf}, [-4]),  # all diverged: smaller ones
        ({-2: 1.0, 0: math.inf}, [-4]),
        ({-2: 2.0, 0: 1.0, 2: math.inf}, [-1, 1]),
    ],
)
def test_which_rates_are_tried_next(means, places):
    assert choose_next_places(means) == places


def test_a_grid_that_is_too_coarse_calls_no_winner(tiny, tmp_path, trained, monkeypatch, capsys):
    """Both are as good at their best rates. One of the grid's is adamnx's best; adamw's lies between two."""
    train, best = run.train, {"adamnx": 1e-2, "adamw": 10**-1.75}

    def parabola(resolved, *args, **kwargs):
        results = train(resolved, *args, **kwargs)
        args = resolved.training_arguments
        loss = 2 + 0.2 * math.log10(args.learning_rate / best[args.optim]) ** 2 + math.sin(args.seed) / 1e3
        noise = math.sin(7 * args.seed + 100 * args.learning_rate) / 1e3
        return results | {"per_epoch": [{"step": 8, "eval_loss": loss + noise}]}

    monkeypatch.setattr(run, "train", parabola)
    words = ["compare", tiny, *TWO, "--metric", "eval_loss", "--output-dir"]
    coarse = ["--sweep", "learning_rate=1e-3,3.16e-3,1e-2,3.16e-2,1e-1"]
    assert cli.main([*words, str(tmp_path / "coarse"), *coarse]) == 0
    (row,) = content_of(tmp_path / "coarse")["comparisons"]
    assert row["p"] < 0.01 and row["low"] < row["high"] < 0  # without a thought for the grid, adamnx wins
    assert row["verdict"].startswith("not decided: the sweep's grid leaves adamw about 0.012")
    assert "Between the values of the grid, adamw may gain 0.012" in capsys.readouterr().out
    fine = ["--sweep", "learning_rate=5e-3,7.1e-3,1e-2,1.41e-2,1.78e-2,2e-2,2.8e-2"]
    assert cli.main([*words, str(tmp_path / "fine"), *fine, "--smallest-effect", "0.005"]) == 0
    (row,) = content_of(tmp_path / "fine")["comparisons"]
    assert row["verdict"] == "no more than 0.005 apart"


@pytest.mark.parametrize(
    "path", [path.relative_to(RESULTS) for path in sorted(RESULTS.rglob("plan*.yaml"))], ids=str
)
def test_the_plans_of_the_results_can_be_carried_out(path):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    recipe = read_plan_file(RESULTS / path).values["recipe"]
    args = parser.parse_args([recipe, "--plan", str(RESULTS / path)])
    args.flags = []
    study = command.make_study(args)
    plan = make_plan(study, recipes.resolve(recipe, study.flags), Path("out"))
    for one in plan.sweep[:: study.sweep_seeds]:
        recipes.resolve(recipe, one.flags)
    assert len(plan.sweep) == len(study.contenders) * len(study.sweeps["learning_rate"]) * study.sweep_seeds


@pytest.mark.parametrize("evaluations", [1, 2])
def test_runs_that_were_judged_once_are_drawn_as_dots(evaluations, tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    steps = [100 * (i + 1) for i in range(evaluations)]
    contenders = [
        {
            "label": label,
            "runs": [
                {"per_epoch": [{"step": step, "loss": seed / step} for step in steps]} for seed in range(3)
            ],
        }
        for label in ("ours", "theirs")
    ]
    difference = {
        "metric": "loss",
        "first": "ours",
        "second": "theirs",
        "better": "lower",
        "differences": [0.0, 1.0, 2.0],
    }
    content = {
        "metrics": {"loss": "min"},
        "contenders": contenders,
        "comparisons": [difference | {"mean": 1.0, "low": -1.0, "high": 3.0}],
        "seeds": [0, 1, 2],
        "recipe": "a recipe",
        "smoke": False,
    }
    monkeypatch.setattr(plt, "close", lambda figure: None)
    charts.draw(tmp_path / "comparison.png", content)
    figure = plt.gcf()
    monkeypatch.undo()
    top = figure.axes[0]
    points = [line.get_ydata().tolist() for line in top.lines]
    means = [[1 / step for step in steps]] * 2
    each = [[0.0, 1 / 100, 2 / 100]] * 2
    assert sorted(points) == sorted(each + means if evaluations == 1 else means)
    assert ("each of 3 seeds" in figure.get_suptitle()) == (evaluations == 1)
    plt.close(figure)
