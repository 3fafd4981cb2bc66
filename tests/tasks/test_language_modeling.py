"""Language models: data, loss, evaluation, LoRA, quantization, memory, and what people run into."""

import json
import math

import pytest
import torch
import yaml
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

pytest.importorskip("trl")
from adamnx_hf import cli, recipes
from adamnx_hf.optim import AdamNX
from adamnx_hf.optim.schedules import beta2_for_horizon
from adamnx_hf.runs import memory
from adamnx_hf.tasks import language_modeling as task
from adamnx_hf.tasks.language_modeling import toy
from adamnx_hf.tasks.sft_trainer import ExactMatch, RecipeSFTConfig, RecipeSFTTrainer, normalize_answer

NAMES = [name for name, path in recipes.list_recipes().items() if path.parent.name == "language_modeling"]
#: From the models' own pages, adapters not counted.
PUBLISHED = {
    "smollm2_135m_gsm8k": 134_515_008,
    "smollm2_135m_wikitext103": 134_515_008,
    "qwen25_05b_gsm8k": 494_032_768,
    "llama32_1b_gsm8k_lora": 1_235_814_400,
    "llama31_8b_dolly_qlora": 8_030_261_248,
    "tinyshakespeare_stories260k": 260_032,
    "tinyshakespeare_stories260k_lora": 260_032,
}
PAIRS = {"prompt_template": "Q: {question}\nA:", "completion_template": " {answer}"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny Llama and a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("model")
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=260, num_key_value_heads=2, max_position_embeddings=256, **sizes)
    tokenizer = toy.make_toy_tokenizer("<|endoftext|>")
    config.bos_token_id, config.eos_token_id = None, tokenizer.eos_token_id
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """Questions and answers of lengths that differ."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 24), ("test", 7)):
        rows = [
            {
                "question": f"What is {i} and {i}?" + " Think." * (i % 4),
                "answer": f"It is {2 * i}.{' Sure.' * (i % 3)}\n#### {2 * i}",
                "text": f"line {i}",
            }
            for i in range(count)
        ]
        Dataset.from_list(rows).to_json(folder / f"{split}.jsonl")
    return folder


@pytest.fixture
def mine(tmp_path, model_folder, data_folder):
    """A recipe of these, as a file."""

    def write(**changes):
        values = {
            "task": "language_modeling",
            "model_name_or_path": str(model_folder),
            "dataset_name": str(data_folder),
            "max_length": 128,
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 3,
            "report_to": "none",
            "save_strategy": "no",
            "optim": "adamnx",
            "learning_rate": 1e-3,
            "use_cpu": True,
            **PAIRS,
        }
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in (values | changes).items() if v != "DROP"}))
        return str(path)

    return write


def trainer_of(path, *words):
    return task.make_trainer(recipes.resolve(path, words))


def results_of(out):
    return json.loads((out / "results.json").read_text())


# The recipes


@pytest.mark.parametrize("name", [name for name in NAMES if name != "llama31_8b_dolly_lora"])
def test_every_recipe_resolves_and_has_the_published_size(name):
    resolved = recipes.resolve(name, ["--use_cpu", "true"])
    args = resolved.training_arguments
    assert args.optim == "adamnx" and args.seed == 42 and args.max_length
    assert args.optim_args == "horizon=auto"
    assert (
        recipes.resolve(name, ["--use_cpu", "true", "--optim", "adamw"]).training_arguments.optim_args is None
    )
    model, _ = task.make_meta_model(resolved.task_arguments)
    own = sum(p.numel() for n, p in model.named_parameters() if "lora_" not in n)
    assert own == PUBLISHED[name]
    assert resolved.task_arguments.use_peft == name.endswith("lora")


def test_the_8b_recipes_are_of_one_model():
    lora, qlora = (
        recipes.read_recipe(recipes.find_recipe(f"llama31_8b_dolly_{kind}")) for kind in ("lora", "qlora")
    )
    differ = {key for key in {**lora, **qlora} if lora.get(key) != qlora.get(key)}
    four_bits = {"load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant"}
    assert differ == {"title", "hardware", *four_bits}


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, tmp_path, capsys):
    if name.endswith("qlora"):
        pytest.importorskip("bitsandbytes")
    out = tmp_path / "out"
    assert cli.main(["run", name, "--smoke", "--output_dir", str(out)]) == 0
    results = results_of(out)
    assert results["smoke"] and results["data"] == "made up" and results["steps"] == 4
    assert results["optimizer"] == "AdamNX" and results["betas"] == [0.9, beta2_for_horizon(4)]
    values = recipes.read_recipe(recipes.find_recipe(name))
    metrics = {"perplexity", "exact_match"} if "answer_pattern" in values else {"perplexity"}
    assert set(results["metrics"]) == metrics
    row = results["per_epoch"][-1]
    assert row["perplexity"] == pytest.approx(math.exp(row["eval_loss"]))
    # What was reckoned is what was there.
    expected, count, trained = memory.of_recipe(name, ["--smoke"])
    assert results["memory_bytes"] == expected.__dict__
    assert results["trainable_parameters"] == trained
    if not values.get("load_in_4bit"):  # bitsandbytes counts two parameters as one
        assert results["parameters"] == count
    if values.get("use_peft"):
        assert f"{trained:,} of them trained" in capsys.readouterr().out
        assert (out / "adapter_model.safetensors").exists()
        assert (out / "merged" / "model.safetensors").exists()
        tokenizer = AutoTokenizer.from_pretrained(out / "merged")
    else:
        tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer("böse ▁x\n")["input_ids"]) == "böse ▁x\n"


# Data and loss


def test_the_loss_is_on_completions_only(mine, data_folder):
    trainer = trainer_of(mine())
    sources = map(json.loads, (data_folder / "train.jsonl").read_text().splitlines())
    for row, source in zip(trainer.train_dataset, sources, strict=True):
        prompt, answer = f"Q: {source['question']}\nA:", f" {source['answer']}"
        ids, labels = row["input_ids"], row["labels"]
        own = [token for token, label in zip(ids, labels, strict=True) if label != -100]
        decode = trainer.processing_class.decode
        assert decode(ids[: len(ids) - len(own)]) == prompt
        assert decode(own) == answer + "<|endoftext|>"


def test_a_chat_template_masks_the_users_turn(mine):
    trainer = trainer_of(mine(use_chat_template=True))
    row = trainer.train_dataset[0]
    own = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    decode = trainer.processing_class.decode
    assert decode(row["input_ids"]).startswith(
        "<|im_start|>user\nQ: What is 0 and 0?\nA:<|im_end|>\n<|im_start|>"
    )
    assert decode(own) == " It is 0.\n#### 0<|im_end|>\n"


def test_chats(mine, tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    for split in ("train", "test"):
        Dataset.from_list([{"chat": turns}] * 8).to_json(tmp_path / "chats" / f"{split}.jsonl")
    plain = {"prompt_template": "DROP", "completion_template": "DROP"}
    path = mine(
        messages_column="chat", assistant_only_loss=True, dataset_name=str(tmp_path / "chats"), **plain
    )
    row = trainer_of(path).train_dataset[0]
    own = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert toy.make_toy_tokenizer("<|endoftext|>").decode(own) == "Hello.<|im_end|>"


def test_sharegpts_roles_reach_the_chat_template(mine, tmp_path):
    chat = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    Dataset.from_list([{"conversations": chat}] * 2).to_json(tmp_path / "chats" / "train.jsonl")
    plain = {"prompt_template": "DROP", "completion_template": "DROP"}
    folder = {"dataset_name": str(tmp_path / "chats"), "eval_split": "train"}
    trainer = trainer_of(mine(messages_column="conversations", **plain, **folder))
    assert trainer.processing_class.decode(trainer.train_dataset[0]["input_ids"]) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    )


def test_plain_text_is_one_stream(mine):
    plain = {"prompt_template": "DROP", "completion_template": "DROP", "join_rows": "\n"}
    trainer = trainer_of(mine(packing=True, packing_strategy="wrapped", max_length=32, **plain))
    ids = [token for row in trainer.train_dataset for token in row["input_ids"]]
    text = "\n".join(f"line {i}" for i in range(24))
    assert trainer.processing_class.decode(ids) == text + "<|endoftext|>"
    assert {len(row["input_ids"]) for row in trainer.train_dataset.select(range(4))} == {32}


def test_packed_examples_do_not_see_each_other(mine):
    """Without flash attention, too: the loss per token is that of the examples one by one."""
    losses = [
        trainer_of(mine(packing=packing, max_length=200)).evaluate()["eval_loss"] for packing in (False, True)
    ]
    packed = trainer_of(mine(packing=True, max_length=200))
    assert len(packed.eval_dataset) < 7
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_eval_loss_is_per_token(mine):
    trainer = trainer_of(mine())
    total = tokens = 0.0
    trainer.model.eval()
    for row in trainer.eval_dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            logits = trainer.model(input_ids=ids).logits[0, :-1]
        total += nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum", ignore_index=-100).item()
        tokens += (labels[0, 1:] != -100).sum().item()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-5)


def test_training_is_what_transformers_trainer_does(mine, model_folder, tmp_path):
    """The slow twin: Transformers' own Trainer on examples masked and padded by hand."""
    trainer = trainer_of(mine(logging_steps=1, lr_scheduler_type="constant"))
    trainer.train()
    rows = trainer.train_dataset.select_columns(["input_ids", "labels"])

    def pad(batch):
        width = max(len(row["input_ids"]) for row in batch)
        columns = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        batch = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in batch]
        return {
            key: torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in batch])
            for key, fill in columns.items()
        }

    args = {"lr_scheduler_type": "constant", "learning_rate": 1e-3, "optim": "adamnx", "max_steps": 3}
    twin = Trainer(
        AutoModelForCausalLM.from_pretrained(model_folder),
        TrainingArguments(
            str(tmp_path / "twin"), per_device_train_batch_size=4, logging_steps=1, use_cpu=True,
            report_to="none", save_strategy="no", remove_unused_columns=False, **args,
        ),
        train_dataset=rows,
        data_collator=pad,
    )  # fmt: skip
    twin.train()
    losses = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (trainer, twin)]
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], abs=2e-4)
    for a, b in zip(trainer.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-5)


