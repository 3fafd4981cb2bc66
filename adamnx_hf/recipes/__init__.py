"""Recipes are found by name, read, and resolved to checked fields.

`files` finds and reads recipes, `policy` says what they may decide, `fields` parses them, `load` joins the
three, and `resolution` puts flags over them. The names of `help` and `resolution` are imported when they are
asked for, so that listing the recipes needs neither torch nor Transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adamnx_hf.common.lazy import import_on_access
from adamnx_hf.recipes.files import find_folder, find_recipe, list_recipes, read_recipe

if TYPE_CHECKING:
    from adamnx_hf.recipes.help import format_help, list_fields
    from adamnx_hf.recipes.resolution import Recipe, as_file, resolve

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

__getattr__ = import_on_access(
    __name__,
    {
        **dict.fromkeys(("Recipe", "as_file", "resolve"), "resolution"),
        **dict.fromkeys(("format_help", "list_fields"), "help"),
    },
)
