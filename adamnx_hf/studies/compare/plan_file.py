"""A comparison's plan: a file of YAML that settles what is run and how it is judged, before the first run."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.common.plain_values import read_yaml

__all__ = ["OPTIONS", "PlanFile", "read_plan_file", "write_value"]

# The keys of a plan with the types of their values, and those of lists' items.
_KEYS: Mapping[str, tuple[Any, ...]] = {
    "recipe": (str,),
    "optim": (list, str),
    "fields": (dict,),
    "sweep": (dict,),
    "seeds": (int,),
    "sweep_seeds": (int,),
    "sweep_budget": (int,),
    "hold_out": (int,),
    "validation_split": (str,),
    "metric": (str,),
    "smallest_effect": (float, int),
    "family": (list, list),
}
#: The keys that are options of `adamnx-hf compare`, too.
OPTIONS = tuple(key for key in _KEYS if key not in ("recipe", "fields", "family"))

_WORDS = {str: "a word", int: "a whole number", float: "a number", list: "a list", dict: "a mapping"}


@dataclasses.dataclass(frozen=True)
class PlanFile:
    """The content of a plan."""

    values: Mapping[str, Any]
    """By key: `recipe`, options of `adamnx-hf compare`, `fields` of the recipe for all runs, and the pairs of
    the `family` that is judged."""
    sha256: str
    """The hash of the file."""

    def find_deviations(self, options: Mapping[str, Any]) -> list[str]:
        """Returns in words which options that were given are not as planned.

        Args:
            options: by the plan's keys; "" where one was not given. `fields` are compared one by one.
        """
        planned = {**self.values, **self.values.get("fields", {})}
        pairs = {**options, **options.get("fields", {})}
        pairs = {key: value for key, value in pairs.items() if key != "fields" and value != ""}
        if "recipe" not in planned:
            pairs.pop("recipe", None)
        return [
            f"{key} {write_value(value)} instead of {write_value(planned.get(key, 'nothing'))}"
            for key, value in pairs.items()
            if key not in planned or write_value(value) != write_value(planned[key])
        ]


def read_plan_file(path: Path) -> PlanFile:
    """Reads a plan.

    Raises:
        RecipeError: the file cannot be read, is no YAML, or has a key or a value that a plan cannot have.
    """
    try:
        content = path.read_bytes()
        values = read_yaml(content.decode())
    except (OSError, ValueError) as error:
        raise RecipeError(f"--plan {path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"--plan {path}: is no list of `key: value`; keys are {', '.join(_KEYS)}")
    for key, value in values.items():
        if key not in _KEYS:
            raise RecipeError(f"--plan {path}: {key!r} is no key of a plan{nearest(str(key), _KEYS)}")
        kind, *items = _KEYS[key]
        kinds = (float, int) if kind is float else (kind,)
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        if not fits or (kind is list and not all(isinstance(item, items[0]) for item in value)):
            what = _WORDS[kind] + (f", each entry {_WORDS[items[0]]}" if kind is list else "")
            raise RecipeError(f"--plan {path}: {key}: {value!r} is not {what}")
        if isinstance(value, int | float) and not value > 0:
            raise RecipeError(f"--plan {path}: {key}: {value!r} is not above 0")
    return PlanFile(values, hashlib.sha256(content).hexdigest())


def write_value(value: Any) -> str:
    """Writes a value as one would on the command line."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}={write_value(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(write_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
