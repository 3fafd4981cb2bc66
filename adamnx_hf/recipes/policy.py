"""The fields that a recipe may decide, by where it comes from.

A recipe of the package, or a file of the user's own, decides everything but :data:`FLAGS_ONLY` and whose code
runs. A recipe from the Hub is somebody else's. It decides the fields that :data:`HUB` names, within the rule
that stands there, and nothing else: it says what is trained and how. Its user says by flags where files are
written, what is sent, how the machine is used and whose code runs.

Rules judge values as they will be used: parsed, with JSON text read, however the file writes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.plain_values import plain_value, walk
from adamnx_hf.recipes import rules
from adamnx_hf.tasks.base import find_field
from adamnx_hf.tasks.pretrained import find_implementations

__all__ = [
    "FLAGS_ONLY",
    "HUB",
    "NAME_OR_PATH",
    "NEUTRAL",
    "Origin",
    "check",
    "is_flags_only",
    "is_neutral",
    "why_not",
]


class Origin(Enum):
    """The origin of a recipe."""

    PACKAGE = "the package"
    FILE = "a file"
    HUB = "the Hub"


#: Fields that no recipe decides, wherever it comes from. They say what is overwritten, what is read as a
#: checkpoint and whose code runs, or hold secrets.
FLAGS_ONLY = re.compile(
    r"overwrite_output_dir|resume_from_checkpoint|trust_remote_code|(?!eos_|pad_)\w+_token"
)

#: Fields that hold a name on the Hub or a local path.
NAME_OR_PATH = re.compile(
    r"dataset_name|deepspeed|fsdp_config|accelerator_config|chat_template_path|(\w+_)?name_or_path"
)

#: Fields of TrainingArguments and of every recipe that leave the outcome alone, or that a results table has
#: columns for. A task's own fields say so themselves, by `make_field(..., neutral=True)`.
NEUTRAL = re.compile(
    r"output_dir|overwrite_output_dir|run_name|seed|optim|optim_args|disable_tqdm|report_to|fast|"
    r"per_device_eval_batch_size|resume_from_checkpoint|title|hardware|hours|paper_tables|"
    r"(logging|save|push|hub|log|trackio)_.*|project|dataloader_(?!drop_last).*"
)


def _fields(rule: rules.Rule, names: str) -> dict[str, rules.Rule]:
    return dict.fromkeys(names.split(), rule)


#: Fields that a recipe from the Hub may decide, each with the rule for its value.
HUB: dict[str, rules.Rule] = {
    # The recipe itself.
    **_fields(rules.word, "task"),
    **_fields(rules.label, "title hardware hours"),
    **_fields(rules.list_of(rules.count), "paper_tables"),
    **_fields(rules.flag, "fast smoke"),
    # The data: their name on the Hub, and which part of them.
    **_fields(rules.name_on_hub, "dataset_name"),
    **_fields(rules.matches(r"\w[\w .+-]*", "the name of a configuration"), "dataset_config_name"),
    **_fields(rules.revision, "dataset_revision"),
    **_fields(rules.files_by_split, "data_files"),
    **_fields(rules.label, "train_split eval_split"),
    **_fields(rules.count, "max_train_samples max_eval_samples hold_out hold_out_seed sweep_hold_out"),
    **_fields(rules.flag, "eval_on_held_out eval_on_sweep_rows"),
    **_fields(
        rules.label,
        "image_column label_column mask_column objects_column box_field category_field difficult_field "
        "dataset_text_field messages_column length_column_name",
    ),
    **_fields(rules.list_of(rules.label, 10_000), "class_names"),
    **_fields(rules.number(-1e6, 1e6), "ignore_index"),
    **_fields(rules.word, "box_format box_unit"),
    **_fields(rules.list_of(rules.number(-(2**31), 2**31 - 1), 10_000), "mask_values"),
    **_fields(rules.flag, "train_on_difficult"),
    # How images become a model's input.
    **_fields(rules.number(1, 8192), "image_size crop_size"),
    **_fields(rules.list_of(rules.number(), 10), "image_mean image_std scale_range"),
    **_fields(rules.number(), "jitter_probability flip_probability class_balance"),
    **_fields(rules.flag, "keep_decoded augment_on_device channels_last"),
    # How text becomes a model's input.
    **_fields(rules.text(10_000, lines=True), "prompt_template completion_template join_rows"),
    **_fields(rules.one_of("nowhere", "prompt", "anywhere"), "allow_blank"),
    **_fields(rules.text(1000), "answer_pattern"),
    **_fields(rules.text(100), "eos_token pad_token"),
    **_fields(
        rules.flag,
        "use_chat_template completion_only_loss assistant_only_loss packing eval_packing padding_free "
        "shuffle_dataset",
    ),
    **_fields(rules.word, "packing_strategy truncation_mode loss_type"),
    **_fields(rules.number(1, 2**22), "max_length pad_to_multiple_of"),
    **_fields(rules.number(1, 2**16), "max_new_tokens"),
    **_fields(rules.count, "exact_match_samples"),
    # The model: of this package or of the Hub, never with code of its own.
    **_fields(rules.word, "architecture"),
    **_fields(rules.mapping(r"\w+"), "architecture_options"),
    **_fields(rules.name_on_hub, "model_name_or_path chat_template_path"),
    **_fields(rules.revision, "model_revision"),
    **_fields(rules.mapping(rules.MODEL_SIZES), "model_config"),
    **_fields(rules.one_of("auto", "bfloat16", "float16", "float32"), "dtype"),
    # Other implementations of attention may be kernels, which are code.
    **_fields(rules.one_of("eager", "sdpa", "flex_attention"), "attn_implementation"),
    **_fields(
        rules.flag,
        "use_peft use_rslora use_dora merge_adapter load_in_4bit load_in_8bit use_bnb_nested_quant",
    ),
    **_fields(rules.word, "lora_task_type bnb_4bit_quant_type bnb_4bit_quant_storage"),
    **_fields(rules.number(1, 4096), "lora_r lora_alpha"),
    **_fields(rules.number(), "lora_dropout loraplus_lr_ratio router_aux_loss_coef"),
    **_fields(rules.modules, "lora_target_modules lora_modules_to_save lora_target_parameters"),
    # The optimizer and its schedule.
    **_fields(rules.word, "optim decay_rule lr_scheduler_type"),
    **_fields(rules.text(1000), "optim_args"),
    **_fields(rules.fields_by_optimizer, "optimizers"),
    **_fields(
        rules.number(),
        "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm "
        "warmup_steps warmup_ratio label_smoothing_factor num_train_epochs "
        "max_steps seed data_seed",
    ),
    **_fields(rules.number(0, 1e6), "neftune_noise_alpha"),
    **_fields(rules.mapping(r"\w+"), "lr_scheduler_kwargs"),
    # The run.
    **_fields(
        rules.number(1, 2**16),
        "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
        "eval_accumulation_steps",
    ),
    **_fields(rules.number(0, 32), "dataloader_num_workers dataset_num_proc dataloader_prefetch_factor"),
    **_fields(
        rules.flag,
        "bf16 fp16 tf32 bf16_full_eval fp16_full_eval use_cpu full_determinism "
        "gradient_checkpointing activation_checkpointing torch_compile "
        "dataloader_drop_last dataloader_pin_memory "
        "dataloader_persistent_workers group_by_length average_tokens_across_devices "
        "logging_first_step logging_nan_inf_filter eval_on_start save_only_model "
        "load_best_model_at_end greater_is_better",
    ),
    **_fields(
        rules.one_of({"use_reentrant": True}, {"use_reentrant": False}),
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs",
    ),
    **_fields(rules.one_of("inductor", "eager", "aot_eager"), "torch_compile_backend"),
    **_fields(
        rules.one_of("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        "torch_compile_mode",
    ),
    **_fields(rules.word, "train_sampling_strategy"),
    **_fields(rules.word, "eval_strategy save_strategy logging_strategy metric_for_best_model"),
    **_fields(rules.count, "eval_steps eval_delay logging_steps save_steps save_total_limit"),
    **_fields(rules.one_of("none", ["none"]), "report_to"),  # nothing is sent
}


def is_flags_only(key: str) -> bool:
    """Returns whether no recipe decides this field."""
    return FLAGS_ONLY.fullmatch(key) is not None


def is_neutral(key: str, task: Any) -> bool:
    """Returns whether a field leaves a run's outcome alone, or has a column of its own in results tables.

    Args:
        key: the name of the field.
        task: the module of the recipe's task.
    """
    field = find_field([task.Arguments], key)
    return NEUTRAL.fullmatch(key) is not None or (field is not None and bool(field.metadata.get("neutral")))


def why_not(origin: Origin, key: str, value: Any) -> str | None:
    """Says why a recipe of this origin may not decide `key` to be `value`; None if it may.

    Args:
        origin: the recipe's.
        key: the name of a field.
        value: its value, parsed: JSON text is a dictionary by now.

    Returns:
        The end of a sentence that begins with the field's name.
    """
    if is_flags_only(key):
        return "cannot stand in a recipe"
    if value is None:
        return None  # as if it were not there
    if key != "optimizers":
        for path, _ in walk(value):
            if path and is_flags_only(str(path[-1])):
                return f"cannot stand in a recipe ({', '.join(map(str, path))} is a flag's to say)"
        for _, name in find_implementations({key: value}):
            if "/" in name:
                return f"cannot stand in a recipe ({name!r} would run code from the Hub)"
    if origin is not Origin.HUB:
        return None
    if key not in HUB:
        return "cannot stand in a recipe from the Hub"
    reason = HUB[key](plain_value(value))
    return f"cannot stand in a recipe from the Hub ({reason})" if reason else None


def check(origin: Origin, values: Mapping[str, Any], source: str) -> None:
    """Checks that a recipe of this origin may decide all that it does.

    Args:
        origin: the recipe's.
        values: its fields, parsed.
        source: the beginning of messages.

    Raises:
        RecipeError: the recipe may not decide a field, which the message names.
    """
    for key, value in values.items():
        if reason := why_not(origin, key, value):
            raise RecipeError(f"{source}{key} {reason}; give it as a flag: --{key}")
        if key == "optimizers" and value is not None:
            for name, fields in value.items():
                check(origin, fields, f"{source}optimizers, {name}: ")
