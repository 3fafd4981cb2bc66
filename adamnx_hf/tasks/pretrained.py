"""Pretrained models, loaded only if their own files ask for no code of the Hub."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.plain_values import walk

__all__ = ["check_pretrained", "find_implementations", "label_maps", "load_pretrained"]


def label_maps(classes: Sequence[str]) -> dict[str, Any]:
    """Returns the options of a configuration that name the classes 0, 1, ..."""
    return {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}


def load_pretrained(auto_class: Any, name: str, **options: Any) -> Any:
    """Loads a model in float32, to be fine-tuned. Layers whose shapes differ start anew.

    Args:
        auto_class: Transformers' auto class for the task.
        name: the model's name on the Hub, or a local folder.
        options: further arguments of `from_pretrained`, such as :func:`label_maps`.

    Raises:
        RecipeError, OSError: see :func:`check_pretrained`.
    """
    import torch

    check_pretrained(name)
    return auto_class.from_pretrained(
        name,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
        trust_remote_code=False,  # None would ask at the terminal
        **options,
    )


def check_pretrained(name: str, revision: str | None = None, *, trusted: bool = False) -> None:
    """Checks that loading a model runs no code of the Hub, and loads no other model.

    A config can name an attention that is a kernel of the Hub. Transformers fetches and runs the kernel,
    whatever `trust_remote_code` and `attn_implementation` say. An adapter names the model it belongs to,
    which may be a folder of this machine.

    Args:
        name: the model's name on the Hub, or a local folder.
        revision: the branch, tag or commit on the Hub.
        trusted: whether the user has passed `trust_remote_code`.

    Raises:
        RecipeError: code would run, unless `trusted`; or the repository on the Hub is an adapter's.
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
    for key, implementation in find_implementations(config):
        if _is_of_the_hub(implementation):
            raise RecipeError(
                f"model_name_or_path: the config of {name} has {key}: {implementation!r}, a kernel on the "
                "Hub, whose code would run; take that out of a copy, and pass its folder: "
                "--model_name_or_path"
            )


def _is_of_the_hub(implementation: str) -> bool:
    """Says whether Transformers fetches an attention from the Hub, as it does where none is installed."""
    installed = any(importlib.util.find_spec(package) for package in ("flash_attn", "flash_attn_interface"))
    return "/" in implementation or (implementation.startswith("flash") and not installed)


def find_implementations(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the implementations, such as of attention, that `values` name at any depth, with their keys.

    Transformers takes a name such as `owner/repository` for a kernel on the Hub.
    """
    for path, item in walk(values):
        keys = [key for key in path if isinstance(key, str) and "implementation" in key]
        if keys and isinstance(item, str):
            yield keys[-1], item
