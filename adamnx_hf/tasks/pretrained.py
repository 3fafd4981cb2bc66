"""Pretrained models, loaded after a look at what their own files ask for."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.plain_values import walk

__all__ = ["check_pretrained", "implementations", "label_maps", "load_pretrained"]


def label_maps(classes: Sequence[str]) -> dict[str, Any]:
    """Returns the options of a configuration that name the classes 0, 1, ..."""
    return {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}


def load_pretrained(auto_class: Any, name: str, **options: Any) -> Any:
    """Loads a model in float32 to fine-tune; layers of other shapes start anew.

    Args:
        auto_class: Transformers' class for the task.
        name: on the Hub, or a local folder.
        options: further arguments of `from_pretrained`, such as :func:`label_maps`.

    Raises:
        RecipeError: see :func:`check_pretrained`.
        OSError: see :func:`check_pretrained`.
    """
    import torch

    check_pretrained(name)
    return auto_class.from_pretrained(
        name,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
        trust_remote_code=False,  # None would ask whoever sits at the terminal
        **options,
    )


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
    """Says whether Transformers gets an attention from the Hub, such as one that is not installed."""
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
