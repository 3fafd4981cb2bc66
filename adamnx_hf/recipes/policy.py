"""What a recipe may decide, by where it comes from.

A recipe of the package, or a file of the user's own, decides everything but :data:`FLAGS_ONLY` and whose code
runs. A recipe from the Hub is somebody else's. It decides what :data:`HUB` names, within the rule that stands
there, and nothing else: it says what is trained and how. Whoever runs it says by flags where files are
written, what is sent, how the machine is used and whose code runs.

Rules judge values as they will be used: parsed, with JSON text looked into, whatever they were written as.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.plain_values import walk
from adamnx_hf.tasks.pretrained import implementations

__all__ = [
    "FLAGS_ONLY",
    "HUB",
    "NAME_OR_PATH",
    "Origin",
    "check",
    "is_flags_only",
    "why_not",
]


class Origin(Enum):
    """Where a recipe comes from."""

    PACKAGE = "the package"
    FILE = "a file"
    HUB = "the Hub"


#: What no recipe decides, wherever it comes from: what is overwritten, what is read as a checkpoint, whose
#: code runs, and secrets.
FLAGS_ONLY = re.compile(
    r"overwrite_output_dir|resume_from_checkpoint|trust_remote_code|(?!eos_|pad_)\w+_token"
)

#: Fields that hold a name on the Hub or a local path.
NAME_OR_PATH = re.compile(
    r"dataset_name|deepspeed|fsdp_config|accelerator_config|chat_template_path|(\w+_)?name_or_path"
)

# A rule takes a value and returns why it will not do, or None.
Rule = Callable[[Any], "str | None"]


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"{value!r} is neither true nor false"


def _number(low: float = -1e12, high: float = 1e12) -> Rule:
    def rule(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{value!r} is not a number"
        return None if low <= value <= high else f"{value} is not from {low:g} to {high:g}"

    return rule


def _matches(pattern: str, what: str, most: int = 200) -> Rule:
    def rule(value: Any) -> str | None:
        if not isinstance(value, str) or len(value) > most or not re.fullmatch(pattern, value):
            return f"{str(value)[:60]!r} is not {what}"
        return None

    return rule


def _one_of(*values: Any) -> Rule:
    def rule(value: Any) -> str | None:
        return None if value in values else f"{value!r} is not {' or '.join(map(str, values))}"

    return rule


def _text(most: int, lines: bool = False) -> Rule:
    def rule(value: Any) -> str | None:
        if not isinstance(value, str):
            return f"{str(value)[:60]!r} is not text"
        if len(value) > most:
            return f"has {len(value):,} characters, and more than {most:,} are too many"
        bare = value.replace("\n", "").replace("\t", "") if lines else value
        return None if bare.isprintable() else f"{value[:60]!r} holds control characters"

    return rule


def _list_of(rule: Rule, most: int = 1000) -> Rule:
    def each(value: Any) -> str | None:
        if not isinstance(value, list):
            return f"{str(value)[:60]!r} is not a list"
        if len(value) > most:
            return f"has {len(value):,} entries, and more than {most:,} are too many"
        return next(filter(None, map(rule, value)), None)

    return each


def _mapping(keys: str) -> Rule:
    """Lets sizes and switches through: numbers, words and lists of them, by keys that match `keys`."""

    def rule(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return f"{str(value)[:60]!r} is not fields and values"
        layers = 0.0
        for path, item in walk(value):
            names = [name for name in path if isinstance(name, str)]
            shown = ", ".join(names)
            if isinstance(item, Mapping):
                for key in item:
                    named = isinstance(key, str) and re.fullmatch(keys, key)
                    if not named or re.search(_NO_CODE, key):
                        return f"{key!r}: such a key may not stand there"
            elif isinstance(item, list):
                if len(item) > 100:
                    return f"{shown} has {len(item):,} entries, and more than 100 are too many"
            elif item is not None and not isinstance(item, bool):
                if reason := _word(item) if isinstance(item, str) else _size(names[-1])(item):
                    return f"{shown}: {reason}"
                # They are built one by one, before anything can say that they do not fit into memory.
                if re.search(_LAYERS, names[-1]) and not isinstance(item, str):
                    layers += abs(item)
        return f"{layers:g} layers, and more than 512 are too many" if layers > 512 else None

    return rule


_LAYERS = r"depth|n_layer$|layers$|blocks$"


def _size(name: str) -> Rule:
    if re.search(r"drop|stochastic_depth", name):
        return _number(0, 1)
    return _number(-512, 512) if re.search(rf"{_LAYERS}|experts", name) else _number(-1e7, 1e7)


def _on_the_hub(value: Any) -> str | None:
    """A name on the Hub, which is nothing here: data and models would be read from this machine instead."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(str(value))
    except HFValidationError:
        return f"{str(value)[:60]!r} is not a name on the Hub"
    return f"{value!r} is something in the current folder" if os.path.lexists(str(value)) else None


