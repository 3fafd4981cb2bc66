"""The model and the tokenizer of a recipe, and a model of the same shapes without memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from trl import get_peft_config, get_quantization_config

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks.language_modeling.arguments import Arguments
from adamnx_hf.tasks.pretrained import check_pretrained
from adamnx_hf.tasks.sft_trainer import RecipeSFTConfig

__all__ = ["configure", "make_meta_model", "make_model", "make_tokenizer"]


@contextlib.contextmanager
def _explain_errors(what: str, name: str, field: str = "model_name_or_path") -> Iterator[None]:
    """Explains in one line why `what`, such as "a tokenizer", cannot be read from `name`.

    Args:
        what: the thing that is read.
        name: a name on the Hub, or a local folder.
        field: the recipe's field that holds the name.

    Raises:
        RecipeError: reading has failed in a known way.
    """
    from huggingface_hub import errors

    try:
        yield
    except RecipeError:
        raise
    except ImportError as error:
        if "bitsandbytes" in str(error):
            raise RecipeError(
                'load_in_4bit, load_in_8bit: need bitsandbytes: pip install "adamnx-hf[qlora]"'
            ) from error
        raise
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        remedy = f"or pass a local copy: --{field} path/to/folder"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        if os.path.isdir(name):
            text = f"{name} cannot be read as {what} ({reason})"
        elif any(isinstance(cause, errors.GatedRepoError) for cause in _walk_causes(error)):
            text = (
                f"{name} is gated: accept its licence at https://huggingface.co/{name}, log in with "
                f"`hf auth login`, {remedy}"
            )
        elif any(isinstance(cause, errors.RepositoryNotFoundError) for cause in _walk_causes(error)):
            text = (
                f"there is no {name} on the Hub that you may read; check the name, `hf auth login`, {remedy}"
            )
        else:
            text = (
                f"{name!r} is not a local folder and did not come from the Hub as {what} ({reason}); either "
                f"connect to the Hub (and unset HF_HUB_OFFLINE), {remedy}"
            )
        raise RecipeError(f"{field}: {text}") from error


def _walk_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def make_tokenizer(arguments: Arguments, args: RecipeSFTConfig) -> Any:
    """Loads the tokenizer of the recipe's model.

    Raises:
        RecipeError: the tokenizer cannot be read, or lacks a chat template or an end-of-sequence token that
            the recipe needs.
    """
    from transformers import AutoTokenizer

    name = str(arguments.model_name_or_path)
    with _explain_errors("a tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=arguments.model_revision, trust_remote_code=args.trust_remote_code
        )
    if (template := args.chat_template_path) is not None and not os.path.isfile(template):
        # TRL leaves trust_remote_code open here, and Transformers would then ask at the terminal.
        with _explain_errors("a tokenizer", template, "chat_template_path"):
            AutoTokenizer.from_pretrained(template, trust_remote_code=args.trust_remote_code)
    chats = arguments.use_chat_template or arguments.messages_column is not None
    if chats and tokenizer.chat_template is None and args.chat_template_path is None:
        without = "--use_chat_template false" if arguments.use_chat_template else "a model that has one"
        raise RecipeError(
            f"the tokenizer of {name} has no chat template; pass --chat_template_path with a .jinja file or "
            f"a model to copy it from, or {without}"
        )
    if args.eos_token is None and tokenizer.eos_token is None:
        raise RecipeError(f"the tokenizer of {name} has no end-of-sequence token; pass --eos_token TOKEN")
    return tokenizer


def make_model(arguments: Arguments, args: RecipeSFTConfig) -> Any:
    """Loads the recipe's model, quantized if the recipe says so.

    Raises:
        RecipeError: the model cannot be read, or see :func:`adamnx_hf.tasks.pretrained.check_pretrained`.
    """
    from transformers import AutoModelForCausalLM

    name = str(arguments.model_name_or_path)
    options: dict[str, Any] = {"dtype": arguments.dtype, "attn_implementation": arguments.attn_implementation}
    if (quantization := get_quantization_config(arguments)) is not None:
        options["quantization_config"] = quantization
    with _explain_errors("a causal language model", name):
        check_pretrained(name, arguments.model_revision, trusted=args.trust_remote_code)
        return AutoModelForCausalLM.from_pretrained(
            name, revision=arguments.model_revision, trust_remote_code=args.trust_remote_code, **options
        )


def make_meta_model(arguments: Arguments) -> tuple[Any, dict[int, int]]:
    """Makes the recipe's model, with its adapter, on the meta device, where it takes no memory.

    Returns:
        The model, and the bytes of its quantized parameters by `id`.

    Raises:
        RecipeError: the recipe has no model_config.
    """
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if arguments.dtype in (None, "auto") else getattr(torch, str(arguments.dtype))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configure(arguments), dtype=dtype)
    packed: dict[int, int] = {}
    if arguments.load_in_4bit or arguments.load_in_8bit:
        head = model.get_output_embeddings()  # is not quantized, nor are embeddings and norms
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                packed[id(module.weight)] = _count_quantized_bytes(module.weight, arguments)
    if (adapter := get_peft_config(arguments)) is not None:
        with torch.device("meta"):
            model = get_peft_model(model, adapter)
        if packed:  # TRL trains the adapter of quantized weights in bfloat16
            for param in model.parameters():
                if param.requires_grad:
                    param.data = param.data.to(torch.bfloat16)
    return model, packed


def _count_quantized_bytes(weight: Any, arguments: Arguments) -> int:
    """Counts the bytes of a weight that bitsandbytes has quantized."""
    if arguments.load_in_8bit:  # each row has a float32 scale
        return int(weight.numel() + 4 * weight.shape[0])
    blocks = -(-weight.numel() // 64)  # each has a scale; all share the table of the 16 values
    size = -(-weight.numel() // 2) + 4 * 16
    if not arguments.use_bnb_nested_quant:
        return size + 4 * blocks
    # The scales have 8 bits. They have a scale for 256 of them, a table of 256 values, and a mean.
    return size + blocks + 4 * -(-blocks // 256) + 4 * 256 + 4


def configure(arguments: Arguments) -> Any:
    """Makes the configuration that the recipe's `model_config` describes.

    Raises:
        RecipeError: there is no `model_config`, or no model fits it.
    """
    from transformers import AutoConfig

    fields: Any = arguments.model_config
    if not fields or "model_type" not in fields:
        raise RecipeError(
            "model_config: the recipe names no model_type there; add it, with the model's sizes"
        )
    try:
        return AutoConfig.for_model(**fields)
    except Exception as error:  # each kind of model has errors of its own
        raise RecipeError(f"model_config: makes no model ({' '.join(str(error).split())})") from error