def test_sophiag_samples_the_tokens_that_count(mine):
    trainer = trainer_of(mine(optim="sophiag", optim_args="curvature_every=2", learning_rate=1e-4))
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.create_optimizer()
    _, count = trainer.sampled_loss(batch)
    assert count == (batch["labels"] != -100).sum()  # none of them is the first of a sequence
    assert trainer.train().training_loss < 6
    state = trainer.optimizer.optimizer.state
    assert any(entry["hessian"].any() for entry in state.values())


# Exact match


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("1,234", "1234"),
        ("$ 5.", "5"),
        ("$5.00", "5"),
        ("18.0", "18"),
        ("180", "180"),
        (" Yes ", "yes"),
        ("-3", "-3"),
        ("1.50", "1.50"),
    ],
)
def test_answers_as_they_are_compared(text, normal):
    assert normalize_answer(text) == normal


def test_exact_match_counts_right_answers(mine):
    trainer = trainer_of(mine(answer_pattern=r"####\s*(-?[\d.,$]+)", exact_match_samples=6))
    said = {0: "#### 0", 1: "It is #### 2.", 2: "#### 5", 3: "6", 4: "so\n####8", 5: "#### $10"}
    asked = []

    def generate(model, rows, max_new_tokens):
        assert not model.training and len(rows) <= 3 and max_new_tokens == 256
        asked.extend(row["prompt"] for row in rows)
        return [said[len(asked) - len(rows) + i] for i in range(len(rows))]

    trainer.generate = generate
    assert trainer.evaluate()["eval_exact_match"] == pytest.approx(100 * 4 / 6)
    assert len(asked) == 6 and asked[1] == "Q: What is 1 and 1? Think.\nA:"


