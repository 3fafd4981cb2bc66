"""Reads `TrainingArguments.optim_args`: typed and checked against the optimizer's own signature.

Transformers splits the text at every comma and hands out strings, so that `betas=(0.9,0.99)` crashes and
`bool("False")` is True (transformers #21317).
"""

from __future__ import annotations

import ast
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Union

__all__ = ["Option", "convert", "explain_unknown", "list_options", "split"]

_BRACKETS = {"(": ")", "[": "]"}
_INFINITE = ("inf", "+inf", "-inf")
_DESCRIPTIONS = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    None: "none",
    type(None): "none",
}
_WORDS = {"true": True, "false": False, "none": None, "null": None}


class Option(typing.NamedTuple):
    """A keyword that may stand in optim_args: its annotated type and its default."""

    hint: Any
    default: Any


def split(text: str) -> dict[str, str]:
    """Splits `"beta2=0.95, betas=(0.9, 0.99)"` into keys and values, which stay text.

    Raises:
        ValueError: a part is not `key=value`, a key is given twice, or a bracket is left open.
        TypeError: `text` is no text: a YAML file has a mapping there, say.
    """
    if not isinstance(text, str):
        written = (
            ",".join(f"{key}={value}" for key, value in text.items()) if isinstance(text, Mapping) else ""
        )
        raise TypeError(
            f"optim_args={text!r}: a {type(text).__name__} instead of text; write it as "
            f"optim_args={written or 'key=value,key=value'!r}"
        )
    parts, depth, start = [], [], 0
    for i, char in enumerate(text):
        if char in _BRACKETS:
            depth.append(_BRACKETS[char])
        elif depth and char == depth[-1]:
            depth.pop()
        elif char == "," and not depth:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    if depth:
        raise ValueError(f"optim_args={text!r}: missing {depth[-1]!r}")

    pairs: dict[str, str] = {}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise ValueError(
                f"optim_args={text!r}: {part.strip()!r} is not key=value; write them as key=value,key=value"
            )
        if key in pairs:
            raise ValueError(f"optim_args={text!r}: {key!r} is given twice")
        pairs[key] = value
    return pairs


def list_options(function: Callable[..., Any], kinds: Iterable[Any]) -> dict[str, Option]:
    """Returns the parameters of `function` that are of the given `inspect.Parameter` kinds, as options."""
    try:
        annotated = inspect.getattr_static(function, "__init__") if isinstance(function, type) else function
        hints = typing.get_type_hints(annotated)
    except Exception:  # some annotations cannot be evaluated; the defaults still say something
        hints = {}
    return {
        name: Option(hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in kinds
    }


def convert(
    text: str, options: Mapping[str, Option], owner: str, elsewhere: Mapping[str, str]
) -> dict[str, Any]:
    """Splits `text` and gives each value the type its option asks for.

    Args:
        text: the whole of optim_args.
        options: the valid keys.
        owner: the optimizer for error messages: `optim='adamnx'`.
        elsewhere: keys that are set by a field of TrainingArguments instead, with the name of that field.

    Returns:
        The values by key.

    Raises:
        ValueError: a key is not valid (the message names the nearest one and all valid ones), a value has
            the wrong type, or the text cannot be split.
    """
    values = {}
    for key, raw in split(text).items():
        if key in elsewhere:
            raise ValueError(
                f"optim_args: {key!r} is not set here but by TrainingArguments({elsewhere[key]}={raw})"
            )
        if key not in options:
            raise ValueError(f"optim_args: {explain_unknown(key, options, owner, elsewhere)}")
        hint, default = options[key]
        if hint is Any and default not in (None, inspect.Parameter.empty):
            hint = type(default)
        fits, value = _fit(raw, _read_literal(raw), hint)
        if not fits:
            raise ValueError(f"optim_args: {key}={raw} does not fit {owner}: {key} is {_describe(hint)}")
        values[key] = value
    return values


def explain_unknown(key: Any, options: Iterable[str], owner: str, elsewhere: Iterable[str]) -> str:
    """Returns the message that `key` is none of `options`, with the nearest and all not set `elsewhere`."""
    valid = sorted(set(options) - set(elsewhere))
    near = difflib.get_close_matches(str(key), valid, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"{key!r} is not an option of {owner}.{guess} Valid: {', '.join(valid)}"


def _read_literal(raw: str) -> Any:
    if raw.lower() in _WORDS:
        return _WORDS[raw.lower()]
    try:
        return ast.literal_eval(raw)
    except (ValueError, SyntaxError):
        return raw


def _list_alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fit(raw: str, value: Any, hint: Any) -> tuple[bool, Any]:
    """Returns whether `value`, written as `raw`, is of type `hint`, and the value converted to that type."""
    for kind in sorted(_list_alternatives(hint), key=lambda kind: kind is str):  # str takes anything: last
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if kind is Any:
            return True, value
        if kind in (None, type(None)):
            if value is None:
                return True, None
        elif origin is Literal:
            if raw in arguments or value in arguments:
                return True, raw if raw in arguments else value
        elif kind is float:
            if raw.lower() in _INFINITE:  # Python has no literal for these
                return True, float(raw)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return True, float(value)
        elif kind is str:
            return True, value if isinstance(value, str) else raw
        elif kind in (tuple, list) or origin in (tuple, list):
            if isinstance(value, tuple | list):
                # tuple[X, ...] and list[X] repeat X; a bare tuple takes anything.
                items = arguments if arguments and arguments[-1] is not Ellipsis and origin is tuple else None
                item_hints = items or (arguments[0] if arguments else Any,) * len(value)
                if len(item_hints) == len(value):
                    fitted = [_fit(str(v), v, h) for v, h in zip(value, item_hints, strict=True)]
                    if all(fits for fits, _ in fitted):
                        return True, (list if list in (kind, origin) else tuple)(v for _, v in fitted)
        elif kind is int and isinstance(value, bool):  # a bool is an int to Python
            continue
        elif isinstance(kind, type) and isinstance(value, kind):
            return True, value
    return False, None


def _describe(hint: Any) -> str:
    names = []
    for kind in _list_alternatives(hint):
        if kind in _DESCRIPTIONS:
            names.append(_DESCRIPTIONS[kind])
        elif typing.get_origin(kind) is Literal:
            names += [str(value) for value in typing.get_args(kind)]
        elif isinstance(kind, type) and not typing.get_args(kind) and kind.__name__ in ("Tensor", "dtype"):
            continue  # cannot be written on a command line
        else:
            names.append(str(kind).removeprefix("<class '").removesuffix("'>"))
    return " or ".join(names)
