"""Recipes: from a YAML file and flags to checked dataclasses.

A recipe is found by its name among those of the package, or by its path. Its keys are the fields of
:class:`RecipeArguments`, of the task's `Arguments` and of TrainingArguments, by their own names;
HfArgumentParser reads them, from the file just as from flags. Later ones win: the file, its `optimizers`
entry for the chosen `optim`, `--fast`, `--smoke`, the flags.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from adamnx_hf.common import hub
from adamnx_hf.common.errors import RecipeError, nearest, printable
from adamnx_hf.common.plain_values import LONGEST, read_json, read_yaml, walk
from adamnx_hf.recipes import policy
from adamnx_hf.recipes.policy import Origin
from adamnx_hf.tasks.base import Recipe, RecipeArguments, find_field

__all__ = [
    "NEUTRAL",
    "as_file",
    "fields",
    "find",
    "folder",
    "named",
    "read",
    "resolve",
]


def folder() -> Path:
    """Where the package's recipes are: inside it, or in a checkout beside it."""
    inside = Path(__file__).parents[1] / "recipe_files"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def named() -> dict[str, Path]:
    """The package's recipes: `<task>/<name>.yaml` by name."""
    from adamnx_hf.tasks import TASKS

    return {path.stem: path for path in sorted(folder().glob("*/*.yaml")) if path.parent.name in TASKS}


