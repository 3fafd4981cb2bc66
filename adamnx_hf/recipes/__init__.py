"""From a recipe's name to a checked recipe.

`files` finds and reads recipes, `policy` says what they may decide, `fields` parses them, `load` joins the
three, and `resolution` puts flags over them. The public names are imported when they are asked for, so that
listing the recipes needs neither torch nor Transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamnx_hf.recipes.files import find_folder, find_recipe, list_recipes, read_recipe
    from adamnx_hf.recipes.help import format_help, list_fields
    from adamnx_hf.recipes.resolution import as_file, resolve
    from adamnx_hf.tasks.base import Recipe

__all__ = [
    "Recipe",
    "as_file",
    "find_folder",
    "find_recipe",
    "format_help",
    "list_fields",
    "list_recipes",
    "read_recipe",
    "resolve",
]

_MODULES = {
    "Recipe": "adamnx_hf.tasks.base",
    "as_file": "adamnx_hf.recipes.resolution",
    "find_folder": "adamnx_hf.recipes.files",
    "find_recipe": "adamnx_hf.recipes.files",
    "format_help": "adamnx_hf.recipes.help",
    "list_fields": "adamnx_hf.recipes.help",
    "list_recipes": "adamnx_hf.recipes.files",
    "read_recipe": "adamnx_hf.recipes.files",
    "resolve": "adamnx_hf.recipes.resolution",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