def test_a_batch_generates_what_each_would(mine):
    trainer = trainer_of(mine())
    rows = list(trainer.eval_dataset)
    assert len({len(row["input_ids"]) for row in rows}) > 2
    trainer.model.eval()
    together = trainer.generate(trainer.model, rows, 12)
    assert together == [trainer.generate(trainer.model, [row], 12)[0] for row in rows]
    assert len(set(together)) > 1


def test_a_model_that_has_learned_answers_right(mine, tmp_path):
    """From training to exact match, with nothing in between replaced: it may learn the split by heart."""
    Dataset.from_list([{"question": q, "answer": f" #### {a}"} for q, a in (("x", 1), ("y", 22))]).to_json(
        tmp_path / "easy" / "train.jsonl"
    )
    path = mine(dataset_name=str(tmp_path / "easy"), eval_split="train", answer_pattern=r"####\s*(\d+)")
    trainer = trainer_of(path, "--max_steps", "60", "--learning_rate", "0.01", "--max_new_tokens", "12")
    trainer.train()
    assert trainer.evaluate()["eval_exact_match"] == 100.0


# What max_length takes away


@pytest.fixture
def long_prompts(tmp_path):
    """Prompts and completions whose tokens, one a letter, can be counted; each ends in one more."""
    splits = {
        "train": [("12345", "678"), ("12345", "6789abc"), (10 * "p", "x"), (11 * "p", "x"), (9 * "p", "x")],
        "test": [(10 * "p", "#1"), ("ab", "#2"), ("abc", "#3"), (8 * "p", "#44"), ("a", "#5"), ("b", "#6")],
    }
    for split, rows in splits.items():
        data = Dataset.from_list([{"question": prompt, "answer": answer} for prompt, answer in rows])
        data.to_json(tmp_path / "long" / f"{split}.jsonl")
    templates = {"prompt_template": "{question}", "completion_template": "{answer}"}
    return {"dataset_name": str(tmp_path / "long"), "max_length": 10, **templates}


