"""From files and flags to checked fields; the listing."""

import json
import subprocess
import sys

import pytest
import yaml
from forks import lean

from adamnx_hf import cli, recipes
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.recipes.policy import is_neutral
from adamnx_hf.tasks import TASKS, load_task

NAMES = list(recipes.list_recipes())


def write(folder, changes=None, **more):
    values = recipes.read_recipe(recipes.find_recipe("cifar100_efficientnetv2_m")) | (changes or {}) | more
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value != "DROP"}))
    return str(path)


def set_to(resolved, name):
    for part in (resolved.arguments, resolved.task_arguments, resolved.training_arguments):
        if hasattr(part, name):
            return getattr(part, name)
    raise AssertionError(name)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("cifar100")])
def test_every_recipe_resolves(name):
    resolved = recipes.resolve(name)
    args = resolved.training_arguments
    assert resolved.name == name and resolved.changes == {}
    assert args.optim == "adamnx" and (args.adam_beta1, args.adam_beta2) == (0.9, 0.99)
    assert args.decay_rule == "paper" and args.weight_decay == 0.01 and args.seed == 42
    assert args.output_dir == f"runs/{name}/adamnx-seed42"
    assert not args.bf16 and not args.torch_compile
    if resolved.arguments.paper_tables:
        assert args.num_train_epochs == 80
    batches = (args.per_device_train_batch_size, args.per_device_eval_batch_size)
    assert batches == ((32, 250) if name == "cifar100_nano" else (64, 200))


def test_every_recipe_has_its_task_and_every_task_what_run_needs():
    for name in TASKS:
        task = load_task(name)
        for attribute in ("Arguments", "METRICS", "UNIT", "fast", "smoke", "make_trainer"):
            assert hasattr(task, attribute)
    assert {path.parent.name for path in recipes.list_recipes().values()} <= set(TASKS)
    for path in recipes.list_recipes().values():
        assert recipes.read_recipe(path)["task"] == path.parent.name


def test_flags_go_over_the_file_and_are_remembered():
    resolved = recipes.resolve(
        "cifar100_efficientnetv2_m",
        ["--learning_rate", "2e-3", "--num-train-epochs=3", "--seed", "7", "--adam_beta2", "0.99"],
    )
    assert resolved.training_arguments.learning_rate == 2e-3
    assert resolved.training_arguments.num_train_epochs == 3
    assert resolved.changes == {"learning_rate": 2e-3, "num_train_epochs": 3.0}  # 0.99 is the recipe's


def test_what_may_matter_is_remembered(tmp_path):
    words = ["--optimizers", '{"adamnx": {"learning_rate": 0.5}}', "--dataloader_drop_last", "false"]
    resolved = recipes.resolve("cifar100_efficientnetv2_m", [*words, "--dataloader_num_workers", "0"])
    assert set(resolved.changes) == {"optimizers", "dataloader_drop_last"}
    copy = tmp_path / "cifar100_efficientnetv2_m.yaml"
    copy.write_text(recipes.find_recipe("cifar100_efficientnetv2_m").read_text())
    assert recipes.resolve(str(copy)).changes == {"recipe": "cifar100_efficientnetv2_m.yaml"}
    assert recipes.resolve(str(recipes.find_recipe("cifar100_efficientnetv2_m"))).changes == {}


def test_a_path_works_like_a_name(tmp_path):
    path = write(tmp_path, learning_rate="1e-3", save_strategy=False)  # YAML's reading of 1e-3 and no
    resolved = recipes.resolve(path)
    assert resolved.name == "mine"
    assert resolved.training_arguments.learning_rate == 1e-3
    assert resolved.training_arguments.save_strategy == "no"


