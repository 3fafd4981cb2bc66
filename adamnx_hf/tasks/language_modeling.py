"""Causal language models: supervised fine-tuning and continued pre-training, whole, with LoRA or with QLoRA.

Rows become what TRL's SFTTrainer takes; it does the rest: chat template, loss on completions only, packing.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from trl import ModelConfig, get_peft_config, get_quantization_config

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.plain_values import read_json
from adamnx_hf.tasks import texts
from adamnx_hf.tasks.base import Metric
from adamnx_hf.tasks.data import DataArguments, doc, load_splits
from adamnx_hf.tasks.pretrained import check_pretrained
from adamnx_hf.tasks.sft_trainer import (
    SECONDS,
    ExactMatch,
    RecipeSFTConfig,
    RecipeSFTTrainer,
)

if TYPE_CHECKING:
    from adamnx_hf.tasks.base import Recipe

__all__ = [
    "DISPLACES",
    "METRICS",
    "UNIT",
    "Arguments",
    "TrainingArguments",
    "fast",
    "make_trainer",
    "meta_model",
    "smoke",
]

#: Reported best and last.
METRICS = {
    "perplexity": Metric("min", "perplexity", "Perplexity", float),
    "exact_match": Metric("max", "exact_match", "Exact match"),
}

UNIT = "tokens"

_TEMPLATES = ("prompt_template", "completion_template", "use_chat_template", "answer_pattern")
#: What the rows hold is said in one of three ways: by templates, as chats or as texts.
DISPLACES = {
    "messages_column": (*_TEMPLATES, "join_rows"),
    "dataset_text_field": (*_TEMPLATES, "messages_column"),
    "prompt_template": ("messages_column", "join_rows"),
}

#: The task, as the Hub names it.
PIPELINE_TAG = "text-generation"

TrainingArguments = RecipeSFTConfig

#: The folder in output_dir where a smoke run keeps the model that it starts from.
BASE = "base_model"


@dataclasses.dataclass
class Arguments(DataArguments, ModelConfig):
    """The fields of a recipe for language models: TRL's ModelConfig (model, LoRA, quantization) and these."""

    model_config: dict | str | None = dataclasses.field(
        default=None,
        metadata=doc(
            "What the model's config.json says of its kind and sizes (model_type and others), for --smoke "
            "and `adamnx-hf memory`, which do without the Hub."
        ),
    )
    prompt_template: str | None = dataclasses.field(
        default=None,
        metadata=doc("The prompt, with columns in braces: 'Question: {question}\\nAnswer:'.", data=True),
    )
    completion_template: str | None = dataclasses.field(
        default=None,
        metadata=doc("What the model is to answer, with columns in braces: ' {answer}'.", data=True),
    )
    use_chat_template: bool = dataclasses.field(
        default=False,
        metadata=doc(
            "Prompt and completion are the user's and the assistant's turn in the tokenizer's chat template.",
            data=True,
        ),
    )
    messages_column: str | None = dataclasses.field(
        default=None,
        metadata=doc(
            "Instead of templates: a column of chats, lists of {role, content} or ShareGPT's {from, value}.",
            data=True,
            neutral=True,
        ),
    )
    join_rows: str | None = dataclasses.field(
        default=None,
        metadata=doc(
            f"Rows of dataset_text_field are pieces of one text: join {texts.JOINED:,} at a time with this "
            "between.",
            data=True,
        ),
    )
    allow_blank: texts.Blank = dataclasses.field(
        default="nowhere",
        metadata=doc(
            "Where a cell without a value is an empty text: 'nowhere', such a row is refused; in the "
            "'prompt'; or 'anywhere', and then completions and texts may also be empty.",
            data=True,
        ),
    )
    answer_pattern: str | None = dataclasses.field(
        default=None,
        metadata=doc(
            "Regular expression whose first group is the answer in a completion: reports exact match by "
            "greedy generation."
        ),
    )
    exact_match_samples: int = dataclasses.field(
        default=200, metadata=doc("Exact match is over the first so many examples of the evaluation split.")
    )
    max_new_tokens: int = dataclasses.field(
        default=256, metadata=doc("Generate at most so many tokens an answer.")
    )

    def __post_init__(self) -> None:
        DataArguments.__post_init__(self)
        ModelConfig.__post_init__(self)
        if isinstance(self.model_config, str):
            self.model_config = read_json(self.model_config)
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path: the recipe names no model")
        if (self.prompt_template is None) != (self.completion_template is None):
            raise ValueError("prompt_template and completion_template: give both or neither")
        if self.prompt_template is not None and self.messages_column is not None:
            raise ValueError("give either prompt_template and completion_template or messages_column")
        if self.use_chat_template and self.prompt_template is None:
            raise ValueError("use_chat_template: needs prompt_template and completion_template")
        columns = [self.columns_of(name) for name in ("prompt_template", "completion_template")]
        if self.prompt_template is not None and not any(columns):
            raise ValueError(
                "prompt_template and completion_template: neither names a column; write it in braces"
            )
        if (self.load_in_4bit or self.load_in_8bit) and not self.use_peft:
            raise ValueError("load_in_4bit and load_in_8bit: quantized weights do not train; add use_peft")
        if self.load_in_4bit and self.dtype == "auto":
            raise ValueError("dtype: with load_in_4bit it is what is computed in; name one, such as bfloat16")
        for name in ("exact_match_samples", "max_new_tokens", "lora_r"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1")
        if self.answer_pattern is not None:
            if self.prompt_template is None:
                raise ValueError("answer_pattern: needs prompt_template and completion_template")
            ExactMatch(self.answer_pattern, self.exact_match_samples, self.max_new_tokens)  # checks it

    def columns_of(self, name: str) -> list[str]:
        """The columns in a template.

        Args:
            name: of the field that holds it.

        Raises:
            ValueError: the template cannot be parsed.
        """
        return [column for _, column in self.pieces_of(name) if column is not None]

    def pieces_of(self, name: str) -> texts.Pieces:
        """A template as :func:`adamnx_hf.tasks.texts.parse` has it; see :meth:`columns_of`."""
        try:
            return texts.parse(getattr(self, name) or "")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def fast() -> dict[str, Any]:
    """What `--fast` sets."""
    return {"bf16": True, "use_cpu": not torch.accelerator.is_available()}


def smoke(arguments: Arguments) -> dict[str, Any]:
    """What `--smoke` sets: the model at toy width, short sequences and a few of them."""
    if arguments.model_config is None:
        raise RecipeError("--smoke: needs the recipe to have model_config, to make a model like it")
    published: Any = arguments.model_config
    config: dict[str, Any] = published | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(_BYTES) + len(_SPECIAL),
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
        "use_cpu": not torch.accelerator.is_available(),  # bf16 without a GPU has to be asked for
    }


