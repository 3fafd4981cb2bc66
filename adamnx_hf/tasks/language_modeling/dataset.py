"""Rows as TRL's SFTTrainer takes them: read from a data set, or made up for a smoke run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks.language_modeling import texts
from adamnx_hf.tasks.language_modeling.arguments import Arguments
from adamnx_hf.tasks.sft_trainer import (
    RecipeSFTConfig,
)

__all__ = ["make_up", "prepare_rows"]


def prepare_rows(
    splits: Sequence[Any], arguments: Arguments, args: RecipeSFTConfig
) -> tuple[list[Any], list[str]]:
    """Returns the splits with the columns TRL knows (prompt and completion, messages, or text), and notes."""
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


def make_up(arguments: Arguments, args: RecipeSFTConfig) -> tuple[Any, Any]:
    """Makes up rows in the recipe's columns, for smoke runs."""
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