def _files_of_the_data_set(value: Any) -> str | None:
    """Patterns of files by split, which stay within the data set."""
    if not isinstance(value, Mapping):
        return f"{str(value)[:60]!r} is not files by split"
    for split, patterns in value.items():
        if reason := _split(split):
            return reason
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            if reason := _pattern(pattern):
                return reason
            if pattern.count("*") > 6:  # each is tried at every letter of every name
                return f"{pattern[:60]!r} has more than 6 stars"
    return None


def _by_optimizer(value: Any) -> str | None:
    """Fields by optimizers' names; :func:`check` judges each field as if it stood alone."""
    if not isinstance(value, Mapping) or not all(isinstance(fields, Mapping) for fields in value.values()):
        return f"{str(value)[:60]!r} is not fields by optimizers' names"
    return next(filter(None, map(_label, value)), None)


_word = _matches(r"\w[\w.+-]*", "a plain word", most=100)
_label = _text(200)
_split = _matches(r"\w+(\.\w+)*", "the name of a split")
_revision = _matches(r"(?!.*\.\.)\w[\w./-]*", "a branch, tag or commit")
_pattern = _matches(r"(?!.*\.\.)[\w*\[?{][\w ./*\[\]?{},=@-]*", "a pattern of files")
_modules = _list_of(_matches(r"\w[\w.-]*", "the name of a module"))
_number_of = _number(0, 1e7)

# Sizes and switches of a model's config.json. None of them names code, files or repositories.
_CONFIG = (
    r"model_type|hidden_act|hidden_activation|activation_function|tie_word_embeddings|use_cache|initializer_range|"
    r"\w+_size|num_(?!labels)\w+|n_\w+|(max|min|original_max)_\w*(position|window|layers)\w*|\w+_theta|\w+_factor|factor|"
    r"rope_\w+|partial_rotary_factor|type|\w+_type|\w+_eps|\w+_epsilon|layer_norm_\w+|\w+_bias|bias|\w+_dropout|"
    r"dropout|\w+_pdrop|\w+_token_id|\w*window\w*|layer_types|\w+_softcapping|query_pre_attn_scalar|head_dim|\w+_dim|"
    r"\w+_rank|\w+_scale|\w+_scaling|\w+_multiplier|\w+_attention|beta_fast|beta_slow|attention_factor"
)
_NO_CODE = (
    r"implementation|auto_map|remote|code|backbone|pretrained|timm|path|file|url|quantization|"
    r"token$|^_"
)


