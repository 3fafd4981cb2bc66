"""AdamNX as a first-class optimizer of the Hugging Face stack.

Importing it makes `TrainingArguments(optim="adamnx")` valid.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adamnx_hf import catalog, models
from trainer_patches import register_optimizer

if TYPE_CHECKING:
    from adamnx_hf.optim import (
        AdamNX,
        LayerwiseAdamNX,
        adamnx,
        beta2_for_horizon,
        from_adamw,
        horizon,
        param_groups,
    )

__version__ = "0.1.0"

__all__ = [
    "AdamNX",
    "LayerwiseAdamNX",
    "adamnx",
    "beta2_for_horizon",
    "from_adamw",
    "horizon",
    "param_groups",
    "register_optimizer",
]

catalog.register()
models.register()


def __getattr__(name: str) -> Any:
    # Names that need torch are imported when they are asked for. `python -m adamnx_hf.launch` only makes way
    # for another process, which would import torch a second time.
    if name in __all__ or name == "optim":
        optim = importlib.import_module("adamnx_hf.optim")
        return optim if name == "optim" else getattr(optim, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