def find(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: of one of the package's recipes, a path, or `hf://me/name[@revision]`, which is downloaded.

    Raises:
        RecipeError: there is none.
    """
    if name.startswith(hub.SCHEME):
        return hub.fetch_recipe(name)
    if name in named():
        return named()[name]
    path = os.path.expanduser(name)
    if os.path.isfile(path):
        return Path(path)
    if name.endswith((".yaml", ".yml")) or "/" in name or os.sep in name:
        raise RecipeError(f"{name[:200]}: no such file")
    raise RecipeError(
        f"{name[:200]}: no recipe of that name{nearest(name, named())} (adamnx-hf recipes lists them)"
    )


def read(path: Path) -> dict[str, Any]:
    """The keys and values of a recipe file, as they are written.

    Raises:
        RecipeError: it is too large, no YAML, holds more than plain values or a key twice, or is not a list
            of keys and values.
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


#: Fields of TrainingArguments that a recipe's `--help` shows, beside those that the recipe sets.
USUAL = (
    "output_dir", "seed", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "per_device_eval_batch_size", "gradient_accumulation_steps", "optim", "optim_args", "learning_rate",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "bf16", "use_cpu", "eval_strategy", "eval_steps", "save_strategy",
    "save_steps", "save_total_limit", "load_best_model_at_end", "metric_for_best_model", "logging_steps",
    "report_to", "overwrite_output_dir", "resume_from_checkpoint", "dataloader_num_workers",
    "dataloader_drop_last",
    "gradient_checkpointing", "torch_compile", "push_to_hub", "hub_model_id",
)  # fmt: skip

#: What `--smoke` sets for every task.
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

#: Fields that leave the outcome alone, or that a results table has columns for.
NEUTRAL = re.compile(
    r"output_dir|overwrite_output_dir|dataset_(name|config_name|revision)|data_files|\w+_column|"
    r"box_field|box_format|box_unit|category_field|difficult_field|run_name|seed|optim|optim_args|disable_tqdm|report_to|fast|"
    r"per_device_eval_batch_size|resume_from_checkpoint|title|hardware|hours|paper_tables|"
    r"(logging|save|push|hub|log|trackio)_.*|project|dataloader_(?!drop_last).*"
)

#: What the name of a file of data ends in.
DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt")


class _Parser:
    """HfArgumentParser over a task's fields, which tells what was set from what was not."""

    def __init__(self, task: Any) -> None:
        from transformers import HfArgumentParser

        from adamnx_hf.tasks.trainer import RecipeTrainingArguments

        class Parser(HfArgumentParser):
            def add_argument(self, *names: Any, data: bool = False, **options: Any) -> Any:
                return super().add_argument(*names, **options)  # `data` of a field is not argparse's

            def error(self, message: str) -> Any:
                raise argparse.ArgumentError(None, message)

            def _check_value(self, action: Any, value: Any) -> None:
                if action.choices is not None and value not in action.choices:
                    raise argparse.ArgumentError(
                        action, f"{value!r} is not valid{nearest(value, action.choices)}"
                    )

        own = getattr(task, "TrainingArguments", RecipeTrainingArguments)
        self.classes = (RecipeArguments, task.Arguments, own)
        kinds: Any = self.classes
        hints = {key: hint for kind in self.classes for key, hint in get_type_hints(kind).items()}
        self.json = {key for key, hint in hints.items() if "dict" in str(hint).lower()}
        self.parser = Parser(kinds, allow_abbrev=False, prog="adamnx-hf run RECIPE", add_help=False)
        for action in self.parser._actions:  # what is not given stays out of the result
            action.default, action.required = argparse.SUPPRESS, False
        self.fields = {action.dest: action for action in self.parser._actions}
        # report_to has a word `none` of its own.
        self.optional = {
            field.name
            for kind in self.classes
            for field in dataclasses.fields(kind)
            if field.default is None and field.name != "report_to"
        }

    def of_flags(self, words: Sequence[str]) -> dict[str, Any]:
        """The fields that the flags `words` set, with their types; JSON text is a dictionary.

        `--FIELD none` sets a field that may be left out to None, whatever the recipe says.

        Raises:
            RecipeError: a flag or a value that does not fit.
        """
        words, unset = self._take_out_none(words)
        try:
            given, extra = self.parser.parse_known_args(words)
        except argparse.ArgumentError as error:
            raise RecipeError(_clean(error, "")) from None
        if extra:
            word = extra[0].partition("=")[0]
            if word.startswith("--"):
                known = [option for action in self.fields.values() for option in action.option_strings[:1]]
                raise RecipeError(f"{word} is not a flag of this recipe{nearest(word, known)}")
            raise RecipeError(f"{word!r} belongs to no flag; write --flag value")
        return {key: self._look_into(key, value, key) for key, value in vars(given).items()} | unset

    def _take_out_none(self, words: Sequence[str]) -> tuple[list[str], dict[str, None]]:
        """Parts `words` in those that argparse reads and the fields that are set to None."""
        rest: list[str] = []
        unset: dict[str, None] = {}
        words = list(words)
        while words:
            flag, equals, value = words.pop(0).partition("=")
            field = flag.removeprefix("--").replace("-", "_")
            next_value = value if equals else words[0] if words else ""
            if flag.startswith("--") and field in self.optional and next_value == "none":
                unset[field] = None
                words = words[not equals :]
            else:
                unset.pop(field, None)  # the later one wins
                rest.append(f"{flag}{equals}{value}")
        return rest, unset

    def of_file(self, values: Mapping[Any, Any], source: str) -> dict[str, Any]:
        """The fields that a file's `values` set, with their types; each is one value, never a flag.

        Args:
            values: by field. None counts as not given, and so does an empty list.
            source: what messages begin with.

        Raises:
            RecipeError: a field or a value that does not fit.
        """
        result = {}
        for key, value in values.items():
            if key not in self.fields:
                raise RecipeError(
                    f"{source}{key} is not a field of this recipe{nearest(str(key), self.fields)}"
                )
            if value is not None and value != []:
                result[key] = self._look_into(key, self._parse_value(key, value, source), f"{source}{key}")
        return result

    def _parse_value(self, key: str, value: Any, source: str) -> Any:
        action = self.fields[key]
        if action.nargs == "+":
            items = value if isinstance(value, list) else [value]
            for item in items:
                if item is None or isinstance(item, bool | dict | list):
                    raise RecipeError(
                        f"{source}{key}: {item!r} among its values is neither text nor a number; if it is a "
                        "word, put it in quotes"
                    )
            return [self._parse_text(action, str(item), source) for item in items]
        if isinstance(value, list):
            raise RecipeError(f"{source}{key}: takes one value, got the list {value}")
        if isinstance(value, dict):
            if key not in self.json:
                raise RecipeError(f"{source}{key}: takes one value, got fields and values: {value}")
            return value
        if value is False and "no" in (action.choices or ()):
            return self._parse_text(action, "no", source)  # what YAML makes of an unquoted no
        return self._parse_text(action, str(value).lower() if isinstance(value, bool) else str(value), source)

    def _parse_text(self, action: argparse.Action, text: str, source: str) -> Any:
        """`text` as argparse would convert it if it were the flag's one word."""
        try:
            value = self.parser._get_value(action, text)
            self.parser._check_value(action, value)
        except argparse.ArgumentError as error:
            raise RecipeError(_clean(error, source)) from None
        return value

    def _look_into(self, key: str, value: Any, where: str) -> Any:
        """Reads JSON text, and raises RecipeError for numbers that are not finite."""
        if isinstance(value, str) and key in self.json:
            value = _from_json(value, where, or_path=key in _JSON_OR_PATH)
        for path, item in walk(value):
            if isinstance(item, float) and not math.isfinite(item):
                inner = "".join(f", {name}" for name in path if isinstance(name, str))
                raise RecipeError(f"{where}{inner}: {item} is not a finite number")
        if key == "optimizers":
            return self._by_optimizer(value, where)
        return value

    def _by_optimizer(self, table: Mapping[Any, Any], where: str) -> dict[str, dict[str, Any]]:
        """Fields by optimizers' names, each with its type."""
        names, result = self.fields["optim"].choices, {}
        for key, fields in table.items():
            name = str(key).partition(" ")[0]
            if names is not None and name not in names:
                raise RecipeError(f"{where}: {name!r} is not an optimizer{nearest(name, names)}")
            if fields is not None and not isinstance(fields, dict):
                raise RecipeError(f"{where}, {key}: must be fields and values, got {fields!r}")
            if "optimizers" in (fields or {}):
                raise RecipeError(f"{where}, {key}: optimizers cannot stand within optimizers")
            result[str(key)] = self.of_file(fields or {}, f"{where}, {key}: ")
        return result

    def instances(self, values: Mapping[str, Any]) -> list[Any]:
        """One instance of each dataclass."""
        return [self.instance(kind, values) for kind in self.classes]

    def instance(self, kind: Any, values: Mapping[str, Any]) -> Any:
        """An instance of one of the dataclasses, of those values that are its fields."""
        try:
            return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values})
        except (ValueError, TypeError, ImportError) as error:
            raise RecipeError(str(error)) from error
        except Exception as error:  # a library's own check of a value that it did not expect
            raise RecipeError(f"a field does not fit ({type(error).__name__}: {error})") from error