def test_what_max_length_takes_away_is_counted_and_said(mine, long_prompts):
    """Two prompts of the training split fill 10 tokens, and one of the other split.

    Examples of 13 and of 11 tokens are cut, and one of 12.
    """
    trainer = trainer_of(mine(**long_prompts))
    train = {"examples": 5, "dropped": 2, "shortened": 2}
    assert trainer.truncated == {"train": train, "eval": {"examples": 6, "dropped": 1, "shortened": 1}}
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (3, 5)
    assert trainer.notes == [
        "train_split: of 5 examples, max_length (10 tokens) leaves 2 out and cuts 2 short",
        "eval_split: of 6 examples, max_length (10 tokens) leaves 1 out and cuts 1 short; perplexity is over "
        "what is left",
    ]
    packed = trainer_of(mine(packing=True, **long_prompts))
    assert packed.truncated["train"] == train
    assert [len(row["input_ids"]) for row in packed.train_dataset] == [10, 10, 9]  # none of a prompt alone
    split = trainer_of(mine(packing=True, packing_strategy="wrapped", **long_prompts))
    assert split.truncated["train"] == {"examples": 5, "dropped": 0, "shortened": 0}
    assert sum(len(row["input_ids"]) for row in split.train_dataset) == 9 + 13 + 12 + 13 + 11
    whole = trainer_of(mine(**long_prompts | {"max_length": 13}))
    assert whole.truncated["train"] == {"examples": 5, "dropped": 0, "shortened": 0} and not whole.notes


def test_texts_that_are_cut_are_counted(mine):
    """`line 9` and its end are 7 tokens, `line 10` has one more."""
    trainer = trainer_of(mine(prompt_template="DROP", completion_template="DROP", max_length=7))
    assert trainer.truncated["train"] == {"examples": 24, "dropped": 0, "shortened": 14}
    assert trainer.truncated["eval"] == {"examples": 7, "dropped": 0, "shortened": 0}


def test_exact_match_is_over_all_that_were_asked(mine, long_prompts):
    """The first four, of which one has a prompt that fills max_length: at most 3 of 4 can be right."""
    trainer = trainer_of(mine(answer_pattern=r"#(\d+)", exact_match_samples=4, **long_prompts))
    asked = []

    def generate(model, rows, max_new_tokens):
        asked.extend(row["prompt"] for row in rows)
        return [row["completion"] for row in rows]

    trainer.generate = generate
    assert trainer.evaluate()["eval_exact_match"] == 75.0
    assert asked == ["ab", "abc", "pppppppp"]
    assert trainer.notes[-1] == (
        "exact_match: counted as not matched, since their prompts leave no room within max_length: 1 of the "
        "first 4 examples of eval_split"
    )


