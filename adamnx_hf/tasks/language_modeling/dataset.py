"""Rows for TRL's SFTTrainer: read from a data set, or made up for a smoke run."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks.language_modeling import texts
from adamnx_hf.tasks.language_modeling.arguments import Arguments
from adamnx_hf.tasks.sft_trainer import RecipeSFTConfig

__all__ = ["make_up", "prepare_rows"]


def prepare_rows(
    splits: Sequence[Any], arguments: Arguments, args: RecipeSFTConfig
) -> tuple[list[Any], list[str]]:
    """Reads the splits into TRL's columns: prompt and completion, messages, or text.

    Returns:
        The splits, and notes for the user.

    Raises:
        RecipeError: a split has no rows, or see the functions that read rows in texts.py.
    """
    names = (arguments.trained_split, arguments.judged_split)
    for field, name, data in zip(("train_split", "eval_split"), names, splits, strict=True):
        if not len(data):
            raise RecipeError(f"{field}: the split {name!r} has no rows")
    notes: list[str] = []
    read: Any
    if arguments.messages_column is not None:
        read = functools.partial(
            texts.read_chats, column=arguments.messages_column, assistant_only=args.assistant_only_loss
        )
    elif arguments.prompt_template is not None:
        prompt, completion = arguments.parse_templates()
        whole, notes = texts.find_whole_columns(splits, [*prompt.columns, *completion.columns])
        read = functools.partial(
            texts.fill_in,
            prompt=prompt,
            completion=completion,
            as_turns=arguments.use_chat_template,
            whole=whole,
        )
    else:
        read = functools.partial(
            texts.read_texts, column=args.dataset_text_field, separator=arguments.join_rows
        )
    rows = [
        read(data, split=name, allow_blank=arguments.allow_blank)
        for data, name in zip(splits, names, strict=True)
    ]
    return rows, notes


def make_up(arguments: Arguments, args: RecipeSFTConfig) -> tuple[Any, Any]:
    """Makes up rows in the recipe's columns, for smoke runs."""
    from datasets import Dataset

    prompt, completion = arguments.parse_templates()
    names = [*prompt.columns, *completion.columns]
    names = names or [arguments.messages_column or args.dataset_text_field]

    def value(column: str, i: int) -> Any:
        if column == arguments.messages_column:
            turns = (("user", f"What is {i} and 1?"), ("assistant", f"It is {i + 1}."))
            return [{"role": role, "content": text} for role, text in turns]
        return f"This is the {column} of row {i}: {i} and 1 is {i + 1}.\n#### {i + 1}"

    def split(count: int, start: int) -> Dataset:
        return Dataset.from_dict({name: [value(name, start + i) for i in range(count)] for name in names})

    return split(arguments.max_train_samples or 32, 0), split(arguments.max_eval_samples or 8, 1000)