# Fields of TrainingArguments that take a dictionary or the path of a file of one.
_JSON_OR_PATH = ("accelerator_config", "deepspeed", "fsdp_config")


def _from_json(text: str, where: str, or_path: bool) -> Any:
    """The dictionary that `text` holds; `text` itself where it may be, and is, a path."""
    if or_path and not text.lstrip().startswith(("{", "[")):
        if not os.path.isfile(os.path.expanduser(text)):
            raise RecipeError(f"{where}: {text[:200]!r} is neither JSON nor a file")
        return text
    try:
        value = read_json(text)
    except ValueError as error:
        raise RecipeError(f"{where}: {text[:200]!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise RecipeError(f'{where}: must be fields and values, {{"field": value}}, got {text[:200]}')
    return value


def _clean(error: argparse.ArgumentError, source: str) -> str:
    """Argparse's `argument --seed/-s: invalid ...` as `seed: invalid ...`."""
    return source + re.sub(r"^argument --([^/:\s]+)[^:]*: ", r"\1: ", str(error))


def fields(name: str) -> list[str]:
    """The names of a recipe's fields, which are its flags."""
    return list(_load(name).parser.fields)


def help_text(name: str, every: bool = False) -> str:
    """A recipe's fields as flags, with the recipe's own values as defaults; the task's come first.

    Args:
        name: see :func:`find`.
        every: also the fields of TrainingArguments that the recipe leaves alone.

    Raises:
        RecipeError: see :func:`resolve`.
    """
    from transformers import TrainingArguments

    loaded = _load(name)
    parser = loaded.parser.parser
    own, of_task, training = ({f.name for f in dataclasses.fields(kind)} for kind in loaded.parser.classes)
    transformers_own = {f.name for f in dataclasses.fields(TrainingArguments)}
    usual = {*(training - transformers_own), *USUAL, *loaded.written} & training
    sections = {
        f"fields of {loaded.written['task']}": of_task,
        "fields of training": training if every else usual,
        "fields of every recipe": own,
    }
    formatter = parser._get_formatter()
    formatter.add_usage("adamnx-hf run RECIPE [--FIELD VALUE ...]", [], [], "usage: ")
    for title, names in sections.items():
        formatter.start_section(title)
        for action in parser._actions:
            value = loaded.written.get(action.dest, _default(loaded.parser, action.dest))
            value = printable(value) if isinstance(value, str) else getattr(value, "value", value)
            action.default = argparse.SUPPRESS if value in (None, "", []) else value
            if action.dest in names:
                shown = copy.copy(action)
                shown.option_strings = action.option_strings[:1]  # not with hyphens, too
                formatter.add_argument(shown)
        formatter.end_section()
    formatter.add_text("--FIELD none leaves out a field that the recipe sets and that may be left out.")
    if not every:
        formatter.add_text(
            f"{len(training - usual)} more fields of TrainingArguments: adamnx-hf run RECIPE --help-all"
        )
    return formatter.format_help()


@dataclasses.dataclass
class _Loaded:
    """A recipe that its origin's policy has let through, before flags and defaults."""

    path: Path
    origin: Origin
    source: str
    """What messages of it begin with."""
    parser: _Parser
    task: Any
    written: dict[str, Any]
    """As it stands in the file."""
    values: dict[str, Any]
    """The fields that it sets, with their types."""


def _load(name: str) -> _Loaded:
    """Finds, reads, parses and judges a recipe.

    Raises:
        RecipeError: see :func:`resolve`.
    """
    path = find(name)
    origin = Origin.HUB if name.startswith(hub.SCHEME) else Origin.PACKAGE if name in named() else Origin.FILE
    source = f"{name if origin is Origin.HUB else path.name}: "
    try:
        written = read(path)
    except RecipeError as error:
        if origin is not Origin.HUB:
            raise
        raise RecipeError(str(error).replace(f"{path}: ", source, 1)) from None  # not a place in the cache
    task = _task_of(written, source)
    parser = _Parser(task)
    policy.check(origin, dict.fromkeys(written), source)  # before values, which may be secrets, are looked at
    values = parser.of_file(written, source)
    policy.check(origin, values, source)
    return _Loaded(path, origin, source, parser, task, written, values)


def _task_of(values: Mapping[str, Any], source: str) -> Any:
    from adamnx_hf.tasks import TASKS, load_task

    if "task" not in values:
        raise RecipeError(f"{source}task is missing{nearest('', TASKS)}")
    return load_task(values["task"])


def resolve(name: str, words: Sequence[str] = ()) -> Recipe:
    """A recipe with flags over it, checked.

    Args:
        name: see :func:`find`.
        words: flags as on the command line.

    Raises:
        RecipeError: a file, key or value that does not fit, in one line that names it and the nearest
            valid one.
    """
    from adamnx_hf.tasks.loading import local_data

    loaded = _load(name)
    path, task, parser, from_file = loaded.path, loaded.task, loaded.parser, dict(loaded.values)
    from_flags = parser.of_flags(words)
    if from_flags.get("task", from_file["task"]) != from_file["task"]:
        raise RecipeError("--task: a recipe's task cannot be changed by a flag")

    if "optim" in from_flags and from_flags["optim"] != from_file.get("optim"):
        from_file.pop("optim_args", None)  # meant for the file's optimizer, and unknown to another
    displaced = _displace(from_file, from_flags, task)
    layers = [from_file, _for_optimizer(from_file, from_flags)]
    chosen = {**from_file, **layers[1], **from_flags}
    fast, smoke = bool(chosen.get("fast")), bool(chosen.get("smoke"))
    if fast:
        layers.append(task.fast())
    if smoke:
        layers += [SMOKE, task.smoke(parser.instance(task.Arguments, chosen))]
    base = {key: value for layer in layers for key, value in layer.items()}
    values = {**base, **from_flags}
    if fast:  # also over a flag of other optim_args
        values |= _fused(values)
    changes = {
        key: value
        for key, value in from_flags.items()
        if not NEUTRAL.fullmatch(key) and value != base.get(key, _default(parser, key))
    } | {key: None for key in displaced if not NEUTRAL.fullmatch(key)}
    about_data = {
        field.name
        for kind in parser.classes
        for field in dataclasses.fields(kind)
        if field.metadata.get("data")
    }
    data_changes = {
        key: value
        for key, value in from_flags.items()
        if key in about_data and value != loaded.values.get(key, _default(parser, key))
    }
    if "optim_args" in from_flags:
        other = _other_optim_args(from_flags["optim_args"])
        if other != _other_optim_args(base.get("optim_args")):
            changes["optim_args"] = ",".join(sorted(other))
    if loaded.origin is Origin.HUB:
        recipe_name = hub.recipe_name(name)
    else:
        recipe_name = path.stem if path.stem != "recipe" else path.resolve().parent.name
    own = named().get(recipe_name)
    if own is not None and own.resolve() != path.resolve():  # somebody's, of the name of one of ours
        changes["recipe"] = path.name
    _check_places(values)
    values |= _whole_paths(values)
    local = bool(values.get("dataset_name")) and local_data(values["dataset_name"]) is not None
    if not values.get("output_dir"):
        values["output_dir"] = str(_output_dir(recipe_name, values))
    arguments, task_arguments, training_arguments = parser.instances(values)
    training_arguments.remove_unused_columns = False
    metrics = ["loss", *task.METRICS]
    best_by = training_arguments.metric_for_best_model
    if best_by is not None and best_by.removeprefix("eval_") not in metrics:
        near = nearest(best_by.removeprefix("eval_"), metrics)
        raise RecipeError(f"metric_for_best_model: {best_by!r} is no metric of this task{near}")
    _set_direction(training_arguments, task, values.get("greater_is_better"))
    return Recipe(
        name=recipe_name,
        values=values,
        changes=changes,
        data_changes=data_changes,
        given=frozenset(from_flags),
        arguments=arguments,
        task=task,
        task_arguments=task_arguments,
        training_arguments=training_arguments,
        synthetic_data=smoke and not local,
    )


def as_file(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe as it was run, for a file: the same again, without any flag."""
    parts = (recipe.arguments, recipe.task_arguments, recipe.training_arguments)
    values = {}
    for key, value in recipe.values.items():
        if key in ("optimizers", "fast", "output_dir") or policy.is_flags_only(key):
            continue  # the first two are in the other fields by now; a file overwrites nothing
        parsed = next(getattr(part, key) for part in parts if hasattr(part, key))
        value = parsed if isinstance(parsed, dict) else value  # JSON came as text
        values[key] = getattr(value, "value", value)
    return values


def _displace(from_file: dict[str, Any], from_flags: Mapping[str, Any], task: Any) -> list[str]:
    """Takes those fields out of `from_file` that one of `from_flags` leaves without meaning.

    Returns:
        Their names, save those that flags set.
    """
    rules = {
        "dataset_name": ("data_files",),
        "lr_scheduler_type": ("lr_scheduler_kwargs",),
        **getattr(task, "DISPLACES", {}),
    }
    displaced = []
    for key, others in rules.items():
        value, was = (getattr(given.get(key), "value", given.get(key)) for given in (from_flags, from_file))
        if value is not None and value != was:
            displaced += [other for other in others if other in from_file and other not in from_flags]
    for key in displaced:
        from_file.pop(key, None)
    return list(dict.fromkeys(displaced))


def _set_direction(args: Any, task: Any, greater_is_better: bool | None) -> None:
    """Has `args` take the higher or the lower metric for the better one, as the task's METRICS says.

    Transformers takes every metric that is not a loss for one that should be high.

    Args:
        args: TrainingArguments, which are changed.
        task: the task's module.
        greater_is_better: what the recipe or a flag says; None: nothing.

    Raises:
        RecipeError: the recipe or a flag says otherwise.
    """
    if args.metric_for_best_model is None:
        return
    metric = args.metric_for_best_model.removeprefix("eval_")
    higher = metric != "loss" and task.METRICS[metric].best == "max"
    right = f"of {metric} the {'higher' if higher else 'lower'} is the better; leave it out"
    if greater_is_better is not None and greater_is_better != higher:
        raise RecipeError(f"greater_is_better: {str(greater_is_better).lower()} will not do: {right}")
    args.greater_is_better = higher
    if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) == "reduce_lr_on_plateau":
        kwargs, mode = args.lr_scheduler_kwargs or {}, "max" if higher else "min"
        if kwargs.get("mode", mode) != mode:
            raise RecipeError(f"lr_scheduler_kwargs: mode {kwargs['mode']!r} will not do: {right}")
        args.lr_scheduler_kwargs = {**kwargs, "mode": mode}


def _check_places(values: Mapping[str, Any]) -> None:
    """Checks that what can only be a local path is there.

    Raises:
        RecipeError: it is not.
    """
    for key, value in values.items():
        if policy.NAME_OR_PATH.fullmatch(key) and isinstance(value, str):
            is_path = value.startswith(("/", "~", "./", "../", "\\")) or value in (".", "..")
            is_path |= value.count("/") > 1 or value.endswith(DATA_SUFFIXES)
            if is_path and not os.path.exists(os.path.expanduser(value)):
                raise RecipeError(f"{key}: there is no {value[:200]!r} here; pass a path that exists")


def _for_optimizer(from_file: Mapping[str, Any], from_flags: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe's `optimizers` says for the optimizer in use.

    A key is a name, or a name and parts of optim_args: `adamnx beta2_schedule=adam`.
    """
    given = {**from_file, **from_flags}
    optim = str(getattr(given.get("optim"), "value", given.get("optim")))
    words = set((given.get("optim_args") or "").replace(" ", "").split(","))
    result: dict[str, Any] = {}
    for key, entry in (given.get("optimizers") or {}).items():
        name, *conditions = key.split()
        if name == optim and words.issuperset(conditions):
            result |= entry
    return result


def _other_optim_args(text: str | None) -> set[str]:
    """The parts of `text` that a results table has no rows for, and that are not about speed."""
    parts = set((text or "").replace(" ", "").split(",")) - {""}
    return {part for part in parts if part.partition("=")[0] not in ("beta2_schedule", "fused", "foreach")}


def _fused(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """`fused=true` among the optim_args, for an optimizer that can be told."""
    import inspect

    from trainer_patches import registered_optimizers

    optim = chosen.get("optim")
    entry = registered_optimizers().get(str(getattr(optim, "value", optim)))
    given = chosen.get("optim_args") or ""
    if (
        entry is None
        or re.search(r"\bfused\s*=", given)
        or "fused" not in inspect.signature(entry.load()).parameters
    ):
        return {}
    return {"optim_args": f"{given},fused=true".lstrip(",")}


def _whole_paths(values: Mapping[str, Any]) -> dict[str, str]:
    """Those of :data:`policy.NAME_OR_PATH` that are local, by their whole path.

    What is written down of the run then means the same in every folder, and passes for no name on the Hub.
    """
    result = {}
    for key, value in values.items():
        if policy.NAME_OR_PATH.fullmatch(key) and isinstance(value, str):
            path = os.path.expanduser(value)
            of_the_hub = key.endswith("name_or_path")  # if it is no folder
            if os.path.isdir(path) or (os.path.exists(path) and not of_the_hub):
                result[key] = os.path.abspath(path)
    return result


def _default(parser: _Parser, key: str) -> Any:
    field = find_field(parser.classes, key)
    return None if field is None or field.default is dataclasses.MISSING else field.default


def _output_dir(name: str, values: Mapping[str, Any]) -> Path:
    """`runs/<recipe>/<optimizer>-seed<n>`, or a new temporary folder for a smoke run."""
    import tempfile

    if values.get("smoke"):
        return Path(tempfile.mkdtemp(prefix=f"adamnx-hf-{name}-"))
    optim = values.get("optim")
    words: Iterable[str] = [
        str(getattr(optim, "value", optim)),
        *re.findall(r"beta2_schedule=(\w+)", values.get("optim_args") or ""),
        *(["fast"] if values.get("fast") else []),
        f"seed{values.get('seed', 42)}",
    ]
    return Path("runs") / name / "-".join(words)
