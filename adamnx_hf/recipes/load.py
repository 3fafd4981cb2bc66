"""A recipe as it stands in its file: found, read, parsed, and judged by what its origin may decide."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from adamnx_hf.common import hub
from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.recipes import policy
from adamnx_hf.recipes.fields import FieldParser
from adamnx_hf.recipes.files import find_recipe, list_recipes, read_recipe
from adamnx_hf.recipes.policy import Origin
from adamnx_hf.tasks import TASKS, load_task

__all__ = ["LoadedRecipe", "load_recipe"]


@dataclasses.dataclass
class LoadedRecipe:
    """A recipe that its origin's policy has let through, before flags and defaults."""

    name: str
    """A name for the recipe that can be a folder's."""
    path: Path
    parser: FieldParser
    task: Any
    """The task's module."""
    written: dict[str, Any]
    """The fields as they stand in the file."""
    values: dict[str, Any]
    """The fields that the file sets, with their types."""


def load_recipe(name: str) -> LoadedRecipe:
    """Finds, reads, parses and judges a recipe.

    Args:
        name: see :func:`adamnx_hf.recipes.files.find_recipe`.

    Raises:
        RecipeError: there is no such recipe, its file does not fit, or it decides what it may not.
    """
    path = find_recipe(name)
    is_ours = name in list_recipes()
    origin = Origin.HUB if name.startswith(hub.SCHEME) else Origin.PACKAGE if is_ours else Origin.FILE
    source = f"{name if origin is Origin.HUB else path.name}: "
    try:
        written = read_recipe(path)
    except RecipeError as error:
        if origin is not Origin.HUB:
            raise
        raise RecipeError(str(error).replace(f"{path}: ", source, 1)) from None  # not a place in the cache
    if "task" not in written:
        raise RecipeError(f"{source}task is missing{nearest('', TASKS)}")
    task = load_task(written["task"])
    parser = FieldParser(task)
    policy.check(origin, dict.fromkeys(written), source)  # before values, which may be secrets, are looked at
    values = parser.parse_file(written, source)
    policy.check(origin, values, source)
    if origin is Origin.HUB:
        own_name = hub.recipe_name(name)
    else:
        own_name = path.stem if path.stem != "recipe" else path.resolve().parent.name
    return LoadedRecipe(own_name, path, parser, task, written, values)
