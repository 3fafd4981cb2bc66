"""Causal language models: supervised fine-tuning and continued pre-training, whole, with LoRA or with QLoRA.

Rows become what TRL's SFTTrainer takes; it does the rest: chat template, loss on completions only, packing.
"""

from adamnx_hf.tasks.base import Metric
from adamnx_hf.tasks.data import train_fast as fast
from adamnx_hf.tasks.language_modeling.arguments import Arguments
from adamnx_hf.tasks.language_modeling.model import meta_model
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

#: Rows are described in one of three ways: by templates, as chats or as texts.
DISPLACES = {
    "messages_column": (*_TEMPLATES, "join_rows"),
    "dataset_text_field": (*_TEMPLATES, "messages_column"),
    "prompt_template": ("messages_column", "join_rows"),
}

#: The task, as the Hub names it.
PIPELINE_TAG = "text-generation"
