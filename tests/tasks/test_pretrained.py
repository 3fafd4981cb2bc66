"""Models whose own files would have code of the Hub run, or another model loaded."""

import json

import pytest

from adamnx_hf import recipes
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks import pretrained
from adamnx_hf.tasks.pretrained import check_pretrained

KERNELS = [
    {"_attn_implementation": "evil/kernel"},
    {"attn_implementation": "evil/kernel@main:flash"},
    {"text_config": {"_attn_implementation": "evil/kernel"}},
    {"_attn_implementation": {"text_config": "evil/kernel", "": "sdpa"}},
    {"experts_implementation": "evil/kernel"},
]


def model(folder, kind="llama", **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **config}))
    return str(folder)


@pytest.mark.parametrize("config", KERNELS)
def test_a_kernel_in_a_config(config, tmp_path):
    folder = model(tmp_path / "model", **config)
    with pytest.raises(RecipeError, match=r"the config of .* has .*'evil/kernel.*a kernel on the Hub"):
        check_pretrained(folder)
    check_pretrained(folder, trusted=True)


@pytest.mark.parametrize("name", ["eager", "sdpa", "flex_attention", None, "grouped_mm"])
def test_what_is_no_kernel_of_the_hub(name, tmp_path):
    check_pretrained(model(tmp_path / "model", _attn_implementation=name))


def test_flash_attention_is_one_where_it_is_not_installed(tmp_path, monkeypatch):
    folder = model(tmp_path / "model", _attn_implementation="flash_attention_2")
    for there in (None, "flash_attn"):
        monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name, there=there: there)
        if there:
            check_pretrained(folder)
        else:
            with pytest.raises(RecipeError, match="flash_attention_2"):
                check_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("cifar100_nano", "vit"), ("voc2007_unet_small", "segformer"), ("bccd_yolov7_tiny", "yolov7_tiny")],
)
def test_every_task_on_images_looks(name, kind, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *_, **__: loaded.append(1))
    values = recipes.read_recipe(recipes.find_recipe(name)) | {
        "model_name_or_path": model(tmp_path / "model", kind, **KERNELS[0])
    }
    del values["architecture"]
    values.pop("architecture_options", None)
    mine = tmp_path / "mine.yaml"
    mine.write_text(json.dumps(values))
    resolved = recipes.resolve(str(mine), ["--smoke", "--output_dir", str(tmp_path / "out")])
    with pytest.raises(RecipeError, match="evil/kernel"):
        resolved.task.make_trainer(resolved)
    assert not loaded


def test_language_modeling_looks(tmp_path, monkeypatch):
    from adamnx_hf.tasks.language_modeling.model import make_model

    folder = model(tmp_path / "model", **KERNELS[0])
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"task: language_modeling\nmodel_name_or_path: {folder}\nuse_cpu: true\n")
    resolved = recipes.resolve(str(mine), ["--attn_implementation", "eager"])
    with pytest.raises(RecipeError, match="evil/kernel"):
        make_model(resolved.task_arguments, resolved.training_arguments)


def test_an_adapter_of_the_hub(server, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "own"), raising=False)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", False, raising=False)  # before version 5
    base = {"base_model_name_or_path": "other/repository", "peft_type": "LORA"}
    server.private["me/adapter"] = False
    files = {"config.json": {"model_type": "llama"}, "adapter_config.json": base}
    server.commits["me/adapter"] = [{}, {name: json.dumps(text).encode() for name, text in files.items()}]
    with pytest.raises(RecipeError, match="me/adapter is an adapter; name the model that it belongs to"):
        check_pretrained("me/adapter")
    assert not [path for path in server.asked if "other" in path]
    server.private["me/model"] = False
    server.commits["me/model"] = [{}, {"config.json": b'{"model_type": "llama"}'}]
    check_pretrained("me/model", "v1")


def test_a_chat_template_from_a_tokenizer_with_code(tmp_path, capsys):
    """Transformers would ask at the terminal, whose answer nobody gives here."""
    from adamnx_hf.tasks.language_modeling.model import make_tokenizer
    from adamnx_hf.tasks.language_modeling.toy import make_toy_tokenizer

    for name, more in (
        ("model", {}),
        ("template", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}),
    ):
        folder = tmp_path / name
        make_toy_tokenizer("<|endoftext|>").save_pretrained(folder)
        path = folder / "tokenizer_config.json"
        kept = json.loads(path.read_text()) | more | ({"tokenizer_class": "EvilTokenizer"} if more else {})
        path.write_text(json.dumps(kept))
        (folder / "evil.py").write_text("raise SystemExit('code of the tokenizer ran')")
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        f"task: language_modeling\nmodel_name_or_path: {tmp_path / 'model'}\nuse_cpu: true\n"
        f"chat_template_path: {tmp_path / 'template'}\n"
    )
    resolved = recipes.resolve(str(mine))
    with pytest.raises(RecipeError, match=r"^chat_template_path: .* custom code which must be executed"):
        make_tokenizer(resolved.task_arguments, resolved.training_arguments)
