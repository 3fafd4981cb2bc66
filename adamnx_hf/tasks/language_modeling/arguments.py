"""The fields of a recipe for language models."""

from __future__ import annotations

import dataclasses

from trl import ModelConfig

from adamnx_hf.tasks.base import make_field
from adamnx_hf.tasks.data import DataArguments
from adamnx_hf.tasks.language_modeling import texts
from adamnx_hf.tasks.sft_trainer import ExactMatch

__all__ = ["Arguments"]


@dataclasses.dataclass
class Arguments(DataArguments, ModelConfig):
    """The fields of a recipe for language models: TRL's ModelConfig (model, LoRA, quantization) and these."""

    model_config: dict | str | None = make_field(
        None,
        "The model's kind and sizes from its config.json (model_type and others), for --smoke and "
        "`adamnx-hf memory`, which do not ask the Hub.",
    )
    prompt_template: str | None = make_field(
        None, "The prompt, with columns in braces: 'Question: {question}\\nAnswer:'.", data=True
    )
    completion_template: str | None = make_field(
        None, "The answer to learn, with columns in braces: ' {answer}'.", data=True
    )
    use_chat_template: bool = make_field(
        False,
        "Prompt and completion are the user's and the assistant's turn in the tokenizer's chat template.",
        data=True,
    )
    messages_column: str | None = make_field(
        None,
        "Instead of templates: a column of chats, lists of {role, content} or ShareGPT's {from, value}.",
        data=True,
        neutral=True,
    )
    join_rows: str | None = make_field(
        None,
        f"Rows of dataset_text_field are pieces of one text: join {texts.JOINED:,} at a time with this "
        "between.",
        data=True,
    )
    allow_blank: texts.Blank = make_field(
        "nowhere",
        "Where a cell without a value is an empty text: 'nowhere', such a row is refused; in the 'prompt'; "
        "or 'anywhere', and then completions and texts may also be empty.",
        data=True,
    )
    answer_pattern: str | None = make_field(
        None,
        "Regular expression whose first group is the answer in a completion: reports exact match by greedy "
        "generation.",
    )
    exact_match_samples: int = make_field(
        200, "Check so many answers for exact match: the first of the evaluation split."
    )
    max_new_tokens: int = make_field(256, "Generate no more than so many tokens for an answer.")

    def __post_init__(self) -> None:
        DataArguments.__post_init__(self)
        ModelConfig.__post_init__(self)
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path: the recipe names no model")
        if (self.prompt_template is None) != (self.completion_template is None):
            raise ValueError("prompt_template and completion_template: give both or neither")
        if self.prompt_template is not None and self.messages_column is not None:
            raise ValueError("give either prompt_template and completion_template or messages_column")
        if self.use_chat_template and self.prompt_template is None:
            raise ValueError("use_chat_template: needs prompt_template and completion_template")
        prompt, completion = self.parse_templates()
        if self.prompt_template is not None and not (prompt.columns or completion.columns):
            raise ValueError(
                "prompt_template and completion_template: neither names a column; write it in braces"
            )
        if (self.load_in_4bit or self.load_in_8bit) and not self.use_peft:
            raise ValueError("load_in_4bit and load_in_8bit: quantized weights do not train; add use_peft")
        if self.load_in_4bit and self.dtype == "auto":
            raise ValueError(
                "dtype: load_in_4bit computes in it, and auto names none; pass one, such as bfloat16"
            )
        for name in ("exact_match_samples", "max_new_tokens", "lora_r"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1")
        if self.answer_pattern is not None and self.prompt_template is None:
            raise ValueError("answer_pattern: needs prompt_template and completion_template")
        self.make_exact_match()  # checks the pattern

    def parse_templates(self) -> tuple[texts.Template, texts.Template]:
        """Parses the templates of the prompt and of the completion. One that is not given is empty.

        Raises:
            ValueError: a template cannot be parsed.
        """
        prompt = texts.parse_template("prompt_template", self.prompt_template or "")
        return prompt, texts.parse_template("completion_template", self.completion_template or "")

    def make_exact_match(self) -> ExactMatch | None:
        """Makes the check of generated answers; returns None without `answer_pattern`.

        Raises:
            ValueError: see :class:`ExactMatch`.
        """
        if self.answer_pattern is None:
            return None
        return ExactMatch(self.answer_pattern, self.exact_match_samples, self.max_new_tokens)
