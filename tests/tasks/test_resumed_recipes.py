"""A run that goes on from any of its checkpoints ends as the one that was not interrupted, bit for bit."""

import functools
import gc
import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_recipe import TINY
from transformers import TrainingArguments

pytest.importorskip("trl")
from adamnx_hf import recipes
from adamnx_hf.runs import train
from adamnx_hf.tasks.language_modeling import toy

#: Two epochs, a save every 3 steps: in an epoch, at its end, in the other, and at the end of all.
STEPS = ["--max_steps", "12", "--save_strategy", "steps", "--save_steps", "3", "--eval_strategy", "epoch"]
STEPS += ["--logging_steps", "5", "--per_device_train_batch_size", "4", "--report_to", "none"]
CLASSIFICATION = {
    **TINY,
    "architecture_options": {**TINY["architecture_options"], "stochastic_depth": 0.5, "dropout": 0.2},
    "max_train_samples": 24,
    "max_eval_samples": 8,
}
SMALL = ["--smoke", "--max_train_samples", "24", "--max_eval_samples", "6", "--use_cpu", "true"]
LORA = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.3, "lora_target_modules": ["q_proj", "v_proj"]}


def lines(folder):
    """Texts, to be packed."""
    for split, count in (("train", 36), ("test", 12)):
        rows = [json.dumps({"text": f"line {i} of {split}. " * (1 + i % 3)}) for i in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    return str(folder)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny Llama and a tokenizer of bytes."""
    from transformers import AutoModelForCausalLM, LlamaConfig, set_seed

    folder = tmp_path_factory.mktemp("model")
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = toy.make_toy_tokenizer("<|endoftext|>")
    config = LlamaConfig(vocab_size=260, num_key_value_heads=2, max_position_embeddings=64, **sizes)
    config.bos_token_id, config.eos_token_id = None, tokenizer.eos_token_id
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


#: A task, or a recipe, and flags.
CASES = {
    "classification": ["classification"],
    "classification, 2 workers": ["classification", "--dataloader_num_workers", "2"],
    "classification, on the device": ["classification", "--augment_on_device", "true"],
    "detection": ["bccd_yolov7_tiny"],
    "segmentation": ["voc2007_unet_small"],
    "language, packed, LoRA with dropout": ["language"],
}
BY_LENGTH = (
    ["--train_sampling_strategy", "group_by_length"]
    if hasattr(TrainingArguments, "train_sampling_strategy")
    else ["--group_by_length", "true"]  # Transformers 4
)
#: Among the steps with a checkpoint: 6, where an epoch ends, and the next, within the one after it.
PLACES = slice(1, 3)
OTHERS = {
    "adamw": ["classification", "--optim", "adamw_torch"],
    "sophiag": ["classification", "--optim", "sophiag", "--optim_args", "curvature_every=4"],
    "adamnx_8bit": [
        *("classification", "--optim", "adamnx_8bit", "--architecture_options"),
        json.dumps({**CLASSIFICATION["architecture_options"], "widths": [8, 8, 64], "head_width": 64}),
    ],
    "adamnx_bf16": ["classification", "--optim", "adamnx_bf16"],
    "a worker that lives on": [
        *("classification", "--dataloader_num_workers", "1", "--dataloader_persistent_workers", "true"),
    ],
    "accumulation that does not divide an epoch": [
        *("classification", "--gradient_accumulation_steps", "4"),
    ],
    "a last batch that is dropped": [
        *("classification", "--max_train_samples", "27", "--dataloader_drop_last", "true"),
    ],
    "evaluation after each step": ["classification", "--eval_strategy", "steps", "--eval_steps", "1"],
    "the best at the end": [
        *("classification", "--eval_strategy", "steps", "--eval_steps", "3"),
        *("--load_best_model_at_end", "true"),
    ],
    "rows by length": ["language", "--packing", "false", "--max_train_samples", "24", *BY_LENGTH],
}


@pytest.fixture
def resolved(tmp_path, folder, model_folder, monkeypatch):
    """A recipe by the case's name, with more flags. What its runs write is not drawn."""
    monkeypatch.setattr("adamnx_hf.runs.curves.draw_runs", lambda *_: None)
    # Workers that are collected with their loader may not hear that they should end; torch waits so long.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)

    def of(name, *words):
        kind, *more = {**CASES, **OTHERS}[name]
        if kind not in ("classification", "language"):
            return recipes.resolve(kind, [*SMALL, *STEPS, *more, *words])
        values = {**CLASSIFICATION, "dataset_name": str(folder)}
        if kind == "language":
            values = {
                "task": "language_modeling",
                "model_name_or_path": str(model_folder),
                "dataset_name": lines(tmp_path),
                "max_length": 64,
                "packing": True,
                "use_peft": True,
                "merge_adapter": False,
                "optim": "adamnx",
                "learning_rate": 0.01,
                "use_cpu": True,
                **LORA,
            }
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(values))
        return recipes.resolve(str(path), [*STEPS, *more, *words])

    yield of
    gc.collect()


def end_of(resolved, out, *words):
    """What a run into `out` ends with: weights, the optimizer's state and the metrics, without times."""
    train(resolved("--output_dir", str(out), *words), bare=True, keep_model=True)
    weights = next(out.glob("*model.safetensors"))  # or adapter_model
    optimizer = torch.load(out / "checkpoint-12" / "optimizer.pt", weights_only=True)
    results, table = (json.loads((out / f"{name}.json").read_text()) for name in ("results", "metrics"))
    assert table == results["per_epoch"]
    rows = [{key: value for key, value in row.items() if key != "train_seconds"} for row in table]
    return load_file(weights), optimizer["state"], [rows, results["metrics"]]


def goes_on(resolved, tmp_path, which=slice(None)):
    """That a run ends the same from each of its checkpoints, or from some of them; returns how it ends."""
    whole = tmp_path / "whole"
    expected = end_of(resolved, whole)
    rows = expected[2][0]
    assert len(rows) >= 2 and all(row["train_loss"] for row in rows)
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in whole.glob("checkpoint-*"))
    assert steps == [3, 6, 9, 12]
    for step in steps[which]:
        cut = tmp_path / f"from-{step}"
        checkpoint = cut / f"checkpoint-{step}"
        shutil.copytree(whole / checkpoint.name, checkpoint)
        found = end_of(resolved, cut, "--resume_from_checkpoint", str(checkpoint))
        torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)
        assert found[2] == expected[2]
    return expected


@pytest.mark.parametrize("name", CASES)
def test_from_every_checkpoint(name, resolved, tmp_path):
    goes_on(functools.partial(resolved, name), tmp_path)


@pytest.mark.parametrize("name", OTHERS)
def test_from_an_epochs_end_and_within_the_next(name, resolved, tmp_path):
    _, state, _ = goes_on(functools.partial(resolved, name), tmp_path, PLACES)
    if name == "adamnx_8bit":
        assert any(value.dtype == torch.uint8 for one in state.values() for value in one.values())
