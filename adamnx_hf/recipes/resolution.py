"""A recipe with flags over it, checked.

The keys of a recipe are the fields of :class:`adamnx_hf.tasks.base.RecipeArguments`, of the task's
`Arguments` and of TrainingArguments, by their own names. Later ones win: the file, its `optimizers` entry for
the chosen `optim`, `--fast`, `--smoke`, the flags.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.common.plain_values import plain_value
from adamnx_hf.recipes import policy
from adamnx_hf.recipes.fields import find_default
from adamnx_hf.recipes.files import list_recipes
from adamnx_hf.recipes.load import LoadedRecipe, load_recipe
from adamnx_hf.tasks.base import Recipe
from adamnx_hf.tasks.loading import find_local_data
from trainer_patches import registered_optimizers

__all__ = ["Recipe", "as_file", "resolve"]

#: The fields that `--smoke` sets for every task.
SMOKE = {
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "torch_compile": False,  # it takes longer than all the rest
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "push_to_hub": False,
}

# Suffixes of files of data.
_DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt")


def resolve(name: str, words: Sequence[str] = ()) -> Recipe:
    """Resolves a recipe: reads it, puts flags over it, and checks every field.

    Args:
        name: of one of the package's recipes, a path, or `hf://me/name[@revision]`, which is downloaded.
        words: flags as on the command line.

    Returns:
        The recipe with all its fields, checked and typed.

    Raises:
        RecipeError: a file, key or value does not fit. The message is one line that names it and the nearest
            valid one.
    """
    loaded = load_recipe(name)
    from_flags = loaded.parser.parse_flags(words)
    if from_flags.get("task", loaded.values["task"]) != loaded.values["task"]:
        raise RecipeError("--task: a recipe's task cannot be changed by a flag")
    base, displaced = _layer(loaded, from_flags)
    values = {**base, **from_flags}
    if values.get("fast"):  # also over a flag of other optim_args
        values |= _ask_for_fused(values)
    changes = _find_changes(loaded, base, from_flags, displaced)
    data_changes = _find_data_changes(loaded, from_flags)
    values |= _find_whole_paths(values)
    if not values.get("output_dir"):
        values["output_dir"] = str(_choose_output_dir(loaded.name, values))
    dataset = values.get("dataset_name")
    arguments, task_arguments, training_arguments = (
        loaded.parser.make_instance(kind, values) for kind in loaded.parser.classes
    )
    training_arguments.remove_unused_columns = False
    _set_direction(training_arguments, loaded.task, values.get("greater_is_better"))
    return Recipe(
        name=loaded.name,
        values=values,
        changes=changes,
        data_changes=data_changes,
        given=frozenset(from_flags),
        arguments=arguments,
        task=loaded.task,
        task_arguments=task_arguments,
        training_arguments=training_arguments,
        synthetic_data=bool(values.get("smoke")) and not (dataset and find_local_data(dataset)),
    )


def _layer(loaded: LoadedRecipe, from_flags: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Lays over each other what the recipe, its `optimizers`, `--fast` and `--smoke` say.

    Returns:
        The values below the flags, and the names of the file's fields that a flag leaves without meaning.
    """
    from_file = dict(loaded.values)
    if "optim" in from_flags and from_flags["optim"] != from_file.get("optim"):
        from_file.pop("optim_args", None)  # meant for the file's optimizer, and unknown to another
    displaced = _displace(from_file, from_flags, loaded.task)
    layers = [from_file, _choose_by_optimizer(from_file, from_flags)]
    chosen = {**from_file, **layers[1], **from_flags}
    if chosen.get("fast"):
        layers.append(loaded.task.fast())
    if chosen.get("smoke"):
        arguments = loaded.parser.make_instance(loaded.task.Arguments, chosen)
        layers += [SMOKE, loaded.task.smoke(arguments)]
    return {key: value for layer in layers for key, value in layer.items()}, displaced


def _find_changes(
    loaded: LoadedRecipe, base: Mapping[str, Any], from_flags: Mapping[str, Any], displaced: Iterable[str]
) -> dict[str, Any]:
    """Returns what flags change in a recipe where it may matter for the outcome."""
    changes = {
        key: value
        for key, value in from_flags.items()
        if value != base.get(key, find_default(loaded.parser.classes, key))
    }
    changes |= dict.fromkeys(displaced)
    changes = {key: value for key, value in changes.items() if not policy.is_neutral(key, loaded.task)}
    if "optim_args" in from_flags:
        other = _other_optim_args(from_flags["optim_args"])
        if other != _other_optim_args(base.get("optim_args")):
            changes["optim_args"] = ",".join(sorted(other))
    own = list_recipes().get(loaded.name)
    if own is not None and own.resolve() != loaded.path.resolve():  # somebody's, of the name of one of ours
        changes["recipe"] = loaded.path.name
    return changes


