"""Plain values from text that somebody else may have written: words, numbers, lists and mappings.

YAML and JSON can hold more than a recipe needs: dates, tags, numbers of thousands of digits, brackets in
brackets, aliases of aliases. Reading any such text here takes little time and memory, and ends in plain
values or in a ValueError of one line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from typing import Any

import yaml

__all__ = ["LONGEST", "plain_value", "read_json", "read_yaml", "walk"]

#: The most bytes that a text may have.
LONGEST = 100_000
# How many lists and mappings may stand within each other.
_DEEPEST = 20
# The most values in all; an alias counts as the values that it stands for.
_MOST = 10_000
# The most characters of a number.
_DIGITS = 100
_TOO_DEEP = f"more than {_DEEPEST} lists and mappings stand within each other"
_TOO_MANY = f"holds more than {_MOST:,} values"

_TAG = "tag:yaml.org,2002:"
_SHOWN = {"int": "whole number", "float": "number", "bool": "truth value"}
_KINDS = ("bool", "float", "int", "map", "merge", "null", "seq", "str")


def read_yaml(text: str) -> Any:
    """Reads the plain values that a YAML document holds.

    Args:
        text: the document.

    Raises:
        ValueError: the text is too long, is no YAML, holds a key twice, or holds other than plain values.
    """
    _check_length(len(text.encode("utf-8", "surrogatepass")))
    try:
        _check_events(text)
        loader = _Loader(text)
        tree = loader.get_single_node()
        if tree is None:
            return None
        _check_keys(tree)
        return loader.construct_document(tree)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{_place(error.problem_mark)}{error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def read_json(text: str) -> Any:
    """Reads JSON as :func:`read_yaml` reads YAML.

    Raises:
        ValueError: see there.
    """
    _check_length(len(text))

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"{twice[0]!r} is given twice")
        return dict(pairs)

    def whole(digits: str) -> int:
        _check_digits(digits)
        return int(digits)

    try:
        value = json.loads(text, object_pairs_hook=mapping, parse_int=whole)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    for count, (path, item) in enumerate(walk(value), 1):
        if isinstance(item, str):
            item.encode("utf-8")
        if len(path) > _DEEPEST:
            raise ValueError(_TOO_DEEP)
        if count > _MOST:
            raise ValueError(_TOO_MANY)
    return value


def walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields every value within `value`, itself first, with the keys and places that lead to it."""
    yield path, value
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        yield from walk(item, (*path, key))


def plain_value(value: Any) -> Any:
    """Returns the value of an Enum's member, as Transformers' arguments hold them; else `value` as it is."""
    return value.value if isinstance(value, Enum) else value


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for plain values alone."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, OverflowError):
            kind = _SHOWN.get(node.tag.removeprefix(_TAG), "value")
            shown = f"{str(node.value)[:40]!r} is no {kind}; to keep it as text, put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, shown, node.start_mark) from None

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        text.encode("utf-8")  # half of a surrogate pair, which an escape can write, is no text
        return text

    def plain_number(self, node: Any) -> Any:
        """Reads a number; 1:30, in which YAML sees ninety, is read as text."""
        text = self.construct_scalar(node)
        if ":" in str(text):
            return text
        _check_digits(str(text))
        return self.construct_yaml_int(node) if node.tag == f"{_TAG}int" else self.construct_yaml_float(node)

    def not_plain(self, node: Any) -> Any:
        """Refuses dates, sets, Python's objects and the like, which only a tag can ask for."""
        tag = node.tag.replace(_TAG, "!!")
        raise yaml.constructor.ConstructorError(
            None, None, f"{tag} is no kind of value for a recipe; to keep it as text, put it in quotes",
            node.start_mark,
        )  # fmt: skip


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in _KINDS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    **{f"{_TAG}{kind}": yaml.SafeLoader.yaml_constructors.get(f"{_TAG}{kind}") for kind in _KINDS},
    f"{_TAG}int": _Loader.plain_number,
    f"{_TAG}float": _Loader.plain_number,
    None: _Loader.not_plain,
}
del _Loader.yaml_constructors[f"{_TAG}merge"]  # `<<` is resolved in mappings, and is no value by itself


def _check_events(text: str) -> None:
    """Counts values before any is built: aliases of aliases, or brackets in brackets, would take for ever.

    PyYAML's parser is lazy, so that a text that is too deep or holds too much is never read to its end.
    """
    total = 0
    open_: list[tuple[str | None, int]] = []  # each open collection's anchor, and how many values precede it
    sizes: dict[str, int] = {}  # how many values stand behind an anchor
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                raise yaml.MarkedYAMLError(
                    problem=f"*{event.anchor} stands within itself", problem_mark=event.start_mark
                )
            total += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if len(open_) > _DEEPEST:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=event.start_mark)
        if total > _MOST:
            raise yaml.MarkedYAMLError(problem=_TOO_MANY, problem_mark=event.start_mark)


def _check_keys(tree: yaml.Node) -> None:
    """Checks that no mapping, at any depth, has a key twice: a YAML parser would take the last one."""
    nodes, seen = [tree], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias of a node that has been looked at
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = set()
            for key, value in node.value:
                nodes += [key, value]
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in keys:
                        raise yaml.MarkedYAMLError(
                            problem=f"{key.value} is given twice", problem_mark=key.start_mark
                        )
                    keys.add((key.tag, key.value))


def _check_length(length: int) -> None:
    if length > LONGEST:
        raise ValueError(f"has {length:,} bytes, and a recipe has at most {LONGEST:,}")


def _check_digits(text: str) -> None:
    if len(text) > _DIGITS:
        raise ValueError(f"a number of {len(text):,} characters is too long")


def _place(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