def test_the_token_that_ends_a_completion_is_no_part_of_its_answer(mine, long_prompts):
    changes = {**long_prompts, "max_length": 20, "answer_pattern": "(.+)", "exact_match_samples": 6}
    trainer = trainer_of(mine(**changes))
    said = iter(["#1", "#2", "#3", "#44", "#5", "wrong"])
    trainer.generate = lambda model, rows, max_new_tokens: [next(said) for _ in rows]
    assert trainer.evaluate()["eval_exact_match"] == pytest.approx(100 * 5 / 6)


def test_a_prompt_that_is_cut_at_its_start_is_asked_as_it_is_left(mine, long_prompts):
    changes = {**long_prompts, "truncation_mode": "keep_end", "max_length": 4}
    trainer = trainer_of(mine(answer_pattern=r"#(\d+)", exact_match_samples=4, **changes))
    decode = trainer.processing_class.decode
    rows = trainer.find_fitting(range(4))  # the last is #44 and its end, 4 tokens: no prompt is left
    assert [decode(row["input_ids"]) for row in rows] == [
        f"{prompt}<|endoftext|>" for prompt in ("p#1", "b#2", "c#3")
    ]


# LoRA

LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear", "lora_dropout": 0.0}


def test_lora_plus_and_frozen_weights(mine):
    trainer = trainer_of(mine(loraplus_lr_ratio=8, lr_scheduler_type="constant", **LORA))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, AdamNX)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, param in trainer.model.named_parameters():
        if param.requires_grad:
            assert rates[id(param)] == pytest.approx(8e-3 if "lora_B" in name else 1e-3)
        else:
            assert torch.equal(param, before[name]) and param.grad is None
    trained = {p for p in trainer.model.parameters() if p.requires_grad}
    assert set(optimizer.state) == trained and len(trained) == 2 * 7 * 2
    assert all("lora_" in name for name, p in trainer.model.named_parameters() if p.requires_grad)


def test_the_merged_model_says_what_the_adapter_says(mine, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["run", mine(**LORA), "--learning_rate", "0.05", "--output_dir", str(out)]) == 0
    from peft import AutoPeftModelForCausalLM

    ids = torch.tensor([[1, 2, 3, 4]])
    base_folder = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    merged, base = map(AutoModelForCausalLM.from_pretrained, (out / "merged", base_folder))
    adapted = AutoPeftModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        logits = [model.eval()(ids).logits for model in (merged, adapted, base)]
    assert torch.allclose(logits[0], logits[1], atol=1e-4)
    assert not torch.allclose(logits[0], logits[2], atol=1e-2)


# Memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("optimizer", "each"),
    [(AdamNX, {4: 8, 2: 8}), (torch.optim.AdamW, {4: 8, 2: 4}), (torch.optim.SGD, {4: 0, 2: 0})],
)
def test_memory_is_what_is_there(dtype, optimizer, each):
    size = dtype.itemsize
    model = nn.Sequential(nn.Linear(300, 20, bias=False), nn.Linear(20, 50)).to(dtype)
    model[0].weight.requires_grad_(False)
    reckoned = memory.expected(model, lambda params: optimizer(params, lr=1e-3))
    made = optimizer([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model(torch.ones(2, 300, dtype=dtype)).sum().backward()
    made.step()
    assert memory.as_it_is(model, made) == reckoned
    steps = 2 * {AdamNX: 8, torch.optim.AdamW: 4, torch.optim.SGD: 0}[optimizer]
    assert reckoned == memory.Memory(7050 * size, 1050 * size, 1050 * each[size] + steps)
    assert reckoned.total == reckoned.parameters + reckoned.gradients + reckoned.states


def test_the_memory_command(capsys):
    assert cli.main(["memory", "smollm2_135m_gsm8k", "--optim", "adamnx", "adamw"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "134,515,008 | 134,515,008 | 4.000 | 4.000 | 8.000 | 2.152 |" in lines[2]
    assert lines[3].startswith("| `smollm2_135m_gsm8k` with adamw |")
    assert cli.main(["memory", "cifar100_swinv2_s"]) == 1
    assert "its task image_classification does not tell" in capsys.readouterr().err
    assert cli.main(["memory", "smollm2"]) == 1
    assert "smollm2: no recipe of that name" in capsys.readouterr().err


# What people run into


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": "meta-llama/Llama-3.1-8B"}, "is not a local folder and did not come from"),
        ({"prompt_template": "Q: {qestion}"}, "prompt_template: the data set has no column 'qestion'; did"),
        ({"prompt_template": "{question.__class__}"}, "the data set has no column 'question.__class__'; did"),
        ({"prompt_template": "{question"}, "prompt_template: '{question' has a { that belongs to no"),
        ({"completion_template": "DROP"}, "prompt_template and completion_template: give both or neither"),
        ({"max_length": 4096}, "max_length: 4096 tokens are more than"),
        ({"max_length": 10}, "no example has a completion within max_length (10 tokens); raise"),
        ({"answer_pattern": "#### .*"}, "answer_pattern: '#### .*' has no group; put the answer in"),
        ({"answer_pattern": "(", "max_length": 99}, "answer_pattern: '(' ("),
        ({"answer_pattern": "(.)", "packing": True}, "answer_pattern: prompts must not be packed"),
        ({"answer_pattern": "(.)", "completion_only_loss": False}, "answer_pattern: prompts must be told"),
        ({"answer_pattern": r"ANSWER (\d+)"}, "is in none of the first 7 completions of eval_split, such as "
            "' It is 0.\\n#### 0'; to do without: --answer_pattern none"),
        ({"attn_implementation": "somebody/attention"}, "'somebody/attention' would run code from the Hub"),
        ({"model_config": {"model_type": "llama", "_attn_implementation": "a/b"}}, "'a/b' would run code"),
        ({"load_in_4bit": True}, "quantized weights do not train; add use_peft"),
        ({"loraplus_lr_ratio": 4}, "loraplus_lr_ratio: needs LoRA; add use_peft: true"),
        ({"loraplus_lr_ratio": 0.5, "use_peft": True}, "loraplus_lr_ratio: 0.5 is below 1"),
        ({"eos_token": "<|nothing|>"}, "'<|nothing|>'"),
        ({"trust_remote_code": True}, "trust_remote_code cannot stand in a recipe; give it as a flag"),
        ({"model_name_or_path": "DROP"}, "model_name_or_path: the recipe names no model"),
        ({"messages_column": "text"}, "give either prompt_template and completion_template or"),
        ({"smoke": True}, "--smoke: needs the recipe to have model_config"),
    ],
)  # fmt: skip
def test_errors_end_in_one_line(changes, message, mine, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["run", mine(**changes), "--output_dir", str(out)]) == 1
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adamnx-hf")]
    assert len(err) == 1 and message in err[0]
    assert not out.exists() or not any(out.iterdir())


def test_a_tokenizer_without_a_chat_template_or_an_end(mine, model_folder, tmp_path, capsys):
    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(bare)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = None
    tokenizer.pad_token = None
    tokenizer.save_pretrained(bare)
    words = ["--output_dir", str(tmp_path / "out")]
    path = mine(model_name_or_path=str(bare), use_chat_template=True)
    assert cli.main(["run", path, *words]) == 1
    assert "has no chat template; pass --chat_template_path" in capsys.readouterr().err
    (tmp_path / "chat.jinja").write_text(toy.CHAT_TEMPLATE)
    path = mine(model_name_or_path=str(bare), use_chat_template=True)
    trainer = trainer_of(path, "--chat_template_path", str(tmp_path / "chat.jinja"))
    assert trainer.processing_class.pad_token == "<|endoftext|>"  # none of its own: the end's
    tokenizer.eos_token = None
    tokenizer.save_pretrained(bare)
    assert cli.main(["run", mine(model_name_or_path=str(bare)), *words]) == 1
    assert "has no end-of-sequence token; pass --eos_token TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GatedRepoError", "is gated: accept its licence at https://huggingface.co/org/model, log in with"),
        (
            "RepositoryNotFoundError",
            "there is no org/model on the Hub that you may read; check the name, `hf",
        ),
    ],
)
def test_a_model_one_may_not_read(kind, message, mine, tmp_path, monkeypatch, capsys):
    """As Transformers has it: an OSError, with the Hub's error as its cause."""
    from huggingface_hub import errors

    def from_pretrained(*args, **kwargs):
        cause = getattr(errors, kind).__new__(getattr(errors, kind))
        raise OSError("You are trying to access a gated repo.\nMake sure to have access") from cause

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    path = mine(model_name_or_path="org/model")
    assert cli.main(["run", path, "--output_dir", str(tmp_path / "out")]) == 1
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adamnx-hf")]
    assert len(err) == 1 and message in err[0] and "--model_name_or_path path/to/folder" in err[0]