@pytest.mark.parametrize(
    ("optim", "fields"),
    [
        ("lion", {"learning_rate": 1e-3, "weight_decay": 0.1, "adam_beta2": 0.99}),
        ("momentum_sgd", {"learning_rate": 0.1, "weight_decay": 5e-4, "optim_args": "momentum=0.9"}),
        ("sophiag", {"learning_rate": 0.01, "weight_decay": 0.01, "adam_beta1": 0.965}),
        ("radam", {"learning_rate": 0.01, "weight_decay": 0.01, "adam_beta2": 0.999}),
        ("adamnx", {"learning_rate": 0.01, "weight_decay": 0.01, "adam_beta2": 0.99}),
    ],
)
def test_what_changes_with_the_optimizer(optim, fields):
    resolved = recipes.resolve("cifar100_efficientnetv2_l", ["--optim", optim])
    assert {name: set_to(resolved, name) for name in fields} == fields
    assert resolved.changes == {}
    over = recipes.resolve("cifar100_efficientnetv2_l", ["--learning_rate", "0.5", "--optim", optim])
    assert over.training_arguments.learning_rate == 0.5


@pytest.mark.parametrize(("name", "rate"), [("cifar100_efficientnetv2_m", 1e-3), ("cifar100_swinv2_s", 1e-5)])
def test_lion_has_a_rate_of_its_own(name, rate):
    args = recipes.resolve(name, ["--optim", "lion"]).training_arguments
    assert (args.learning_rate, args.weight_decay) == (rate, 0.1)


def test_the_ablation_in_one_line():
    words = ["--optim_args", "beta2_schedule=adam"]
    resolved = recipes.resolve("cifar100_efficientnetv2_m", words)
    assert resolved.training_arguments.adam_beta2 == 0.999 and resolved.changes == {}
    for schedule in ("adafactor", "adax", "adamnx"):
        words = ["--optim_args", f"beta2_schedule={schedule}"]
        resolved = recipes.resolve("cifar100_efficientnetv2_m", words)
        assert resolved.training_arguments.adam_beta2 == 0.99 and resolved.changes == {}
        assert resolved.training_arguments.output_dir.endswith(f"adamnx-{schedule}-seed42")
    words = ["--optim_args", "beta2_schedule=adam,eps=1e-3"]
    assert recipes.resolve("cifar100_swinv2_s", words).changes == {"optim_args": "eps=1e-3"}


def test_fast_sets_what_it_says_and_flags_go_over_it():
    resolved = recipes.resolve("cifar100_efficientnetv2_m", ["--fast", "--torch_compile", "false"])
    args, own = resolved.training_arguments, resolved.task_arguments
    assert args.bf16 and args.channels_last and not args.torch_compile
    assert own.keep_decoded and own.augment_on_device
    assert args.optim_args == "fused=true"
    assert args.output_dir.endswith("adamnx-fast-seed42")
    kept = recipes.resolve(
        "cifar100_efficientnetv2_m",
        ["--fast", "--torch_compile", "false", "--optim_args", "beta2_schedule=adax"],
    )
    assert kept.training_arguments.optim_args == "beta2_schedule=adax,fused=true"
    words = ["--fast", "--torch_compile", "false", "--optim_args", "fused=false"]
    assert recipes.resolve("cifar100_efficientnetv2_m", words).training_arguments.optim_args == "fused=false"
    lion = recipes.resolve("cifar100_convnext_b", ["--fast", "--torch_compile", "false", "--optim", "lion"])
    assert lion.training_arguments.optim_args is None  # it has no fused step


