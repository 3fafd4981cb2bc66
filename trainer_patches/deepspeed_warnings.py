"""Warns where DeepSpeed's own optimizer takes the place of the user's.

Two libraries swap it without a word. Accelerate replaces any optimizer by DeepSpeedCPUAdam when the optimizer
state is offloaded. The Trainer makes no optimizer when the DeepSpeed config has an "optimizer" section
(accelerate #2169, #3255; transformers #15784). This module changes neither; it only warns.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings
from typing import Any

from trainer_patches.arguments import read_optim

__all__ = ["install"]

# Optimizers, by library, that DeepSpeed has too. bitsandbytes' 8-bit optimizers have other names.
_COUNTERPARTS = {
    "torch": {"Adam", "AdamW", "Adagrad"},
    "bitsandbytes": {"Adam", "AdamW", "Adagrad", "Lion"},
}

# Optimizers that are, or stand for, DeepSpeed's own: DummyOptim, DeepSpeedOptimizerWrapper, DeepSpeedCPUAdam.
_DEEPSPEEDS = ("accelerate", "deepspeed")

# Transformers' names for plain AdamW. Users who ask for one of these get AdamW from DeepSpeed, too.
_PLAIN_ADAMW = {
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_apex_fused",
    "adamw_hf",
}


def install() -> None:
    """Arranges for the warnings when Accelerate and Transformers are imported, or now if they have been."""
    if "accelerate" not in sys.modules and importlib.util.find_spec("accelerate") is None:
        return
    from wrapt import register_post_import_hook  # here, as the optimizer alone does without

    for module, function, wrapper in (
        ("accelerate.accelerator", "map_pytorch_optim_to_deepspeed", _warn_of_offload),
        ("transformers.integrations.deepspeed", "deepspeed_optim_sched", _warn_of_config),
    ):
        register_post_import_hook(functools.partial(_wrap, function=function, wrapper=wrapper), module)


def _wrap(module: Any, function: str, wrapper: Any) -> None:
    from wrapt import wrap_function_wrapper

    if hasattr(module, function):  # not where Accelerate finds no DeepSpeed
        wrap_function_wrapper(module, function, wrapper)


def _warn_of_offload(wrapped: Any, _: Any, arguments: Any, keywords: Any) -> Any:
    """Wraps `map_pytorch_optim_to_deepspeed(optimizer)`: warns if the result is another optimizer."""
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


def _warn_of_config(wrapped: Any, _: Any, arguments: Any, keywords: Any) -> Any:
    """Wraps `deepspeed_optim_sched(trainer, hf_deepspeed_config, args, ...)`: warns of its optimizer."""
    names = ("trainer", "hf_deepspeed_config", "args")
    given = {**dict(zip(names, arguments, strict=False)), **keywords}
    trainer, hf_config, args = map(given.get, names)
    config = getattr(hf_config, "config", None)
    section = config.get("optimizer") if isinstance(config, dict) else None
    asked = None if section is None else _describe_choice(trainer, args)
    if asked is not None:
        kind = section.get("type") if isinstance(section, dict) else None
        name, described = asked
        if kind is None or str(kind).lower() != name.lower():
            warnings.warn(
                f'DeepSpeed: {kind or "its optimizer"} of the DeepSpeed config\'s "optimizer" section takes '
                f"the place of {described}. Remove that section to train with what you asked for.",
                RuntimeWarning,
                stacklevel=2,
            )
    return wrapped(*arguments, **keywords)


def _describe_choice(trainer: Any, args: Any) -> tuple[str, str] | None:
    """Returns the name of the optimizer that the Trainer would use without DeepSpeed's, and words for it.

    Returns None if that optimizer is AdamW or DeepSpeed's own, or is not known.
    """
    if given := getattr(trainer, "optimizer_cls_and_kwargs", None):
        name = getattr(given[0], "__name__", str(given[0]))
        return name, f"{name} (optimizer_cls_and_kwargs)"
    if (optimizer := getattr(trainer, "optimizer", None)) is not None:
        if type(optimizer).__module__.partition(".")[0] in _DEEPSPEEDS:
            return None
        return type(optimizer).__name__, type(optimizer).__name__
    name = read_optim(args)
    return None if name is None or name in _PLAIN_ADAMW else (name, f"optim={name!r}")