def make_trainer(recipe: Recipe) -> RecipeSFTTrainer:
    """The model, the data and the metrics of `recipe` in TRL's SFTTrainer."""
    arguments: Arguments = recipe.task_arguments
    args: RecipeSFTConfig = recipe.training_arguments
    _check_fields(arguments, args)
    notes: list[str] = []
    with args.main_process_first(desc="loading the data"):
        if recipe.synthetic_data:
            splits = _made_up(arguments, args)
        else:
            splits = load_splits(arguments, spread=recipe.arguments.smoke, notes=notes)
        (train, test), of_rows = _for_trl(splits, arguments, args)
        notes += of_rows
        args.dataset_text_field = texts.TEXT
        if recipe.arguments.smoke:
            arguments.model_name_or_path = str(_make_toy(arguments, args))
    tokenizer = _tokenizer(arguments, args)
    model = _model(arguments, args)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and (args.max_length or 0) > longest:
        raise RecipeError(
            f"max_length: {args.max_length} tokens are more than {arguments.model_name_or_path} takes, "
            f"{longest}; pass --max_length {longest} or less"
        )
    adapter = get_peft_config(arguments)
    if adapter is not None:
        adapter.revision = arguments.model_revision  # of the base that it belongs to
    exact_match = None
    if arguments.answer_pattern is not None:
        exact_match = ExactMatch(
            arguments.answer_pattern, arguments.exact_match_samples, arguments.max_new_tokens
        )
    trainer = RecipeSFTTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=adapter,
        exact_match=exact_match,
    )
    _check_prepared(trainer)
    trainer.notes += [*notes, *_notes_on_length(trainer)]
    return trainer