def _fields(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


#: What a recipe from the Hub may decide, and the rule for its value.
HUB: dict[str, Rule] = {
    # What it is.
    **_fields(_word, "task"),
    **_fields(_label, "title hardware hours"),
    **_fields(_list_of(_number_of), "paper_tables"),
    **_fields(_flag, "fast smoke"),
    # The data: on the Hub, and what of them.
    **_fields(_on_the_hub, "dataset_name"),
    **_fields(_matches(r"\w[\w .+-]*", "the name of a configuration"), "dataset_config_name"),
    **_fields(_revision, "dataset_revision"),
    **_fields(_files_of_the_data_set, "data_files"),
    **_fields(_label, "train_split eval_split"),
    **_fields(_number_of, "max_train_samples max_eval_samples hold_out hold_out_seed sweep_hold_out"),
    **_fields(_flag, "eval_on_held_out eval_on_sweep_rows"),
    **_fields(
        _label,
        "image_column label_column mask_column objects_column box_field category_field difficult_field "
        "dataset_text_field messages_column length_column_name",
    ),
    **_fields(_list_of(_label, 10_000), "class_names"),
    **_fields(_number(-1e6, 1e6), "ignore_index"),
    **_fields(_word, "box_format box_unit"),
    **_fields(_list_of(_number(-(2**31), 2**31 - 1), 10_000), "mask_values"),
    **_fields(_flag, "train_on_difficult"),
    # How images become a model's input.
    **_fields(_number(1, 8192), "image_size crop_size"),
    **_fields(_list_of(_number(), 10), "image_mean image_std scale_range"),
    **_fields(_number(), "jitter_probability flip_probability class_balance"),
    **_fields(_flag, "keep_decoded augment_on_device channels_last"),
    # How text does.
    **_fields(_text(10_000, lines=True), "prompt_template completion_template join_rows"),
    **_fields(_one_of("nowhere", "prompt", "anywhere"), "allow_blank"),
    **_fields(_text(1000), "answer_pattern"),
    **_fields(_text(100), "eos_token pad_token"),
    **_fields(
        _flag,
        "use_chat_template completion_only_loss assistant_only_loss packing eval_packing padding_free "
        "shuffle_dataset",
    ),
    **_fields(_word, "packing_strategy truncation_mode loss_type"),
    **_fields(_number(1, 2**22), "max_length pad_to_multiple_of"),
    **_fields(_number(1, 2**16), "max_new_tokens"),
    **_fields(_number_of, "exact_match_samples"),
    # The model: of this package or of the Hub, never with code of its own.
    **_fields(_word, "architecture"),
    **_fields(_mapping(r"\w+"), "architecture_options"),
    **_fields(_on_the_hub, "model_name_or_path chat_template_path"),
    **_fields(_revision, "model_revision"),
    **_fields(_mapping(_CONFIG), "model_config"),
    **_fields(_one_of("auto", "bfloat16", "float16", "float32"), "dtype"),
    **_fields(_one_of("eager", "sdpa", "flex_attention"), "attn_implementation"),  # the others may be kernels
    **_fields(
        _flag, "use_peft use_rslora use_dora merge_adapter load_in_4bit load_in_8bit use_bnb_nested_quant"
    ),
    **_fields(_word, "lora_task_type bnb_4bit_quant_type bnb_4bit_quant_storage"),
    **_fields(_number(1, 4096), "lora_r lora_alpha"),
    **_fields(_number(), "lora_dropout loraplus_lr_ratio router_aux_loss_coef"),
    **_fields(_modules, "lora_target_modules lora_modules_to_save lora_target_parameters"),
    # The optimizer and its schedule.
    **_fields(_word, "optim decay_rule lr_scheduler_type"),
    **_fields(_text(1000), "optim_args"),
    **_fields(_by_optimizer, "optimizers"),
    **_fields(
        _number(),
        "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm "
        "warmup_steps warmup_ratio label_smoothing_factor num_train_epochs "
        "max_steps seed data_seed",
    ),
    **_fields(_number(0, 1e6), "neftune_noise_alpha"),
    **_fields(_mapping(r"\w+"), "lr_scheduler_kwargs"),
    # The run.
    **_fields(
        _number(1, 2**16),
        "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
        "eval_accumulation_steps",
    ),
    **_fields(_number(0, 32), "dataloader_num_workers dataset_num_proc dataloader_prefetch_factor"),
    **_fields(
        _flag,
        "bf16 fp16 tf32 bf16_full_eval fp16_full_eval use_cpu full_determinism "
        "gradient_checkpointing activation_checkpointing torch_compile "
        "dataloader_drop_last dataloader_pin_memory "
        "dataloader_persistent_workers group_by_length average_tokens_across_devices "
        "logging_first_step logging_nan_inf_filter eval_on_start save_only_model "
        "load_best_model_at_end greater_is_better",
    ),
    **_fields(
        _one_of({"use_reentrant": True}, {"use_reentrant": False}),
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs",
    ),
    **_fields(_one_of("inductor", "eager", "aot_eager"), "torch_compile_backend"),
    **_fields(
        _one_of("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        "torch_compile_mode",
    ),
    **_fields(_word, "train_sampling_strategy"),
    **_fields(_word, "eval_strategy save_strategy logging_strategy metric_for_best_model"),
    **_fields(_number_of, "eval_steps eval_delay logging_steps save_steps save_total_limit"),
    **_fields(_one_of("none", ["none"]), "report_to"),  # nothing is sent
}


def is_flags_only(key: str) -> bool:
    """Returns whether no recipe decides this field."""
    return FLAGS_ONLY.fullmatch(key) is not None


def why_not(origin: Origin, key: str, value: Any) -> str | None:
    """Says why a recipe of this origin may not decide `key` to be `value`; None if it may.

    Args:
        origin: of the recipe.
        key: a field.
        value: as it was parsed: JSON text is a dictionary by now.

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
        for _, name in implementations({key: value}):
            if "/" in name:
                return f"cannot stand in a recipe ({name!r} would run code from the Hub)"
    if origin is not Origin.HUB:
        return None
    if key not in HUB:
        return "cannot stand in a recipe from the Hub"
    reason = HUB[key](getattr(value, "value", value))
    return f"cannot stand in a recipe from the Hub ({reason})" if reason else None


def check(origin: Origin, values: Mapping[str, Any], source: str) -> None:
    """Checks that a recipe of this origin may decide all that it does.

    Args:
        origin: of the recipe.
        values: its fields, parsed.
        source: what messages begin with.

    Raises:
        RecipeError: it may not decide a field, which the message names.
    """
    for key, value in values.items():
        if reason := why_not(origin, key, value):
            raise RecipeError(f"{source}{key} {reason}; give it as a flag: --{key}")
        if key == "optimizers" and value is not None:
            for name, fields in value.items():
                check(origin, fields, f"{source}optimizers, {name}: ")
