"""Rules for the values of single fields of a recipe from the Hub.

A rule takes a value and returns why that value will not do, as the end of a sentence, or None. The functions
with other arguments make rules. :data:`adamnx_hf.recipes.policy.HUB` says which rule holds for which field.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from adamnx_hf.common import hub
from adamnx_hf.common.plain_values import walk

__all__ = [
    "MODEL_SIZES",
    "Rule",
    "count",
    "fields_by_optimizer",
    "file_pattern",
    "files_by_split",
    "flag",
    "label",
    "list_of",
    "mapping",
    "matches",
    "modules",
    "name_on_hub",
    "number",
    "one_of",
    "revision",
    "split_name",
    "text",
    "word",
]

Rule = Callable[[Any], "str | None"]


def flag(value: Any) -> str | None:
    """Takes true and false."""
    return None if isinstance(value, bool) else f"{value!r} is neither true nor false"


def number(low: float = -1e12, high: float = 1e12) -> Rule:
    """Makes a rule that takes finite numbers from `low` to `high`."""

    def rule(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{value!r} is not a number"
        return None if low <= value <= high else f"{value} is not from {low:g} to {high:g}"

    return rule


def matches(pattern: str, what: str, most: int = 200) -> Rule:
    """Makes a rule that takes text of at most `most` characters which matches `pattern`: `what`, in words."""

    def rule(value: Any) -> str | None:
        if not isinstance(value, str) or len(value) > most or not re.fullmatch(pattern, value):
            return f"{str(value)[:60]!r} is not {what}"
        return None

    return rule


def one_of(*values: Any) -> Rule:
    """Makes a rule that takes these values alone."""

    def rule(value: Any) -> str | None:
        return None if value in values else f"{value!r} is not {' or '.join(map(str, values))}"

    return rule


def text(most: int, lines: bool = False) -> Rule:
    """Makes a rule that takes printable text of at most `most` characters, with `lines` in several lines."""

    def rule(value: Any) -> str | None:
        if not isinstance(value, str):
            return f"{str(value)[:60]!r} is not text"
        if len(value) > most:
            return f"has {len(value):,} characters, and more than {most:,} are too many"
        bare = value.replace("\n", "").replace("\t", "") if lines else value
        return None if bare.isprintable() else f"{value[:60]!r} holds control characters"

    return rule


def list_of(rule: Rule, most: int = 1000) -> Rule:
    """Makes a rule that takes lists of at most `most` items, each of which `rule` takes."""

    def each(value: Any) -> str | None:
        if not isinstance(value, list):
            return f"{str(value)[:60]!r} is not a list"
        if len(value) > most:
            return f"has {len(value):,} entries, and more than {most:,} are too many"
        return next(filter(None, map(rule, value)), None)

    return each


def mapping(keys: str) -> Rule:
    """Makes a rule that takes numbers, words and lists of them, by keys that match `keys`."""

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
                if reason := word(item) if isinstance(item, str) else _size(names[-1])(item):
                    return f"{shown}: {reason}"
                # Layers are built one by one, before anything can say that they do not fit into memory.
                if re.search(_LAYERS, names[-1]) and not isinstance(item, str):
                    layers += abs(item)
        return f"{layers:g} layers, and more than 512 are too many" if layers > 512 else None

    return rule


# Keys that say how many layers there are.
_LAYERS = r"depth|n_layer$|layers$|blocks$"


def _size(name: str) -> Rule:
    if re.search(r"drop|stochastic_depth", name):
        return number(0, 1)
    return number(-512, 512) if re.search(rf"{_LAYERS}|experts", name) else number(-1e7, 1e7)


def name_on_hub(value: Any) -> str | None:
    """Takes names on the Hub that are not also the name of something in the current folder.

    Data and models of such a name would be read from this machine instead.
    """
    if not hub.is_repo_id(str(value)):
        return f"{str(value)[:60]!r} is not a name on the Hub"
    return f"{value!r} is something in the current folder" if os.path.lexists(str(value)) else None


def files_by_split(value: Any) -> str | None:
    """Takes patterns of files by split, if the patterns stay within the data set."""
    if not isinstance(value, Mapping):
        return f"{str(value)[:60]!r} is not files by split"
    for split, patterns in value.items():
        if reason := split_name(split):
            return reason
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            if reason := file_pattern(pattern):
                return reason
            if pattern.count("*") > 6:  # each star is tried at every letter of every name
                return f"{pattern[:60]!r} has more than 6 stars"
    return None


def fields_by_optimizer(value: Any) -> str | None:
    """Takes fields by optimizers' names.

    :func:`adamnx_hf.recipes.policy.check` judges each of these fields as if it stood alone.
    """
    if not isinstance(value, Mapping) or not all(isinstance(fields, Mapping) for fields in value.values()):
        return f"{str(value)[:60]!r} is not fields by optimizers' names"
    return next(filter(None, map(label, value)), None)


word = matches(r"\w[\w.+-]*", "a plain word", most=100)
label = text(200)
split_name = matches(r"\w+(\.\w+)*", "the name of a split")
revision = matches(r"(?!.*\.\.)\w[\w./-]*", "a branch, tag or commit")
file_pattern = matches(r"(?!.*\.\.)[\w*\[?{][\w ./*\[\]?{},=@-]*", "a pattern of files")
modules = list_of(matches(r"\w[\w.-]*", "the name of a module"))
count = number(0, 1e7)

#: Keys of a model's config.json that say sizes and switches. None of them names code, files or repositories.
MODEL_SIZES = (
    r"model_type|hidden_act|hidden_activation|activation_function|tie_word_embeddings|use_cache|initializer_range|"
    r"\w+_size|num_(?!labels)\w+|n_\w+|(max|min|original_max)_\w*(position|window|layers)\w*|\w+_theta|\w+_factor|factor|"
    r"rope_\w+|partial_rotary_factor|type|\w+_type|\w+_eps|\w+_epsilon|layer_norm_\w+|\w+_bias|bias|\w+_dropout|"
    r"dropout|\w+_pdrop|\w+_token_id|\w*window\w*|layer_types|\w+_softcapping|query_pre_attn_scalar|head_dim|\w+_dim|"
    r"\w+_rank|\w+_scale|\w+_scaling|\w+_multiplier|\w+_attention|beta_fast|beta_slow|attention_factor"
)
# Keys that may name code, files or repositories.
_NO_CODE = (
    r"implementation|auto_map|remote|code|backbone|pretrained|timm|path|file|url|quantization|"
    r"token$|^_"
)
