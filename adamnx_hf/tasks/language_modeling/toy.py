"""The model of --smoke: narrow, with bytes as tokens and a chat template that marks the assistant's turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks.language_modeling.arguments import Arguments
from adamnx_hf.tasks.language_modeling.model import configure
from adamnx_hf.tasks.sft_trainer import RecipeSFTConfig

__all__ = ["BASE", "CHAT_TEMPLATE", "make_toy_tokenizer", "smoke", "write_toy"]

#: The folder in output_dir where a smoke run keeps the model that it starts from.
BASE = "base_model"

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def smoke(arguments: Arguments) -> dict[str, Any]:
    """Returns the values of `--smoke`: the model at a toy's width, and a few short sequences.

    Raises:
        RecipeError: the recipe has no `model_config`.
    """
    if arguments.model_config is None:
        raise RecipeError("--smoke: needs the recipe to have model_config, to make a model like it")
    published: Any = arguments.model_config
    config: dict[str, Any] = published | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256 + len(_SPECIAL),  # a token for each byte
    }
    if "head_dim" in config:
        config["head_dim"] = 16
    return {
        "model_config": config,
        "model_revision": "main",
        "chat_template_path": None,
        "attn_implementation": None,
        "max_length": 256,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "max_train_samples": 32,
        "max_eval_samples": 8,
        "exact_match_samples": 4,
        "max_new_tokens": 16,
        "use_cpu": not torch.accelerator.is_available(),  # else bf16 is refused without a GPU
    }


def make_toy_tokenizer(eos_token: str) -> Any:
    """Makes a tokenizer whose tokens are bytes and whose end token is `eos_token`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(_SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=eos_token, pad_token="<|pad|>", chat_template=CHAT_TEMPLATE
    )


def write_toy(arguments: Arguments, args: RecipeSFTConfig) -> Path:
    """Writes a smoke run's model and tokenizer into a folder, which is then read like any other."""
    from transformers import AutoModelForCausalLM, set_seed

    folder = Path(str(args.output_dir)) / BASE
    if args.eos_token not in _SPECIAL:
        args.eos_token = _SPECIAL[0]
    if args.process_index == 0:
        set_seed(args.seed)
        tokenizer, config = make_toy_tokenizer(str(args.eos_token)), configure(arguments)
        config.bos_token_id, config.eos_token_id = None, tokenizer.eos_token_id
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder
