"""The fields of a recipe, parsed: from a file or from flags to values with their types."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_type_hints

from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.common.plain_values import read_json, walk
from adamnx_hf.tasks.base import RecipeArguments, find_field

__all__ = ["FieldParser", "find_default"]

# Fields of TrainingArguments that take a dictionary or the path of a file of one.
_JSON_OR_PATH = ("accelerator_config", "deepspeed", "fsdp_config")


class FieldParser:
    """Parses a recipe's fields with HfArgumentParser, and tells what was set from what was not.

    Args:
        task: the module of the recipe's task.
    """

    classes: tuple[Any, ...]
    """The dataclasses of the fields: those of every recipe, of the task, and of training."""
    fields: dict[str, argparse.Action]
    """Argparse's action of each field, by the field's name."""

    def __init__(self, task: Any) -> None:
        from transformers import HfArgumentParser

        from adamnx_hf.tasks.trainer import RecipeTrainingArguments

        class Parser(HfArgumentParser):
            def add_argument(self, *names: Any, **options: Any) -> Any:
                for ours in (
                    "data",
                    "neutral",
                ):  # of a field's metadata, see make_field(); unknown to argparse
                    options.pop(ours, None)
                return super().add_argument(*names, **options)

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
        # report_to takes a word `none` of its own.
        self.optional = {
            field.name
            for kind in self.classes
            for field in dataclasses.fields(kind)
            if field.default is None and field.name != "report_to"
        }

    def parse_flags(self, words: Sequence[str]) -> dict[str, Any]:
        """Parses the flags `words` into fields with their types; JSON text becomes a dictionary.

        `--FIELD none` sets a field that may be left out to None, whatever the recipe says.

        Raises:
            RecipeError: a flag or a value does not fit.
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
        """Splits `words` into those that argparse reads and the fields that are set to None."""
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

    def parse_file(self, values: Mapping[Any, Any], source: str) -> dict[str, Any]:
        """Parses a file's `values` into fields with their types; each is one value, never a flag.

        Args:
            values: what the file says, by field. None and an empty list count as not given.
            source: the beginning of messages.

        Raises:
            RecipeError: a field or a value does not fit.
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
        """Converts `text` as argparse converts a flag's only word."""
        try:
            value = self.parser._get_value(action, text)
            self.parser._check_value(action, value)
        except argparse.ArgumentError as error:
            raise RecipeError(_clean(error, source)) from None
        return value

    def _look_into(self, key: str, value: Any, where: str) -> Any:
        """Reads JSON text, and refuses numbers that are not finite."""
        if isinstance(value, str) and key in self.json:
            value = _from_json(value, where, or_path=key in _JSON_OR_PATH)
        for path, item in walk(value):
            if isinstance(item, float) and not math.isfinite(item):
                inner = "".join(f", {name}" for name in path if isinstance(name, str))
                raise RecipeError(f"{where}{inner}: {item} is not a finite number")
        if key == "optimizers":
            return self._parse_optimizers(value, where)
        return value

    def _parse_optimizers(self, table: Mapping[Any, Any], where: str) -> dict[str, dict[str, Any]]:
        """Parses fields by optimizers' names, each into its type."""
        names, result = self.fields["optim"].choices, {}
        for key, fields in table.items():
            name = str(key).partition(" ")[0]
            if names is not None and name not in names:
                raise RecipeError(f"{where}: {name!r} is not an optimizer{nearest(name, names)}")
            if fields is not None and not isinstance(fields, dict):
                raise RecipeError(f"{where}, {key}: must be fields and values, got {fields!r}")
            if "optimizers" in (fields or {}):
                raise RecipeError(f"{where}, {key}: optimizers cannot stand within optimizers")
            result[str(key)] = self.parse_file(fields or {}, f"{where}, {key}: ")
        return result

    def make_instance(self, kind: Any, values: Mapping[str, Any]) -> Any:
        """Makes an instance of one of the dataclasses from those values that are its fields.

        Raises:
            RecipeError: a value does not fit.
        """
        try:
            return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values})
        except (ValueError, TypeError, ImportError) as error:
            raise RecipeError(str(error)) from error
        except Exception as error:  # a library's own check of a value that it did not expect
            raise RecipeError(f"a field does not fit ({type(error).__name__}: {error})") from error


def _from_json(text: str, where: str, or_path: bool) -> Any:
    """Reads the dictionary that `text` holds; returns `text` itself where it may be a path, and is one."""
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
    """Rewrites Argparse's `argument --seed/-s: invalid ...` as `seed: invalid ...`."""
    return source + re.sub(r"^argument --([^/:\s]+)[^:]*: ", r"\1: ", str(error))


def find_default(classes: Iterable[Any], key: str) -> Any:
    """Returns the default value of a field of the dataclasses; None if there is no such field or default."""
    field = find_field(classes, key)
    return None if field is None or field.default is dataclasses.MISSING else field.default