def test_the_resolved_recipe_is_the_same_again(tmp_path):
    first = recipes.resolve(
        "cifar100_convnext_b", ["--optim", "lion", "--learning_rate", "0.5", "--fast", "--torch_compile", "0"]
    )
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(recipes.as_file(first)))
    again = recipes.resolve(str(path))
    for name in first.values:
        if name not in ("optimizers", "fast", "output_dir"):
            assert set_to(again, name) == set_to(first, name), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], "--learning_rat is not a flag of this recipe; did you mean '--learn"),
        (["--learning_rate", "fast"], "learning_rate: invalid float value: 'fast'"),
        (["--optim", "adamnxx"], "optim: 'adamnxx' is not valid; did you mean 'adamnx'?"),
        (["--decay_rule", "papper"], "decay_rule: 'papper' is not valid; did you mean 'paper'?"),
        (["--lr_scheduler_type", "constnt"], "lr_scheduler_type: 'constnt' is not valid; did you mean '"),
        (["--optim_args", "beta2_scedule=adax"], "'beta2_scedule' is not an option of optim='adamnx'. Did"),
        (["--optim_args", "beta2_schedule=adamax"], "beta2_schedule is adamnx or adam or adafactor or adax"),
        (["--architecture", "efficientnet_v2_n"], "'efficientnet_v2_n' is not known; did you mean 'eff"),
        (["--architecture_options", '{"stem_strid": 1}'], "has no 'stem_strid'; did you mean 'stem_stride'?"),
        (["--lr_scheduler_kwargs", '{"num_decay_step": 1}'], "has no 'num_decay_step'; did you mean"),
        (["--architecture_options", "{"], "architecture_options: '{' is not JSON"),
        (["--lr_scheduler_kwargs", "[1]"], "lr_scheduler_kwargs: must be fields and values"),
        (["--architecture_options", '{"depths": "x"}'], "architecture_options: do not make a network"),
        (["--architecture_options", '{"stem_stride": "x"}'], "stem_stride: 'x' is not a whole number"),
        (["--num_train_epochs", "0"], "num_train_epochs: 0.0 is not above 0"),
        (["--max_steps", "-3"], "max_steps: -3 is neither -1"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size: 0 is not above 0"),
        (["--max_train_samples", "-1"], "max_train_samples: -1 is not a number of examples"),
        (["--jitter_probability", "2"], "jitter_probability: 2.0 is not a probability from 0 to 1"),
        (["--image_mean", "0.5"], "image_mean: needs 3 numbers"),
        (["--task", "object_detection"], "--task: a recipe's task cannot be changed by a flag"),
        (["--seed"], "seed: expected one argument"),
        (["0.1"], "'0.1' belongs to no flag"),
        (
            ["--model_name_or_path", "x", "--architecture", "resnet50"],
            "give either architecture or model_name_or_path",
        ),
        (["--num_train_epochs", "inf"], "num_train_epochs: inf is not a finite number"),
        (["--num_train_epochs", "nan"], "num_train_epochs: nan is not a finite number"),
        (["--learning_rate", "1e400"], "learning_rate: inf is not a finite number"),
        (["--lr_scheduler_kwargs", '{"min_lr_ratio": NaN}'], "lr_scheduler_kwargs, min_lr_ratio: nan is not"),
        (["--architecture_options", '{"a": 1, "a": 2}'], "is not JSON ('a' is given twice)"),
        (["--architecture_options", "[" * 50_000], "is not JSON (more than 20 lists and mappings"),
        (["--optimizers", '{"adamnx": {"seed": "x"}}'], "optimizers, adamnx: seed: invalid int value: 'x'"),
        (["--optimizers", '{"adamnx": {"optimizers": {}}}'], "optimizers cannot stand within optimizers"),
        (["--save_steps", "0"], "save_steps: 0.0 is not above 0"),
        (["--eval_steps", "-1"], "eval_steps: -1.0 is not above 0"),
        (["--logging_steps", "-1"], "logging_steps: -1.0 is not above 0"),
        (["--dataloader_prefetch_factor", "0"], "dataloader_prefetch_factor: 0 is not above 0"),
        (["--per_device_train_batch_size", str(2**40)], "per_device_train_batch_size: 1099511627776 is not"),
        (["--dataloader_num_workers", "1025"], "dataloader_num_workers: 1025 is not from 0 to 1024"),
        (["--label_smoothing_factor", "9"], "label_smoothing_factor: 9.0 is not from 0 to 1"),
        (["--max_grad_norm", "-1"], "max_grad_norm: -1.0 is below 0; 0 is without clipping"),
        (["--torch_compile_mode", "nonsense"], "torch_compile_mode: 'nonsense' is not known; valid: default"),
        (["--lr_scheduler_kwargs", '{"min_lr_ratio": "abc"}'], "min_lr_ratio: 'abc' is not a number"),
        (["--lr_scheduler_kwargs", '{"decay_type": 3}'], "decay_type: 3 is not a word"),
        (["--accelerator_config", "none.json"], "accelerator_config: 'none.json' is neither JSON nor a file"),
        (["--fsdp_config", "none.json"], "fsdp_config: 'none.json' is neither JSON nor a file"),
        (["--deepspeed", "-2"], "deepspeed: '-2' is neither JSON nor a file"),
        (["--image_std", "0", "0.5", "0.5"], "image_std: the channels are divided by it; 0.0 is not"),
        (["--image_mean", "nan", "0", "0"], "image_mean: nan is not a finite number"),
        (["--seed", "-1"], "seed: -1 is not from 0 to 4294967295"),
        (["--seed", str(2**32)], "seed: 4294967296 is not from 0 to 4294967295"),
        (["--data_seed", "-1"], "data_seed: -1 is not from 0"),
        (["--dataloader_num_workers", "-1"], "dataloader_num_workers: -1 is not from 0 to 1024"),
        (["--metric_for_best_model", "accuracy"], "metric_for_best_model: 'accuracy' is no metric of this t"),
        (["--metric_for_best_model", "eval_top1_eror"], "is no metric of this task; did you mean 'top1_erro"),
    ],
)  # fmt: skip
def test_a_wrong_flag_ends_in_one_line(words, message, capsys):
    assert cli.main(["run", "cifar100_efficientnetv2_m", *words]) == 1
    err = capsys.readouterr().err
    assert message in err and err.startswith("adamnx-hf run: error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rte": 1}, "mine.yaml: learning_rte is not a field of this recipe; did you mean 'learn"),
        ({"learning_rate": "quick"}, "mine.yaml: learning_rate: invalid float value: 'quick'"),
        ({"learning_rate": [1, 2]}, "mine.yaml: learning_rate: takes one value, got the list [1, 2]"),
        ({"bf16": "perhaps"}, "mine.yaml: bf16: "),
        ({"task": "image_clasification"}, "task: 'image_clasification' is not known; did you mean 'im"),
        ({"task": ["a"]}, "task: ['a'] is not known"),
        ({1: 2}, "mine.yaml: 1 is not the name of a field"),
        ({"task": "DROP"}, "mine.yaml: task is missing"),
        ({"optimizers": {"sophig": {}}}, "optimizers: 'sophig' is not an optimizer; did you mean 'soph"),
        ({"optimizers": {"adamnx": {"lr": 1}}}, "mine.yaml: optimizers, adamnx: lr is not a field"),
        ({"overwrite_output_dir": True}, "overwrite_output_dir cannot stand in a recipe; give it as a flag"),
        ({"resume_from_checkpoint": "last"}, "resume_from_checkpoint cannot stand in a recipe"),
        ({"hub_token": "x"}, "mine.yaml: hub_token cannot stand in a recipe"),
        ({"optimizers": {"adamnx": {"overwrite_output_dir": True}}}, "overwrite_output_dir cannot stand"),
        ({"optimizers": [1]}, "mine.yaml: optimizers: takes one value, got the list [1]"),
        # Values are values, whatever they look like.
        ({"image_mean": [0.5, "--trust_remote_code", "true"]}, "image_mean: invalid float value: '--trust_r"),
        ({"title": {"a": 1}}, "mine.yaml: title: takes one value, got fields and values: {'a': 1}"),
        ({"image_mean": [0.5, None, 0.5]}, "image_mean: None among its values is neither text nor a number"),
        ({"label_names": ["a", True]}, "label_names: True among its values is neither text nor a number; if"),
        ({"optimizers": {"lion": {"image_std": ["--seed", "1"]}}}, "optimizers, lion: image_std: invalid fl"),
        ({"optimizers": {"lion": {"trust_remote_code": True}}}, "optimizers, lion: trust_remote_code is not"),
        ({"optimizers": {"lion": 3}}, "optimizers, lion: must be fields and values, got 3"),
        ({"optimizers": {"lion": {"learning_rate": float("inf")}}}, "lion, learning_rate: inf is not a"),
        ({"lr_scheduler_kwargs": '{"attn_implementation": "evil/kernel"}'}, "would run code from the Hub"),
        ({"lr_scheduler_kwargs": {"a": [{"trust_remote_code": True}]}}, "trust_remote_code is a flag's to s"),
        ({"seed": "9" * 5000}, "mine.yaml: seed: invalid int value: '999"),
    ],
)  # fmt: skip
def test_a_wrong_file_ends_in_one_line(changes, message, tmp_path, capsys):
    assert cli.main(["run", write(tmp_path, changes)]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", "is not YAML"),
        ("- task", "a recipe is a list of `key: value` lines"),
        ("", "a recipe is a list of `key: value` lines"),
        ("seed: 1\nseed: 2", "line 2, column 1: seed is given twice"),
        ("seed: {a: 1, a: 2}", "line 1, column 14: a is given twice"),
        ("seed: 2026-99-99\nday: !!timestamp x", "line 2, column 6: !!timestamp is no kind of value"),
        ("#" * 30_000_000, "has 30,000,000 bytes; that is no recipe"),
        ("task: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe(text, message, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        recipes.resolve(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar100_efficientnetv2m", "no recipe of that name; did you mean 'cifar100_efficientnetv2_m'?"),
        ("nowhere/at_all.yaml", "nowhere/at_all.yaml: no such file"),
        ("a" * 300, "no recipe of that name"),
        ("a" * 300 + ".yaml", "no such file"),
        ("~nobody/x.yaml", "~nobody/x.yaml: no such file"),
        ("a\0b/c", "no such file"),
        ("\x1b[2J", r"\x1b[2J: no recipe of that name"),
        ("", "no recipe of that name"),
    ],
)
def test_no_such_recipe(name, message):
    with pytest.raises(RecipeError) as error:
        recipes.resolve(name)
    assert message in str(error.value)


