"""One training run: training a recipe, what the run leaves behind, and what it takes.

`training` is the story of a run. Its public names are imported when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adamnx_hf.common.lazy import import_on_access

if TYPE_CHECKING:
    from adamnx_hf.runs.memory import Memory, as_it_is, expected, of_recipe
    from adamnx_hf.runs.training import train

__all__ = ["Memory", "as_it_is", "expected", "of_recipe", "train"]

__getattr__ = import_on_access(
    __name__,
    {"train": "training", **dict.fromkeys(("Memory", "as_it_is", "expected", "of_recipe"), "memory")},
)
