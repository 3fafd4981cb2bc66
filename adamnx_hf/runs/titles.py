"""The titles of recipes, and of which runs they are true."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from adamnx_hf.tasks.base import Recipe
from adamnx_hf.tasks.data import DataArguments

__all__ = ["find_title", "fits_title", "list_data_changes"]

# Fields of the network that a recipe's title tells of.
_NETWORK = (
    "architecture",
    "architecture_options",
    "model_name_or_path",
    "model_config",
    "use_peft",
    "load_in_4bit",
    "load_in_8bit",
)


def fits_title(changes: Mapping[str, Any], data_changes: Mapping[str, Any]) -> bool:
    """Returns whether a recipe's title is true of a run: flags changed neither the data nor the network.

    Args:
        changes: fields that flags changed, see :class:`adamnx_hf.tasks.base.Recipe`.
        data_changes: those among the fields about data.
    """
    told = {field.name for field in dataclasses.fields(DataArguments)}.union(_NETWORK)
    return not data_changes and told.isdisjoint(changes)


def find_title(recipe: Recipe) -> str:
    """Returns the recipe's title; an empty one where it is not true of these data or this network."""
    is_true = not recipe.synthetic_data and fits_title(recipe.changes, list_data_changes(recipe))
    return recipe.arguments.title if is_true else ""


def list_data_changes(recipe: Recipe) -> dict[str, Any]:
    """Returns the fields about data that flags changed, with whole paths."""
    return {key: recipe.values.get(key, value) for key, value in recipe.data_changes.items()}