def _check_fields(arguments: Arguments, args: RecipeSFTConfig) -> None:
    """What depends on fields of both kinds."""
    if arguments.answer_pattern is not None:
        if args.packing if args.eval_packing is None else args.eval_packing:
            raise RecipeError("answer_pattern: prompts must not be packed; add eval_packing: false")
        if args.completion_only_loss is False:
            raise RecipeError("answer_pattern: prompts must be told apart; add completion_only_loss: true")
    elif (args.metric_for_best_model or "").removeprefix("eval_") == "exact_match":
        raise RecipeError("metric_for_best_model: exact_match needs answer_pattern, to know the answer")
    if args.loraplus_lr_ratio is not None and not arguments.use_peft:
        raise RecipeError("loraplus_lr_ratio: is LoRA's; add use_peft: true")
    if args.max_length is not None and args.max_length < 2:
        raise RecipeError(f"max_length: {args.max_length} tokens are none to predict; at least 2")
    if args.padding_free and not args.packing:
        raise RecipeError("padding_free: goes with packing: true")


def _check_prepared(trainer: RecipeSFTTrainer) -> None:
    splits: dict[str, Any] = {"train_split": trainer.train_dataset, "eval_split": trainer.eval_dataset}
    for field, data in splits.items():
        if not len(data):
            raise RecipeError(
                f"{field}: no example has a completion within max_length ({trainer.args.max_length} tokens); "
                "raise --max_length"
            )
    if (asked := trainer.exact_match) is not None:
        completions = [trainer.reference(row) for row in trainer.asked]
        try:
            found = any(asked.answer(text) for text in completions)
        except TimeoutError:
            raise RecipeError(
                f"answer_pattern: {asked.pattern!r} takes more than {SECONDS:g} s to find an answer "
                "in one of the first completions of eval_split; write it without repeats of repeats"
            ) from None
        if not found:
            raise RecipeError(
                f"answer_pattern: {asked.pattern!r} is in none of the first {len(completions)} completions "
                f"of eval_split, such as {completions[0][-80:]!r}; to do without: --answer_pattern none"
            )


def _notes_on_length(trainer: RecipeSFTTrainer) -> list[str]:
    """What `max_length` took away from each split, for the user."""
    notes = []
    for name, counts in trainer.truncated.items():
        if counts["dropped"] or counts["shortened"]:
            rest = "; perplexity is over what is left" if name == "eval" else ""
            notes.append(
                f"{name}_split: of {counts['examples']:,} examples, max_length ({trainer.args.max_length} "
                f"tokens) leaves {counts['dropped']:,} out and cuts {counts['shortened']:,} short{rest}"
            )
    data: Any = trainer.train_dataset
    if trainer.args.packing and "train" in trainer.truncated:
        left = trainer.truncated["train"]["examples"] - trainer.truncated["train"]["dropped"]
        notes.append(f"train_split: {left:,} examples are packed into {len(data):,} sequences")
    if trainer.exact_match is not None:
        asked = len(trainer.asked)
        if without := asked - len(trainer.fitting(range(asked))):
            notes.append(
                "exact_match: counted as not matched, since their prompts leave no room within max_length: "
                f"{without:,} of the first {asked:,} examples of eval_split"
            )
    return notes


# Data


def _for_trl(
    splits: Sequence[Any], arguments: Arguments, args: RecipeSFTConfig
) -> tuple[list[Any], list[str]]:
    """The splits with the columns TRL knows (prompt and completion, messages, or text), and notes."""
    names = (arguments.trained_split, arguments.judged_split)
    for field, name, data in zip(("train_split", "eval_split"), names, splits, strict=True):
        if not len(data):
            raise RecipeError(f"{field}: the split {name!r} has no rows")
    allow_blank = arguments.allow_blank
    if arguments.messages_column is not None:
        return [
            texts.read_chats(
                data,
                arguments.messages_column,
                split=name,
                allow_blank=allow_blank,
                assistant_only=args.assistant_only_loss,
            )
            for data, name in zip(splits, names, strict=True)
        ], []
    if arguments.prompt_template is not None:
        prompt, completion = map(arguments.pieces_of, ("prompt_template", "completion_template"))
        columns = [column for _, column in (*prompt, *completion) if column is not None]
        whole, notes = texts.find_whole_columns(splits, columns)
        return [
            texts.fill_in(
                data,
                prompt,
                completion,
                split=name,
                allow_blank=allow_blank,
                as_turns=arguments.use_chat_template,
                whole=whole,
            )
            for data, name in zip(splits, names, strict=True)
        ], notes
    return [
        texts.read_texts(
            data,
            args.dataset_text_field,
            split=name,
            allow_blank=allow_blank,
            separator=arguments.join_rows,
        )
        for data, name in zip(splits, names, strict=True)
    ], []


def _made_up(arguments: Arguments, args: RecipeSFTConfig) -> tuple[Any, Any]:
    """Rows of the recipe's columns, for smoke runs."""
    from datasets import Dataset

    columns = [*arguments.columns_of("prompt_template"), *arguments.columns_of("completion_template")]

    def value(column: str, i: int) -> Any:
        if column == arguments.messages_column:
            turns = (("user", f"What is {i} and 1?"), ("assistant", f"It is {i + 1}."))
            return [{"role": role, "content": text} for role, text in turns]
        return f"This is the {column} of row {i}: {i} and 1 is {i + 1}.\n#### {i + 1}"

    def split(count: int, start: int) -> Dataset:
        names = columns or [arguments.messages_column or args.dataset_text_field]
        return Dataset.from_dict({name: [value(name, start + i) for i in range(count)] for name in names})

    return split(arguments.max_train_samples or 32, 0), split(arguments.max_eval_samples or 8, 1000)


# Model and tokenizer


def _reading(what: str, name: str, read: Callable[[], Any], field: str = "model_name_or_path") -> Any:
    """`read()`, with one line for each way it is known to fail."""
    from huggingface_hub import errors

    try:
        return read()
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
        if os.path.isdir(os.path.expanduser(name)):
            text = f"{name} cannot be read as {what} ({reason})"
        elif any(isinstance(cause, errors.GatedRepoError) for cause in _causes(error)):
            text = (
                f"{name} is gated: accept its licence at https://huggingface.co/{name}, log in with "
                f"`hf auth login`, {remedy}"
            )
        elif any(isinstance(cause, errors.RepositoryNotFoundError) for cause in _causes(error)):
            text = (
                f"there is no {name} on the Hub that you may read; check the name, `hf auth login`, {remedy}"
            )
        else:
            text = (
                f"{name!r} is not a local folder and did not come from the Hub as {what} ({reason}); either "
                f"connect to the Hub (and unset HF_HUB_OFFLINE), {remedy}"
            )
        raise RecipeError(f"{field}: {text}") from error


def _place(name: str) -> str:
    """A local folder, or a name on the Hub."""
    folder = os.path.expanduser(name)
    return folder if os.path.isdir(folder) else name


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _tokenizer(arguments: Arguments, args: RecipeSFTConfig) -> Any:
    from transformers import AutoTokenizer

    name = str(arguments.model_name_or_path)
    tokenizer = _reading(
        "a tokenizer",
        name,
        lambda: AutoTokenizer.from_pretrained(
            _place(name),
            revision=arguments.model_revision,
            trust_remote_code=args.trust_remote_code,
        ),
    )
    if (template := args.chat_template_path) is not None and not os.path.isfile(template):
        # TRL leaves trust_remote_code open here, and Transformers then asks whoever sits at the terminal.
        _reading(
            "a tokenizer",
            template,
            lambda: AutoTokenizer.from_pretrained(template, trust_remote_code=args.trust_remote_code),
            "chat_template_path",
        )
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


