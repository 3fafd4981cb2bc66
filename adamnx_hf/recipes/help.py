"""A recipe's fields as `adamnx-hf run RECIPE --help` shows them."""

from __future__ import annotations

import argparse
import copy
import dataclasses

from adamnx_hf.common.errors import printable
from adamnx_hf.common.plain_values import plain_value
from adamnx_hf.recipes.fields import find_default
from adamnx_hf.recipes.load import load_recipe

__all__ = ["format_help", "list_fields"]

# Fields of TrainingArguments that are shown beside those that the recipe sets.
_USUAL = (
    "output_dir", "seed", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "per_device_eval_batch_size", "gradient_accumulation_steps", "optim", "optim_args", "learning_rate",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "bf16", "use_cpu", "eval_strategy", "eval_steps", "save_strategy",
    "save_steps", "save_total_limit", "load_best_model_at_end", "metric_for_best_model", "logging_steps",
    "report_to", "overwrite_output_dir", "resume_from_checkpoint", "dataloader_num_workers",
    "dataloader_drop_last",
    "gradient_checkpointing", "torch_compile", "push_to_hub", "hub_model_id",
)  # fmt: skip


def list_fields(name: str) -> list[str]:
    """Returns the names of a recipe's fields, each of which is a flag.

    Args:
        name: see :func:`adamnx_hf.recipes.files.find_recipe`.

    Raises:
        RecipeError: see :func:`adamnx_hf.recipes.load.load_recipe`.
    """
    return list(load_recipe(name).parser.fields)


def format_help(name: str, every: bool = False) -> str:
    """Describes a recipe's fields as flags, with the recipe's own values as defaults; the task's come first.

    Args:
        name: see :func:`adamnx_hf.recipes.files.find_recipe`.
        every: also the fields of TrainingArguments that the recipe leaves alone.

    Raises:
        RecipeError: see :func:`adamnx_hf.recipes.load.load_recipe`.
    """
    from transformers import TrainingArguments

    loaded = load_recipe(name)
    parser = loaded.parser.parser
    own, of_task, training = ({f.name for f in dataclasses.fields(kind)} for kind in loaded.parser.classes)
    transformers_own = {f.name for f in dataclasses.fields(TrainingArguments)}
    usual = {*(training - transformers_own), *_USUAL, *loaded.written} & training
    sections = {
        f"fields of {loaded.written['task']}": of_task,
        "fields of training": training if every else usual,
        "fields of every recipe": own,
    }
    formatter = parser._get_formatter()
    formatter.add_usage("adamnx-hf run RECIPE [--FIELD VALUE ...]", [], [], "usage: ")
    for title, names in sections.items():
        formatter.start_section(title)
        for action in parser._actions:
            value = loaded.written.get(action.dest, find_default(loaded.parser.classes, action.dest))
            value = printable(value) if isinstance(value, str) else plain_value(value)
            action.default = argparse.SUPPRESS if value in (None, "", []) else value
            if action.dest in names:
                shown = copy.copy(action)
                shown.option_strings = action.option_strings[:1]  # not with hyphens, too
                formatter.add_argument(shown)
        formatter.end_section()
    formatter.add_text("--FIELD none leaves out a field that the recipe sets and that may be left out.")
    if not every:
        formatter.add_text(
            f"{len(training - usual)} more fields of TrainingArguments: adamnx-hf run RECIPE --help-all"
        )
    return formatter.format_help()
