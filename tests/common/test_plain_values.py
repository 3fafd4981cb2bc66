"""YAML and JSON that somebody else has written: plain values, or one line, and soon."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamnx_hf.common.plain_values import read_json, read_yaml, walk

NINES = "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9 if i else 'x')}]\n" for i in range(40))
MERGES = "".join(
    f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9 if i else ['{x: y}'])}]}}\n" for i in range(40)
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a: 1\nb: [x, 2.5, yes, ~]", {"a": 1, "b": ["x", 2.5, True, None]}),
        ("day: 2020-01-01", {"day": "2020-01-01"}),
        ("day: 2020-99-99", {"day": "2020-99-99"}),
        ("hours: 1:30", {"hours": "1:30"}),
        ("a: =", {"a": "="}),
        ("a: &a {b: 1}\nc: *a\nd: {<<: *a, b: 2}", {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 2}}),
        ("", None),
    ],
)
def test_plain_values(text, values):
    assert read_yaml(text) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!int abc", "line 1, column 4: 'abc' is no whole number; to keep it as text, put it in quotes"),
        ("a: !!int ''", "'' is no whole number"),
        ("a: !!float x", "'x' is no number"),
        ("a: !!bool maybe", "'maybe' is no truth value"),
        ("a: !!timestamp 2020-01-01", "!!timestamp is no kind of value for a recipe"),
        ("a: !!binary aGk=", "!!binary is no kind of value"),
        ("a: !!set {x}", "!!set is no kind of value"),
        ("a: !!python/object/apply:os.system [ls]", "!!python/object/apply:os.system is no kind of value"),
        ("a: " + "9" * 6000, "is no whole number"),
        ("a: 0x" + "f" * 90_000, "is no whole number"),
        ("a: " + "[" * 20_000, "more than 20 lists and mappings stand within each other"),
        ("- " * 20_000, "more than 20 lists and mappings"),
        ("a: " + "{a: " * 20_000, "more than 20 lists and mappings"),
        ("a: &a [*a]", "line 1, column 8: *a stands within itself"),
        ("a: *b", "found undefined alias 'b'"),
        (NINES, "holds more than 10,000 values"),
        (MERGES, "holds more than 10,000 values"),
        ("a: [" + "1," * 10_001 + "]", "holds more than 10,000 values"),
        ("a: {b: {c: 1, d: 2, c: 3}}", "line 1, column 21: c is given twice"),
        ("? [a]\n: b", "found unhashable key"),
        ("a: 1\n---\nb: 2", "found another document"),
        ('a: "\\ud800"', "put it in quotes"),
        ("a: \x1b[2J", "special characters are not allowed"),
        ("#" + "x" * 100_000, "has 100,001 bytes, and a recipe has at most 100,000"),
    ],
)  # fmt: skip
def test_what_is_no_plain_value(text, message):
    started = time.perf_counter()
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_yaml(text)
    assert "\n" not in str(error.value)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"b": 1, "b": 2}}', "'b' is given twice"),
        ("[" * 90_000, "more than 20 lists and mappings"),
        ("[" * 25 + "]" * 25, "more than 20 lists and mappings"),
        ("9" * 6000, "a number of 6,000 characters is too long"),
        ("[" + "1," * 20_000 + "1]", "holds more than 10,000 values"),
        ('"\\ud800"', "surrogates not allowed"),
        ("{", "Expecting property name"),
        (" " * 100_001, "at most 100,000"),
    ],
)
def test_what_is_no_plain_json(text, message):
    with pytest.raises(ValueError, match=message):
        read_json(text)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!<>|%@'\"#?,. \n019~=\t", max_size=60))
def test_any_text_ends_in_plain_values_or_one_line(text):
    for read in (read_yaml, read_json):
        try:
            result = read(text)
        except ValueError as error:
            result = str(error).splitlines()
            assert len(result) == 1
        kinds = {type(item) for _, item in walk(result)}
        assert kinds <= {dict, list, str, int, float, bool, type(None)}