def _model(arguments: Arguments, args: RecipeSFTConfig) -> Any:
    from transformers import AutoModelForCausalLM

    name = str(arguments.model_name_or_path)
    options: dict[str, Any] = {"dtype": arguments.dtype, "attn_implementation": arguments.attn_implementation}
    if (quantization := get_quantization_config(arguments)) is not None:
        options["quantization_config"] = quantization

    def read() -> Any:
        place = _place(name)
        check_pretrained(place, arguments.model_revision, trusted=args.trust_remote_code)
        return AutoModelForCausalLM.from_pretrained(
            place,
            revision=arguments.model_revision,
            trust_remote_code=args.trust_remote_code,
            **options,
        )

    return _reading("a causal language model", name, read)


def meta_model(arguments: Arguments) -> tuple[Any, dict[int, int]]:
    """The recipe's model, with its adapter, on the meta device: it has shapes and takes no memory.

    Returns:
        The model, and the bytes of its quantized parameters by `id`.

    Raises:
        RecipeError: the recipe has no model_config.
    """
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if arguments.dtype in (None, "auto") else getattr(torch, str(arguments.dtype))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(arguments), dtype=dtype)
    packed: dict[int, int] = {}
    if arguments.load_in_4bit or arguments.load_in_8bit:
        head = model.get_output_embeddings()  # stays as it is, as do embeddings and norms
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                packed[id(module.weight)] = _quantized_bytes(module.weight, arguments)
    if (adapter := get_peft_config(arguments)) is not None:
        with torch.device("meta"):
            model = get_peft_model(model, adapter)
        if packed:  # as TRL has it
            for param in model.parameters():
                if param.requires_grad:
                    param.data = param.data.to(torch.bfloat16)
    return model, packed


def _quantized_bytes(weight: Any, arguments: Arguments) -> int:
    """Bytes of a weight as bitsandbytes stores it."""
    if arguments.load_in_8bit:  # a float32 scale a row
        return int(weight.numel() + 4 * weight.shape[0])
    blocks = -(-weight.numel() // 64)  # a scale each, and the table of the 16 values
    size = -(-weight.numel() // 2) + 4 * 16
    if not arguments.use_bnb_nested_quant:
        return size + 4 * blocks
    # The scales in 8 bits: in their turn a scale for 256, a table of 256 values, and their mean.
    return size + blocks + 4 * -(-blocks // 256) + 4 * 256 + 4


def _config(arguments: Arguments) -> Any:
    from transformers import AutoConfig

    fields: Any = arguments.model_config
    if not fields or "model_type" not in fields:
        raise RecipeError("model_config: the recipe does not say model_type and sizes there")
    try:
        return AutoConfig.for_model(**fields)
    except Exception as error:  # of as many kinds as there are models
        raise RecipeError(f"model_config: makes no model ({' '.join(str(error).split())})") from error


# The toy of --smoke: bytes for tokens, and a chat template that marks what the assistant says.
_BYTES = [f"<{i}>" for i in range(256)]
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _toy_tokenizer(eos_token: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(_SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=eos_token, pad_token="<|pad|>", chat_template=_CHAT_TEMPLATE
    )


def _make_toy(arguments: Arguments, args: RecipeSFTConfig) -> Path:
    """Writes a model and a tokenizer as a smoke run has them, to be read like any other's."""
    from transformers import AutoModelForCausalLM, set_seed

    folder = Path(str(args.output_dir)) / BASE
    if args.eos_token not in _SPECIAL:
        args.eos_token = _SPECIAL[0]
    if args.process_index == 0:
        set_seed(args.seed)
        tokenizer, config = _toy_tokenizer(str(args.eos_token)), _config(arguments)
        config.bos_token_id, config.eos_token_id = None, tokenizer.eos_token_id
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder
