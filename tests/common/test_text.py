"""Tables as Markdown."""

import pytest

from adamnx_hf.common.text import format_table


@pytest.mark.parametrize(("padded", "rule"), [(False, "|---|---:|"), (True, "| --- | ---: |")])
def test_a_table(padded, rule):
    rows = [("name", "value"), ("a|b", "1.5")]
    assert format_table(rows, "lr", padded=padded).splitlines() == [
        "| name | value |",
        rule,
        "| a\\|b | 1.5 |",
    ]