def test_help_lists_every_field_with_the_recipes_values(capsys):
    assert cli.main(["run", "cifar100_convnext_b", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in (
        "--learning_rate",
        "--jitter_probability",
        "--fast",
        "--decay_rule",
        "--overwrite_output_dir",
    ):
        assert flag in out
    assert "(default: convnext_base)" in " ".join(out.split()) and "SUPPRESS" not in out
    # The task's come first; what neither the recipe nor most people set is folded away.
    assert out.index("--dataset_name") < out.index("--learning_rate") < out.index("--title")
    assert "--hub_strategy" not in out
    assert "more fields of TrainingArguments: adamnx-hf run RECIPE --help-all" in out
    assert cli.main(["run", "cifar100_convnext_b", "--help-all"]) == 0
    every = capsys.readouterr().out
    for field in recipes.list_fields("cifar100_convnext_b"):
        assert f"--{field} " in every
    assert len(out) < len(every) / 2


def test_help_that_nobody_reads_to_the_end():
    command = f"{sys.executable} -m adamnx_hf.cli run cifar100_nano --help-all | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300, env=lean())
    assert done.stdout.startswith("usage: adamnx-hf run RECIPE") and "BrokenPipe" not in done.stderr


def test_the_list_as_json(capsys):
    assert cli.main(["recipes", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(found) == set(NAMES)
    tables = {name: entry["paper_tables"] for name, entry in found.items() if entry["paper_tables"]}
    assert tables == {
        "cifar100_efficientnetv2_m": [3, 7],
        "cifar100_swinv2_s": [4, 8],
        "cifar100_efficientnetv2_l": [11],
        "cifar100_convnext_b": [12],
        "sbd_unet": [6, 10],
        "voc_yolov7_tiny": [5, 9],
    }
    for entry in found.values():
        assert entry["task"] in TASKS and (entry["data"] == "uoft-cs/cifar100") == (
            "cifar100" in entry["name"]
        )
        assert entry["data"] and entry["model"] and entry["hardware"] and entry["hours"]
    own = [row for row in found["cifar100_efficientnetv2_l"]["published"] if row["row"] == "AdamNX"]
    assert (own[0]["top1_error"], own[0]["top5_error"]) == (35.66, 12.37)


def test_the_list_for_people(capsys):
    assert cli.main(["recipes", "cifar100_swinv2_s"]) == 0
    out = capsys.readouterr().out
    assert "Tables 4, 8" in out and "39.44 / 14.76" in out and "which, the text we hold does not say" in out
    assert "convnext" not in out
    assert cli.main(["recipes", "cifar100_swin"]) == 1
    assert "did you mean 'cifar100_swinv2_s'?" in capsys.readouterr().err


def test_the_list_needs_neither_transformers_nor_datasets():
    code = (
        "import sys\nfrom adamnx_hf.cli import main\nmain(['recipes'])\n"
        "assert not {'transformers', 'datasets', 'torchvision', 'evaluate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_a_list_of_flags_is_a_list_of_words(tmp_path):
    words = ["labels", "--overwrite_output_dir", "true", "--seed", "7"]
    resolved = recipes.resolve(write(tmp_path, label_names=words))
    assert resolved.training_arguments.label_names == words
    assert not resolved.training_arguments.overwrite_output_dir and resolved.training_arguments.seed == 42


def test_json_as_text_and_as_fields_are_the_same(tmp_path):
    options = {"stem_stride": 2}
    for given in (options, json.dumps(options)):
        resolved = recipes.resolve(write(tmp_path, architecture_options=given, optimizers="{}"))
        assert resolved.values["architecture_options"] == options
        assert resolved.task_arguments.architecture_options == options
        assert recipes.as_file(resolved)["architecture_options"] == options
        again = recipes.resolve(
            write(tmp_path, architecture_options=given), ["--architecture_options", '{"stem_stride": 2}']
        )
        assert again.changes == {}


def test_the_better_metric_is_the_tasks_to_say():
    """Transformers takes an error or a perplexity for the better the higher it is."""
    best = ("--load_best_model_at_end=true", "--eval_strategy=epoch", "--save_strategy=epoch")
    for task, metrics in {name: load_task(name).METRICS for name in TASKS}.items():
        name = next(name for name, path in recipes.list_recipes().items() if path.parent.name == task)
        words = [*best, "--use_cpu=true", "--eval_steps=1"]
        for metric, kind in {"loss": "min", **{key: value.best for key, value in metrics.items()}}.items():
            if metric == "exact_match":
                words.append("--answer_pattern=(x)")
            for prefix in ("", "eval_"):
                resolved = recipes.resolve(name, [*words, f"--metric_for_best_model={prefix}{metric}"])
                assert resolved.training_arguments.greater_is_better is (kind == "max"), (task, metric)
    assert recipes.resolve("cifar100_nano", best).training_arguments.greater_is_better is False  # of the loss


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--metric_for_best_model=top1_error", "--greater_is_better=true"],
            "greater_is_better: true will not do: of top1_error the lower is the better; leave it out",
        ),
        (
            ["--metric_for_best_model=eval_top5_error", "--lr_scheduler_type=reduce_lr_on_plateau",
             '--lr_scheduler_kwargs={"mode": "max"}'],
            "lr_scheduler_kwargs: mode 'max' will not do: of top5_error the lower is the better; leave "
            "it out",
        ),
    ],
)  # fmt: skip
def test_a_direction_that_contradicts_is_refused(words, message):
    with pytest.raises(RecipeError) as error:
        recipes.resolve("cifar100_nano", words)
    assert str(error.value) == message


def test_the_plateau_is_one_of_the_metric():
    words = ["--lr_scheduler_type=reduce_lr_on_plateau", '--lr_scheduler_kwargs={"patience": 2}']
    for metric, mode in (("mean_iou", "max"), ("loss", "min")):
        args = recipes.resolve("sbd_unet", [*words, f"--metric_for_best_model={metric}"]).training_arguments
        assert args.lr_scheduler_kwargs == {"patience": 2, "mode": mode}


def test_a_flag_leaves_a_field_out(tmp_path):
    resolved = recipes.resolve("cifar100_nano", ["--dataset_name", "none", "--max_train_samples=none"])
    assert resolved.task_arguments.dataset_name is None
    assert recipes.resolve("cifar100_nano", ["--report_to=none"]).training_arguments.report_to == []
    later = ["--max_train_samples=none", "--max_train_samples", "5"]
    assert recipes.resolve("cifar100_nano", later).task_arguments.max_train_samples == 5
    earlier = ["--max_train_samples", "5", "--max_train_samples=none"]
    assert recipes.resolve("cifar100_nano", earlier).task_arguments.max_train_samples is None
    with pytest.raises(RecipeError, match="learning_rate: invalid float value: 'none'"):
        recipes.resolve("cifar100_nano", ["--learning_rate=none"])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipes.as_file(resolved)))
    assert recipes.resolve(str(tmp_path / "recipe.yaml")).task_arguments.dataset_name is None


def test_a_flag_displaces_what_cannot_stand_beside_it():
    fine_tuned = recipes.resolve("cifar100_nano", ["--model_name_or_path=google/vit-base-patch16-224"])
    assert fine_tuned.task_arguments.architecture is None
    assert fine_tuned.task_arguments.architecture_options is None
    assert fine_tuned.changes == {
        "model_name_or_path": "google/vit-base-patch16-224",
        "architecture": None,
        "architecture_options": None,
    }  # fmt: skip
    with pytest.raises(RecipeError, match="give either architecture or model_name_or_path"):
        recipes.resolve("cifar100_nano", ["--model_name_or_path=a/b", "--architecture=convnext_tiny"])
    chats = recipes.resolve("llama32_1b_gsm8k_lora", ["--messages_column=messages", "--use_cpu=true"])
    asked = chats.task_arguments
    assert asked.messages_column == "messages"
    assert (asked.prompt_template, asked.completion_template, asked.answer_pattern) == (None, None, None)
    same = recipes.resolve("cifar100_nano", ["--architecture=efficientnet_v2_s"])
    assert same.task_arguments.architecture_options is not None and same.changes == {}
    constant = recipes.resolve("cifar100_nano", ["--lr_scheduler_type=constant"]).training_arguments
    assert not constant.lr_scheduler_kwargs  # those of the recipe's schedule
    voc = recipes.resolve("voc_yolov7_tiny", ["--dataset_name=me/data"])
    assert voc.task_arguments.data_files is None
    assert recipes.resolve("voc_yolov7_tiny").task_arguments.data_files


@pytest.mark.parametrize("smoke", [[], ["--smoke"]])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset_name", "/nope"),
        ("dataset_name", "./nope"),
        ("dataset_name", "a/b/c"),
        ("dataset_name", "nope.jsonl"),
        ("model_name_or_path", "~/nope"),
    ],
)
def test_a_path_that_does_not_exist_is_refused(field, value, smoke):
    """In a smoke run, too, which would take made-up data or a made-up model in its place."""
    name = "cifar100_nano" if field == "dataset_name" else "llama32_1b_gsm8k_lora"
    with pytest.raises(RecipeError) as error:
        recipes.resolve(name, [*smoke, f"--{field}={value}", "--use_cpu=true"])
    assert str(error.value) == f"{field}: there is no {value!r} here; pass a path that exists"


def test_what_flags_change_of_the_data(tmp_path):
    (tmp_path / "rows.csv").write_text("a\n1\n")
    words = [f"--dataset_name={tmp_path / 'rows.csv'}", "--eval_split=test[:3000]", "--label_column=label"]
    resolved = recipes.resolve("cifar100_nano", [*words, "--hold_out=10", "--learning_rate=1"])
    assert resolved.data_changes == {
        "dataset_name": str(tmp_path / "rows.csv"), "label_column": "label", "hold_out": 10
    }  # fmt: skip
    assert resolved.given == {"dataset_name", "eval_split", "label_column", "hold_out", "learning_rate"}
    assert not resolved.synthetic_data
    assert recipes.resolve("cifar100_nano").data_changes == {}


