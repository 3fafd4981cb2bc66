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

# Those that Accelerate has a counterpart of DeepSpeed's for.
_COUNTERPARTS = {"Adam", "AdamW", "Adagrad"}


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
    counterpart = library in ("bitsandbytes", "deepspeed") or (
        library == "torch" and ours.__name__ in _COUNTERPARTS
    )
    if not counterpart:
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
    trainer, hf_config, args = (
        {**dict(zip(names, arguments, strict=False)), **keywords}[name] for name in names
    )
    section = hf_config.config.get("optimizer")
    asked = _asked_for(trainer, args)
    if section is not None and not asked.startswith("optim='adamw"):
        kind = section.get("type", "its optimizer") if isinstance(section, dict) else "its optimizer"
        warnings.warn(
            f'DeepSpeed: {kind} of the DeepSpeed config\'s "optimizer" section takes the place of {asked}. '
            "Remove that section to train with what you asked for.",
            RuntimeWarning,
            stacklevel=2,
        )
    return wrapped(*arguments, **keywords)


def _asked_for(trainer: Any, args: Any) -> str:
    """The optimizer that the Trainer would use without DeepSpeed's."""
    if given := getattr(trainer, "optimizer_cls_and_kwargs", None):
        return f"{given[0].__name__} (optimizer_cls_and_kwargs)"
    if getattr(trainer, "optimizer", None) is not None:
        return type(trainer.optimizer).__name__
    return f"optim={str(args.optim.value if isinstance(args.optim, Enum) else args.optim)!r}"