def _find_data_changes(loaded: LoadedRecipe, from_flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what flags change in the recipe's fields about data."""
    classes = loaded.parser.classes
    about_data = {
        field.name for kind in classes for field in dataclasses.fields(kind) if field.metadata.get("data")
    }
    return {
        key: value
        for key, value in from_flags.items()
        if key in about_data and value != loaded.values.get(key, find_default(classes, key))
    }


def as_file(recipe: Recipe) -> dict[str, Any]:
    """Returns the fields of a file that gives the same run again without any flag."""
    parts = (recipe.arguments, recipe.task_arguments, recipe.training_arguments)
    values = {}
    for key, value in recipe.values.items():
        if key in ("optimizers", "fast", "output_dir") or policy.is_flags_only(key):
            continue  # the first two are in the other fields by now; a file overwrites nothing
        parsed = next(getattr(part, key) for part in parts if hasattr(part, key))
        value = parsed if isinstance(parsed, dict) else value  # JSON came as text
        values[key] = plain_value(value)
    return values


def _displace(from_file: dict[str, Any], from_flags: Mapping[str, Any], task: Any) -> list[str]:
    """Removes the fields from `from_file` that one of `from_flags` leaves without meaning.

    Returns:
        The names of the removed fields.
    """
    rules = {
        "dataset_name": ("data_files",),
        "lr_scheduler_type": ("lr_scheduler_kwargs",),
        **getattr(task, "DISPLACES", {}),
    }
    displaced = []
    for key, others in rules.items():
        value, was = (plain_value(given.get(key)) for given in (from_flags, from_file))
        if value is not None and value != was:
            displaced += [other for other in others if other in from_file and other not in from_flags]
    for key in displaced:
        from_file.pop(key, None)
    return list(dict.fromkeys(displaced))


def _set_direction(args: Any, task: Any, greater_is_better: bool | None) -> None:
    """Makes `args` prefer the higher or the lower metric, as the task's METRICS says.

    Transformers takes every metric that is not a loss for one that should be high.

    Args:
        args: TrainingArguments, which are changed.
        task: the task's module.
        greater_is_better: what the recipe or a flag says; None if neither says anything.

    Raises:
        RecipeError: the task has no such metric, or the recipe or a flag says otherwise.
    """
    if args.metric_for_best_model is None:
        return
    metric, known = args.metric_for_best_model.removeprefix("eval_"), ["loss", *task.METRICS]
    if metric not in known:
        raise RecipeError(
            f"metric_for_best_model: {args.metric_for_best_model!r} is no metric of this task"
            f"{nearest(metric, known)}"
        )
    higher = metric != "loss" and task.METRICS[metric].best == "max"
    right = f"of {metric} the {'higher' if higher else 'lower'} is the better; leave it out"
    if greater_is_better is not None and greater_is_better != higher:
        raise RecipeError(f"greater_is_better: {str(greater_is_better).lower()} will not do: {right}")
    args.greater_is_better = higher
    if plain_value(args.lr_scheduler_type) == "reduce_lr_on_plateau":
        kwargs, mode = args.lr_scheduler_kwargs or {}, "max" if higher else "min"
        if kwargs.get("mode", mode) != mode:
            raise RecipeError(f"lr_scheduler_kwargs: mode {kwargs['mode']!r} will not do: {right}")
        args.lr_scheduler_kwargs = {**kwargs, "mode": mode}


def _choose_by_optimizer(from_file: Mapping[str, Any], from_flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that the recipe's `optimizers` sets for the optimizer in use.

    A key there is a name, or a name and parts of optim_args: `adamnx beta2_schedule=adam`.
    """
    given = {**from_file, **from_flags}
    optim = plain_value(given.get("optim"))
    words = set((given.get("optim_args") or "").replace(" ", "").split(","))
    result: dict[str, Any] = {}
    for key, entry in (given.get("optimizers") or {}).items():
        name, *conditions = key.split()
        if name == optim and words.issuperset(conditions):
            result |= entry
    return result


def _other_optim_args(text: str | None) -> set[str]:
    """Returns the parts of optim_args that are not about speed and that results tables have no rows for."""
    parts = set((text or "").replace(" ", "").split(",")) - {""}
    return {part for part in parts if part.partition("=")[0] not in ("beta2_schedule", "fused", "foreach")}


def _ask_for_fused(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns optim_args with `fused=true` for an optimizer that takes it; nothing for others."""
    entry = registered_optimizers().get(plain_value(chosen.get("optim")))
    given = chosen.get("optim_args") or ""
    if (
        entry is None
        or re.search(r"\bfused\s*=", given)
        or "fused" not in inspect.signature(entry.load()).parameters
    ):
        return {}
    return {"optim_args": f"{given},fused=true".lstrip(",")}


def _find_whole_paths(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns the fields of :data:`policy.NAME_OR_PATH` that hold a local path, each with its whole path.

    A whole path means the same in every folder that the run is told of, and passes for no name on the Hub.

    Raises:
        RecipeError: a value which can only be a local path does not exist.
    """
    result = {}
    for key, value in values.items():
        if policy.NAME_OR_PATH.fullmatch(key) and isinstance(value, str):
            path = os.path.expanduser(value)
            of_the_hub = key.endswith("name_or_path")  # if it is no folder
            if os.path.isdir(path) or (os.path.exists(path) and not of_the_hub):
                result[key] = os.path.abspath(path)
            is_path = value.startswith(("/", "~", "./", "../", "\\")) or value in (".", "..")
            is_path |= value.count("/") > 1 or value.endswith(_DATA_SUFFIXES)
            if is_path and not os.path.exists(path):
                raise RecipeError(f"{key}: there is no {value[:200]!r} here; pass a path that exists")
    return result


def _choose_output_dir(name: str, values: Mapping[str, Any]) -> Path:
    """Returns `runs/<recipe>/<optimizer>-seed<n>`; makes a temporary folder for a smoke run."""
    if values.get("smoke"):
        return Path(tempfile.mkdtemp(prefix=f"adamnx-hf-{name}-"))
    words: Iterable[str] = [
        str(plain_value(values.get("optim"))),
        *re.findall(r"beta2_schedule=(\w+)", values.get("optim_args") or ""),
        *(["fast"] if values.get("fast") else []),
        f"seed{values.get('seed', 42)}",
    ]
    return Path("runs") / name / "-".join(words)
