"""The parts of tables that studies share: means with their spread, and paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from adamnx_hf.common.text import EN_DASH, MINUS, format_signed, format_table

__all__ = ["format_differences", "format_field", "format_mean"]


def format_field(name: str) -> str:
    """Returns the name of a field or a metric in words: `eval_loss` as `eval loss`."""
    return name.replace("_", " ")


def format_mean(values: Sequence[float], mean: str = ".5g", spread: str = ".2g") -> str:
    """Returns the mean of `values` and, if there are several, their standard deviation.

    Args:
        values: at least one.
        mean, spread: how the two numbers are formatted.
    """
    text = f"{statistics.fmean(values):{mean}}"
    return f"{text} ± {statistics.stdev(values):{spread}}" if len(values) > 1 else text


def format_differences(
    rows: Sequence[dict[str, Any]], heading: str, describe: Callable[[dict[str, Any]], str]
) -> str:
    """Returns a Markdown table of paired differences.

    Args:
        rows: of :func:`adamnx_hf.studies.paired.compare_pairs`, each with its `verdict`.
        heading: the second column's.
        describe: returns what stands there for a row.
    """
    head = ["difference", heading, "mean", "95 % t interval", "paired by seed"]
    body = [
        [
            f"{row['first']} {MINUS} {row['second']}",
            describe(row),
            format_signed(row["mean"]),
            EN_DASH if row["low"] is None else f"{format_signed(row['low'])} to {format_signed(row['high'])}",
            row["verdict"],
        ]
        for row in rows
    ]
    return format_table([head, *body])
