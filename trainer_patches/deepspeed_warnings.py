"""Warns where DeepSpeed's own optimizer takes the place of the user's.

It happens in two places, both without a word: Accelerate puts DeepSpeedCPUAdam in for any optimizer when the
optimizer state is offloaded, and the Trainer makes none of its own when the DeepSpeed config has an
"optimizer" section (accelerate #2169, #3255; transformers #15784). Nothing is changed here, only said.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from enum import Enum
from typing import Any

__all__ = ["install"]

# Those that Accelerate has a counterpart of DeepSpeed's for. bitsandbytes' 8-bit ones have other names.
_COUNTERPARTS = {
    "torch": {"Adam", "AdamW", "Adagrad"},
    "bitsandbytes": {"Adam", "AdamW", "Adagrad", "Lion"},
}

# Optimizers that are, or stand for, DeepSpeed's own: DummyOptim, DeepSpeedOptimizerWrapper, DeepSpeedCPUAdam.
_DEEPSPEEDS = ("accelerate", "deepspeed")

# Transformers' names for AdamW as such, which is what DeepSpeed's is: of these nobody is deprived.
_PLAIN_ADAMW = {
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_apex_fused",
    "adamw_hf",
}


def install() -> None:
    """Arranges for the warnings as soon as Accelerate and Transformers are imported, or now."""
    if "accelerate" not in sys.modules and importlib.util.find_spec("accelerate") is None:
        return
    from wrapt import register_post_import_hook

    register_post_import_hook(_patch_accelerator, "accelerate.accelerator")
    register_post_import_hook(_patch_trainer, "transformers.integrations.deepspeed")


def _patch_accelerator(module: Any) -> None:
    _wrap(module, "map_pytorch_optim_to_deepspeed", _swapped_for_offload)


def _patch_trainer(module: Any) -> None:
    _wrap(module, "deepspeed_optim_sched", _taken_from_the_config)


def _wrap(module: Any, function: str, wrapper: Any) -> None:
    if hasattr(module, function):  # not where Accelerate finds no DeepSpeed
        from wrapt import wrap_function_wrapper

        wrap_function_wrapper(module, function, wrapper)


def _swapped_for_offload(wrapped: Any, _: Any, arguments: Any, keywords: Any) -> Any:
    """Around `map_pytorch_optim_to_deepspeed(optimizer)`."""
    theirs = wrapped(*arguments, **keywords)
    ours = type(arguments[0] if arguments else keywords["optimizer"])
    library = ours.__module__.partition(".")[0]
    if library not in _DEEPSPEEDS and ours.__name__ not in _COUNTERPARTS.get(library, ()):
        warnings.warn(
            f"DeepSpeed: {type(theirs).__name__} takes the place of {ours.__name__}, because the optimizer "
            f'state is offloaded. To keep {ours.__name__}, put "zero_force_ds_cpu_optimizer": false into the '
            "DeepSpeed config (a JSON file: deepspeed_config_file in Accelerate's config, --deepspeed of "
            "the Trainer), or do not offload it.",
            RuntimeWarning,
            stacklevel=2,
        )
    return theirs


def _taken_from_the_config(wrapped: Any, _: Any, arguments: Any, keywords: Any) -> Any:
    """Around `deepspeed_optim_sched(trainer, hf_deepspeed_config, args, ...)`."""
    names = ("trainer", "hf_deepspeed_config", "args")
    given = {**dict(zip(names, arguments, strict=False)), **keywords}
    trainer, hf_config, args = map(given.get, names)
    config = getattr(hf_config, "config", None)
    section = config.get("optimizer") if isinstance(config, dict) else None
    asked = None if section is None else _asked_for(trainer, args)
    if asked is not None:
        kind = section.get("type") if isinstance(section, dict) else None
        name, described = asked
        if kind is not None and str(kind).lower() == name.lower():
            return wrapped(*arguments, **keywords)
        warnings.warn(
            f'DeepSpeed: {kind or "its optimizer"} of the DeepSpeed config\'s "optimizer" section takes the '
            f"place of {described}. Remove that section to train with what you asked for.",
            RuntimeWarning,
            stacklevel=2,
        )
    return wrapped(*arguments, **keywords)


def _asked_for(trainer: Any, args: Any) -> tuple[str, str] | None:
    """The optimizer that the Trainer would use without DeepSpeed's: its name, and how to speak of it.

    None where that is AdamW or DeepSpeed's own, or cannot be found out.
    """
    if given := getattr(trainer, "optimizer_cls_and_kwargs", None):
        name = getattr(given[0], "__name__", str(given[0]))
        return name, f"{name} (optimizer_cls_and_kwargs)"
    if (optimizer := getattr(trainer, "optimizer", None)) is not None:
        if type(optimizer).__module__.partition(".")[0] in _DEEPSPEEDS:
            return None
        return type(optimizer).__name__, type(optimizer).__name__
    if (optim := getattr(args, "optim", None)) is None:
        return None
    name = str(optim.value if isinstance(optim, Enum) else optim)
    return None if name in _PLAIN_ADAMW else (name, f"optim={name!r}")
