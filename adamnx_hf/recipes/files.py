"""Recipe files: where they are, by which names they are found, and how they are read.

Three folders have similar names. `recipes/` at the top of a checkout holds the recipes, which are data. The
installed package has the same files in `adamnx_hf/recipe_files`. `adamnx_hf/recipes` is the code that reads
them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from adamnx_hf.common import hub
from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.common.plain_values import LONGEST, read_yaml
from adamnx_hf.tasks import TASKS

__all__ = ["find_folder", "find_recipe", "list_recipes", "read_recipe"]


def find_folder() -> Path:
    """Returns the folder of the package's recipes: inside the package or, in a checkout, beside it."""
    inside = Path(__file__).parents[1] / "recipe_files"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def list_recipes() -> dict[str, Path]:
    """Returns the files of the package's recipes, `<task>/<name>.yaml`, by name."""
    return {path.stem: path for path in sorted(find_folder().glob("*/*.yaml")) if path.parent.name in TASKS}


def find_recipe(name: str) -> Path:
    """Finds the file of a recipe; one on the Hub is downloaded.

    Args:
        name: of one of the package's recipes, a path, or `hf://me/name[@revision]`.

    Raises:
        RecipeError: there is no such recipe.
    """
    if name.startswith(hub.SCHEME):
        return hub.fetch_recipe(name)
    known = list_recipes()
    if name in known:
        return known[name]
    path = os.path.expanduser(name)
    if os.path.isfile(path):
        return Path(path)
    if name.endswith((".yaml", ".yml")) or "/" in name or os.sep in name:
        raise RecipeError(f"{name[:200]}: no such file")
    raise RecipeError(
        f"{name[:200]}: no recipe of that name{nearest(name, known)} (adamnx-hf recipes lists them)"
    )


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads the keys and values of a recipe file, as they are written.

    Raises:
        RecipeError: the file is too large, is no YAML, holds more than plain values or a key twice, or is
            not a list of keys and values.
    """
    try:
        if (size := path.stat().st_size) > LONGEST:
            raise RecipeError(f"{path}: has {size:,} bytes; that is no recipe")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from error
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{path}: is not YAML as recipes have it: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a list of `key: value` lines")
    if odd := [key for key in values if not isinstance(key, str)]:
        raise RecipeError(f"{path}: {odd[0]!r} is not the name of a field")
    return values
