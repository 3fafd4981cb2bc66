"""The fields of a recipe for language models."""

from __future__ import annotations

import dataclasses
from typing import Any

from trl import ModelConfig

from adamnx_hf.common.plain_values import read_json
from adamnx_hf.tasks.data import DataArguments, doc, train_fast
from adamnx_hf.tasks.language_modeling import texts
from adamnx_hf.tasks.sft_trainer import (
    ExactMatch,
)

__all__ = ["Arguments", "fast"]


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
        """Returns the columns in a template.

        Args:
            name: of the field that holds it.

        Raises:
            ValueError: the template cannot be parsed.
        """
        return [column for _, column in self.pieces_of(name) if column is not None]

    def pieces_of(self, name: str) -> texts.Pieces:
        """Parses a template; see :meth:`columns_of`."""
        try:
            return texts.parse(getattr(self, name) or "")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def fast() -> dict[str, Any]:
    """Returns what `--fast` sets."""
    return train_fast()
