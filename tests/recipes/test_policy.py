"""What a recipe may decide, by where it comes from: hostile recipes on a server that is taken for the Hub."""

import contextlib
import dataclasses
import json
import os
import sys

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adamnx_hf import cli, recipes
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.plain_values import walk
from adamnx_hf.recipes import policy
from adamnx_hf.recipes.fields import FieldParser
from adamnx_hf.recipes.load import load_recipe
from adamnx_hf.tasks import TASKS, load_task

#: The least that makes a recipe of each task.
LEAST = {
    "image_classification": {"architecture": "efficientnet_v2_s", "dataset_name": "me/data"},
    "semantic_segmentation": {"architecture": "unet", "dataset_name": "me/data"},
    "object_detection": {"architecture": "yolov7_tiny", "dataset_name": "me/data"},
    "language_modeling": {"model_name_or_path": "me/model", "dataset_name": "me/data", "use_cpu": True},
}
ADDRESS = "hf://me/hostile"
# bitsandbytes asks the Hub for kernels where it is imported, whatever the recipe: before there is a server.
MODULES = {name: load_task(name) for name in TASKS}


def put(server, values, repo="me/hostile"):
    text = values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False)
    server.private[repo] = False
    server.commits[repo] = [{}, {"recipe.yaml": text.encode()}]


def hostile(task="image_classification", **fields):
    return {"task": task, **LEAST[task], **fields}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with what a hostile recipe may be after."""
    folder = tmp_path / "here"
    (folder / "runs" / "mine" / "checkpoint-5").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data" / "train.csv").write_text("text\nsecret\n")
    (folder / "evil").mkdir()
    (folder / "evil" / "kernel").mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(folder)
    return folder


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


TOLD = []


def _tell(event, args):
    if args and args[-1] not in (-1, None) and event in ("os.remove", "os.rmdir"):
        return  # relative to a folder that is open
    if TOLD and event in (
        "open",
        "os.listdir",
        "os.scandir",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
    ):
        TOLD[-1].append((event, args))


sys.addaudithook(_tell)


@contextlib.contextmanager
def watched():
    """What is done to files meanwhile, as Python's audit events have it."""
    TOLD.append([])
    try:
        yield TOLD[-1]
    finally:
        TOLD.pop()


def touched(events, folder):
    """The paths below `folder` among the events."""
    paths = [os.fspath(args[0]) for _, args in events if isinstance(args[0], str | bytes | os.PathLike)]
    absolute = [os.path.join(os.getcwd(), os.fsdecode(path)) for path in paths]
    return [path for path in absolute if path.startswith(f"{folder}{os.sep}")]


def asked_for_more(server):
    """What was asked of the Hub but the recipe, and but what its client asks by itself."""
    own = "/api/agent-harnesses"
    return [path for path in server.asked if "/me/hostile/" not in path and path != own]


IN_JSON = '{"model_type": "llama", "attn_implementation": "evil/kernel"}'


@pytest.mark.parametrize(
    ("values", "field"),
    [
        # Items of a list are values, never flags.
        (hostile(label_names=["labels", "--overwrite_output_dir", "true"]), "label_names"),
        (hostile(label_names=["labels", "--attn_implementation", "evil/kernel"]), "label_names"),
        (hostile(image_mean=[0.5, 0.5, 0.5, "--overwrite_output_dir", "true"]), "image_mean"),
        (hostile(optim="adamnx", optimizers={"adamnx": {"label_names": ["--seed", "3"]}}), "label_names"),
        (hostile(optim="adamw", optimizers={"adamnx": {"image_std": ["--output_dir", "/"]}}), "image_std"),
        (hostile("language_modeling", lora_target_modules=["--trust_remote_code", "true"]), "modules"),
        (hostile("language_modeling", lora_target_modules=["(a+)+$"]), "lora_target_modules"),
        # JSON is looked into, as text too.
        (hostile("language_modeling", model_config=IN_JSON), "model_config"),
        (hostile("language_modeling", model_config=json.loads(IN_JSON)), "model_config"),
        (hostile("language_modeling", model_config={"a": [{"attn_implementation": "evil/k"}]}), "model_c"),
        (hostile("language_modeling", model_config={"auto_map": {"AutoConfig": "evil/code"}}), "auto_map"),
        (hostile("language_modeling", model_config={"model_type": "gpt2", "n_layer": 10**6}), "n_layer"),
        (hostile("language_modeling", model_init_kwargs='{"trust_remote_code": true}'), "model_init_kwargs"),
        (hostile("language_modeling", model_init_kwargs={"trust_remote_code": True}), "model_init_kwargs"),
        (hostile("language_modeling", attn_implementation="evil/kernel"), "attn_implementation"),
        (hostile("language_modeling", attn_implementation="flash_attention_2"), "attn_implementation"),
        (hostile("semantic_segmentation", architecture="dpt", architecture_options={
            "backbone": "resnet50", "use_timm_backbone": True, "use_pretrained_backbone": True}), "backbone"),
        (hostile(architecture_options={"depths": [10**6]}), "architecture_options"),
        (hostile(architecture_options={"depths": [100] * 6}), "600 layers"),
        (hostile(architecture_options={"widths": [8] * 101}), "architecture_options"),
        (hostile(architecture_options={"stochastic_depth": 7}), "stochastic_depth"),
        (hostile(architecture_options={1: 2}), "architecture_options"),
        (hostile(data_files={"../split": []}), "data_files"),
        (hostile(lr_scheduler_kwargs={1: 2}), "lr_scheduler_kwargs"),
        (hostile("language_modeling", model_config={"model_type": "llama", "num_labels": 10**7}), "num_labe"),
        (hostile("language_modeling", model_config={"attention_dropout": 7}), "attention_dropout"),
        (hostile("language_modeling", use_peft=True, lora_r=65_536), "lora_r"),
        (hostile("language_modeling", neftune_noise_alpha=-5), "neftune_noise_alpha"),
        (hostile(torch_compile=True, torch_compile_mode="nonsense"), "torch_compile_mode"),
        (hostile(optim="adamnx", optimizers='{"adamnx": {"output_dir": "/"}}'), "output_dir"),
        # What nobody's file decides.
        (hostile(overwrite_output_dir=True), "overwrite_output_dir"),
        (hostile(resume_from_checkpoint="data"), "resume_from_checkpoint"),
        (hostile("language_modeling", trust_remote_code=True), "trust_remote_code"),
        (hostile(hub_token="hf_x"), "hub_token"),
        # What is on this machine.
        (hostile(dataset_name="."), "dataset_name"),
        (hostile(dataset_name="data"), "dataset_name"),
        (hostile(dataset_name="evil/kernel"), "dataset_name"),
        (hostile(dataset_name="~"), "dataset_name"),
        (hostile(dataset_name="file:///etc"), "dataset_name"),
        (hostile(data_files={"train": "/etc/passwd"}), "data_files"),
        (hostile(data_files={"train": ["a", "../../x"]}), "data_files"),
        (hostile(data_files={"train": "*a*a*a*a*a*a*a*a*b"}), "data_files"),
        (hostile("language_modeling", model_name_or_path="evil/kernel"), "model_name_or_path"),
        (hostile("language_modeling", model_name_or_path="data"), "model_name_or_path"),
        (hostile("language_modeling", chat_template_path="config.json"), "chat_template_path"),
        (hostile(accelerator_config="config.json"), "accelerator_config"),
        (hostile(fsdp_config="config.json"), "fsdp_config"),
        (hostile(deepspeed="config.json"), "deepspeed"),
        # Where is written, what is sent, how the machine is used.
        (hostile(output_dir="elsewhere"), "output_dir"),
        (hostile(push_to_hub=True), "push_to_hub"),
        (hostile(report_to=["wandb"]), "report_to"),
        (hostile(dataloader_num_workers=100_000), "dataloader_num_workers"),
        (hostile(log_level="critical"), "log_level"),
        (hostile(torch_compile_backend="evil.module:backend"), "torch_compile_backend"),
        # What a terminal would obey.
        ('task: image_classification\ntitle: "\\e[2J\\nadamnx-hf: all is well"', "title"),
        ('task: image_classification\n"\\e[2J": 1', "is not a field"),
        ('task: "\\e[2J"', "task: "),
        ('task: image_classification\ntitle: "a\\u202eb"', "title"),
        # What takes for ever, or all memory.
        (hostile("language_modeling", prompt_template="{q}", completion_template="{a}",
                 answer_pattern="(((a{1000}){1000}){1000})"), "answer_pattern"),
        (hostile("language_modeling", prompt_template="{q}", completion_template="{a}",
                 answer_pattern="(?x)(((a{1 000}){1 000}){1 000})"), "answer_pattern"),
        (hostile("language_modeling", prompt_template="{q}", completion_template="{a}",
                 answer_pattern="(b(?ix:((a{1 000}){1 000}){1 000}))"), "answer_pattern"),
        (hostile("language_modeling", prompt_template="{q}", completion_template="{a}",
                 answer_pattern="([[:foo:]])"), "answer_pattern"),
        (hostile(image_size=10**9), "image_size"),
        (hostile(per_device_train_batch_size=10**9), "per_device_train_batch_size"),
        ("task: image_classification\noptimizers: {adamnx: {seed: 1, seed: 2}}", "seed is given twice"),
        ("task: image_classification\nimage_mean: " + "[" * 20_000, "stand within each other"),
    ],
)  # fmt: skip
def test_a_hostile_recipe_ends_in_one_line_and_does_nothing(values, field, server, here, capsys):
    put(server, values)
    before = contents(here)
    words = ["--output_dir", "runs/mine", "--resume_from_checkpoint", "last"]
    commands = [["run", ADDRESS, *words], ["memory", ADDRESS]]
    if field == "label_names":  # one way for all: resolve()
        commands.append(["compare", ADDRESS, "--optim", "adamnx", "adamw"])
    if field != "answer_pattern":  # which only a recipe that is put together looks into
        commands.append(["run", ADDRESS, "--help"])
    for argv in commands:
        server.asked.clear()
        with watched() as events:
            assert cli.main(argv) == 1
        err = capsys.readouterr().err
        (line,) = [line for line in err.splitlines() if line.startswith("adamnx-hf")]
        assert field in line and line.isprintable(), line
        assert contents(here) == before and not touched(events, here)
        assert asked_for_more(server) == []
        assert set(server.served) <= {"recipe.yaml"}


@pytest.mark.parametrize("name", list(recipes.list_recipes()))
def test_the_packages_recipes_could_come_from_the_hub(name):
    loaded = load_recipe(name)
    policy.check(policy.Origin.HUB, loaded.values, "")
    assert policy.is_flags_only("hub_token") and not policy.is_flags_only("eos_token")


def fields_of(task):
    return FieldParser(MODULES[task]).fields


def test_every_field_of_the_policy_is_one_of_a_recipe_and_every_other_is_refused():
    """At both ends of the supported versions, so the union of what they have is looked at nowhere else."""
    known = {field for task in TASKS for field in fields_of(task)}
    gone = {"warmup_ratio", "group_by_length", "activation_checkpointing", "activation_checkpointing_kwargs",
            "train_sampling_strategy", "truncation_mode", "length_column_name"}  # fmt: skip
    assert set(policy.HUB) - known <= gone
    for field in known - set(policy.HUB):
        assert policy.why_not(policy.Origin.HUB, field, True) is not None
        assert policy.why_not(policy.Origin.FILE, field, True) is None or policy.is_flags_only(field)


#: What a hostile value is made of.
WORDS = (
    "--overwrite_output_dir", "true", "--trust_remote_code", "evil/kernel", "data", ".", "..", "~", "a" * 300,
    "/etc/passwd", "config.json", "../x", "file:///etc", "https://evil.example/x", "me/data", "all", "none",
    "no", "epoch", "", "adamnx", "sdpa", "float32", "hf_secretsecretsecret", "\x1b[2J", "a\nb", "(a+)+$",
    "1e400",
)  # fmt: skip
KEYS = ("attn_implementation", "trust_remote_code", "auto_map", "hub_token", "backbone", "num_hidden_layers",
        "model_type", "overwrite_output_dir", "a", "adamnx", "seed", "output_dir")  # fmt: skip
LEAVES = st.one_of(
    st.sampled_from(WORDS), st.booleans(), st.none(), st.integers(-(2**70), 2**70), st.integers(-3, 70),
    st.floats(), st.floats(0, 1),
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=5,
)
VALUES = st.one_of(
    LEAVES, LEAVES, TREES, TREES.map(json.dumps), st.lists(st.sampled_from(WORDS), min_size=1, max_size=4)
)


@st.composite
def recipes(draw):
    task = draw(st.sampled_from(sorted(TASKS)))
    names = st.sampled_from([*fields_of(task), "auto_map", "__class__", "--seed", "seed "])
    fields = draw(st.dictionaries(names, VALUES, min_size=1, max_size=2))
    return task, {**LEAST[task], **fields, "task": task}


def deep(parts):
    """Every field of the dataclasses by name, but for what a run decides for itself."""
    values = {field.name: getattr(part, field.name) for part in parts for field in dataclasses.fields(part)}
    return {name: value for name, value in values.items() if name not in ("output_dir", "logging_dir")}


def environment():
    """But for what Transformers 4.57 makes of every TrainingArguments."""
    return {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}


def parts(resolved):
    return deep((resolved.arguments, resolved.task_arguments, resolved.training_arguments))


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(recipes())
def test_whatever_a_recipe_from_the_hub_holds(server, here, drawn):
    """It is refused in one line that names the field, or decides nothing but what the policy names."""
    task, values = drawn
    text = yaml.safe_dump(values, sort_keys=False)
    put(server, text)
    server.asked.clear()
    before, status = contents(here), environment()
    with watched() as events:
        try:
            resolved = recipes.resolve(ADDRESS)
        except RecipeError as error:
            resolved, line = None, str(error)
    assert contents(here) == before and not touched(events, here)
    assert asked_for_more(server) == []
    if resolved is None:
        assert line.isprintable() and len(line) < 3000
        assert any(str(key).strip() in line or ascii(key)[1:-1] in line for key in values), line
        return
    put(server, {"task": task, **LEAST[task]})
    default, found = parts(recipes.resolve(ADDRESS)), parts(resolved)
    # What Transformers sets when it makes TrainingArguments, of what the policy names.
    derived = {
        "fp16_backend",
        "half_precision_backend",
        "warmup_steps",
        "warmup_ratio",
        "bf16",
        "remove_unused_columns",
    }
    for name, value in found.items():
        if name not in policy.HUB and name not in derived:
            assert value == default[name], name
        else:
            assert policy.why_not(policy.Origin.HUB, name, getattr(value, "value", value)) is None or (
                value == default[name] or name == "optimizers"
            ), name
    for path, value in walk([found[name] for name in found]):
        assert not (isinstance(value, str) and ("evil" in value or value.startswith(("/", "--")))), (
            path,
            value,
        )
    assert environment() == status


#: Fields that are text for people, or that no file, name or code is looked for by.
TEXT = {
    "title", "hardware", "hours", "prompt_template", "completion_template", "join_rows", "answer_pattern",
    "eos_token", "pad_token", "optim_args", "train_split", "eval_split", "class_names",
    "length_column_name",
}  # fmt: skip


@settings(max_examples=2000, deadline=None)
@given(st.sampled_from(sorted(policy.HUB.keys() - {"optimizers"})), TREES)
def test_whatever_a_rule_lets_through(field, value):
    """It is no path, no flag and no code of the Hub; what reaches a terminal are letters."""
    refused = policy.why_not(policy.Origin.HUB, field, value) is not None
    with pytest.raises(RecipeError) if refused else contextlib.nullcontext():  # an optimizer's as one alone
        policy.check(policy.Origin.HUB, {"optimizers": {"adamnx": {field: value}}}, "")
    if refused or value is None:
        return
    strings = [item for _, item in walk(value) if isinstance(item, str)]
    keys = {key for path, _ in walk(value) for key in path if isinstance(key, str)}
    # A split may be called anything; `datasets` alone sees its name.
    assert field == "data_files" or not keys & {"attn_implementation", "auto_map", "backbone", "hub_token"}
    for string in strings:
        assert string.isprintable() or field in ("prompt_template", "completion_template", "join_rows")
        if field not in TEXT and not field.endswith(("_column", "_field")):
            assert not string.startswith(("/", "~", "-", ".", "file:", "https:")), (field, value)


@given(TREES)
def test_fields_by_optimizers_names_are_fields(value):
    """Whatever else stands there is refused, and is no error of Python's."""
    with contextlib.suppress(RecipeError):
        policy.check(policy.Origin.HUB, {"optimizers": value}, "")
        assert value is None or all(isinstance(fields, dict) for fields in value.values())


LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 16}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_config": LLAMA | {"hidden_act": "foo"}}, "KeyError: 'foo'"),
        ({"model_config": LLAMA | {"model_type": "vit"}}, "ViTConfig"),
        ({"model_config": LLAMA | {"model_type": "nothing"}}, "model_config: makes no model"),
        ({"model_config": LLAMA | {"vocab_size": -5}}, "negative dimension -5"),
        ({"adam_beta1": 5, "optim": "adamnx"}, "Invalid beta parameter at index 0: 5"),
        ({"use_peft": True, "lora_target_modules": ["nothing"]}, "nothing"),
        ({"use_peft": True, "lora_task_type": "FOO"}, "FOO"),
    ],
)
def test_memory_says_in_one_line_what_does_not_fit(fields, message, server, here, capsys):
    put(server, hostile("language_modeling", **{"model_config": LLAMA, **fields}))
    assert cli.main(["memory", ADDRESS]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adamnx-hf")]
    assert message in line
