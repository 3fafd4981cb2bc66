"""What a pretrained model's own files ask for, looked at before Transformers acts on it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.plain_values import walk

__all__ = ["check_pretrained", "implementations"]


def check_pretrained(name: str, revision: str | None = None, *, trusted: bool = False) -> None:
    """Checks that loading a model runs no code of the Hub, and loads no other model.

    A config can name an attention that is a kernel of the Hub, which Transformers fetches and runs, whatever
    `trust_remote_code` and `attn_implementation` say. An adapter names its base, which may be a folder of
    this machine.

    Args:
        name: on the Hub, or a local folder.
        revision: branch, tag or commit on the Hub.
        trusted: the user has passed `trust_remote_code`.

    Raises:
        RecipeError: it would, unless trusted; or the repository on the Hub is an adapter's.
        OSError: there is no such model, or the Hub cannot be reached.
    """
    from transformers import PretrainedConfig
    from transformers.utils import find_adapter_config_file

    if not os.path.isdir(name) and find_adapter_config_file(name, revision=revision) is not None:
        raise RecipeError(
            f"model_name_or_path: {name} is an adapter; name the model that it belongs to, and train a new "
            "adapter with use_peft"
        )
    if trusted:
        return
    config, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    for key, implementation in implementations(config):
        if _is_of_the_hub(implementation):
            raise RecipeError(
                f"model_name_or_path: the config of {name} has {key}: {implementation!r}, a kernel on the "
                "Hub, whose code would run; take that out of a copy, and pass its folder: "
                "--model_name_or_path"
            )


def _is_of_the_hub(implementation: str) -> bool:
    """Whether Transformers gets it from the Hub: by its name, or as flash attention that is not installed."""
    installed = any(importlib.util.find_spec(package) for package in ("flash_attn", "flash_attn_interface"))
    return "/" in implementation or (implementation.startswith("flash") and not installed)


def implementations(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the attention and other implementations that `values` name at any depth, each with its key.

    Transformers takes one named `owner/repository` for a kernel to load from the Hub.
    """
    for path, item in walk(values):
        keys = [key for key in path if isinstance(key, str) and "implementation" in key]
        if keys and isinstance(item, str):
            yield keys[-1], item
