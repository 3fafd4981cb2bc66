"""One training run: training a recipe, what the run leaves behind, and what it takes.

`training` is the story of a run. Its public names are imported when they are asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamnx_hf.runs.memory import Memory, as_it_is, expected, of_recipe
    from adamnx_hf.runs.training import train

__all__ = ["Memory", "as_it_is", "expected", "of_recipe", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "adamnx_hf.runs.training" if name == "train" else "adamnx_hf.runs.memory"
        return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