def test_out_of_memory(mine, tmp_path, monkeypatch, capsys):
    def training_step(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(RecipeSFTTrainer, "training_step", training_step)
    words = ["--output_dir", str(tmp_path / "out"), "--gradient_accumulation_steps", "2"]
    assert cli.main(["run", mine(), *words]) == 1
    assert capsys.readouterr().err.endswith(
        "adamnx-hf run: error: out of memory with batches of 4 a device; try --per_device_train_batch_size 2 "
        "--gradient_accumulation_steps 4, or --gradient_checkpointing true, or --max_length 64\n"
    )


def test_out_of_memory_in_evaluation(mine, tmp_path, monkeypatch, capsys):
    def prediction_step(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(RecipeSFTTrainer, "prediction_step", prediction_step)
    assert cli.main(["run", mine(per_device_eval_batch_size=8), "--output_dir", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.endswith(
        "adamnx-hf run: error: out of memory in evaluation, with batches of 8 a device; try "
        "--per_device_eval_batch_size 4\n"
    )


def test_a_merge_that_fails_does_not_cost_the_run(mine, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(RecipeSFTTrainer, "_save_merged", fail)
    out = tmp_path / "out"
    assert cli.main(["run", mine(**LORA), "--output_dir", str(out)]) == 0
    (note,) = [note for note in results_of(out)["notes"] if "merged" in note]
    assert "no space left on device" in note and (out / "adapter_model.safetensors").exists()


def test_generation_leaves_checkpointing_as_it_was_and_is_greedy(mine, tmp_path):
    path = mine(
        answer_pattern=r"####\s*(-?[\d.,$]+)", exact_match_samples=2, gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False}, max_new_tokens=8, **LORA,
    )  # fmt: skip
    trainer = trainer_of(path, "--output_dir", str(tmp_path / "out"))
    trainer.train()

    def options():
        layers = [m for m in trainer.model.modules() if hasattr(m, "_gradient_checkpointing_func")]
        return [(m.gradient_checkpointing, m._gradient_checkpointing_func.keywords) for m in layers]

    before, rows = options(), trainer.eval_dataset.select(range(2))
    trainer.evaluate()
    assert before and options() == before and all(on for on, _ in before)
    trainer.model.eval()
    plain = trainer.generate(trainer.model, list(rows), 12)
    trainer.model.generation_config.update(num_beams=3, repetition_penalty=5.0, no_repeat_ngram_size=1)
    assert trainer.generate(trainer.model, list(rows), 12) == plain


def test_fields_keep_transformers_defaults(tmp_path):
    own, transformers = (kind(str(tmp_path), use_cpu=True) for kind in (RecipeSFTConfig, TrainingArguments))
    for name in ("bf16", "learning_rate", "logging_steps"):
        assert getattr(own, name) == getattr(transformers, name)
    assert not own.gradient_checkpointing and own.packing is False


def test_an_answer_is_the_patterns_group():
    match = ExactMatch(r"####\s*(-?[\d.,$]+)", 1, 1)
    assert match.find_answer("so\n#### 1,024.") == "1024" and match.find_answer("none") is None
