"""Causal language models: supervised fine-tuning and continued pre-training, whole, with LoRA or with QLoRA.

This folder turns rows into the columns of TRL's SFTTrainer. SFTTrainer applies chat templates, takes the loss
on completions alone, and packs.
"""

from adamnx_hf.tasks.base import Metric
from adamnx_hf.tasks.data import train_fast as fast
from adamnx_hf.tasks.language_modeling.arguments import Arguments
from adamnx_hf.tasks.language_modeling.model import make_meta_model
from adamnx_hf.tasks.language_modeling.task import make_trainer
from adamnx_hf.tasks.language_modeling.toy import smoke
from adamnx_hf.tasks.sft_trainer import RecipeSFTConfig as TrainingArguments

__all__ = [
    "DISPLACES",
    "METRICS",
    "PIPELINE_TAG",
    "UNIT",
    "Arguments",
    "TrainingArguments",
    "fast",
    "make_meta_model",
    "make_trainer",
    "smoke",
]

#: The metrics that are reported best and last.
METRICS = {
    "perplexity": Metric("min", "perplexity", "Perplexity", float),
    "exact_match": Metric("max", "exact_match", "Exact match"),
}

UNIT = "tokens"

_TEMPLATES = ("prompt_template", "completion_template", "use_chat_template", "answer_pattern")

#: A recipe describes rows in one of three ways: by templates, as chats or as texts.
DISPLACES = {
    "messages_column": (*_TEMPLATES, "join_rows"),
    "dataset_text_field": (*_TEMPLATES, "messages_column"),
    "prompt_template": ("messages_column", "join_rows"),
}

#: The Hub's name of the task.
PIPELINE_TAG = "text-generation"