@pytest.mark.parametrize("name", ["bf16", "bf16_full_eval"])
def test_bfloat16_without_a_gpu(name, monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(RecipeError) as error:
        recipes.resolve("cifar100_nano", [f"--{name}=true"])
    assert str(error.value) == (
        f"{name}: there is no GPU here that computes in bfloat16; pass --{name} false for float32, or "
        "--use_cpu true for bfloat16 on the CPU"
    )
    assert getattr(
        recipes.resolve("cifar100_nano", [f"--{name}=true", "--use_cpu=true"]).training_arguments, name
    )


@pytest.mark.parametrize(
    ("task", "neutral", "others"),
    [
        ("image_classification", ["image_column", "label_column"], ["jitter_probability", "train_split"]),
        ("object_detection", ["box_field", "category_field", "box_format"], ["train_on_difficult"]),
        ("language_modeling", ["messages_column", "dataset_name"], ["max_new_tokens", "lora_r", "box_field"]),
    ],
)
def test_a_task_says_which_of_its_fields_are_neutral(task, neutral, others):
    for field in (*neutral, "seed", "logging_steps", "title"):  # and those that every recipe has
        assert is_neutral(field, load_task(task)), field
    for field in (*others, "learning_rate", "dataloader_drop_last"):
        assert not is_neutral(field, load_task(task)), field
