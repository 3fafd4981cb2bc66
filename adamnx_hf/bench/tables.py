"""A benchmark's report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adamnx_hf.bench.cases import CASES
from adamnx_hf.bench.contestants import label_contestant
from adamnx_hf.common.text import format_table

__all__ = ["compute_bytes_each", "format_or_dash", "format_report"]

_SPEEDS = ["GB/s", "share of copy bandwidth"]


def format_report(report: Mapping[str, Any], *, memory: bool = False) -> str:
    """Returns the report: the command, the kernel, a table for each case, and what is missing.

    Args:
        report: the content of the report's JSON.
        memory: whether the tables show bytes a parameter first.
    """
    reason = report["why_not_triton"]
    why = f", for the Triton kernel cannot serve: {reason}" if reason else ""
    lines = [f"Command: `{report['command']}`", "", f"AdamNX's kernel: {report['kernel']}{why}.", ""]
    if bandwidth := report.get("copy_gb_per_s"):
        lines += [f"A copy within the card's memory moves {bandwidth:,.0f} GB/s.", ""]
    for result in report["results"]:
        case = CASES[result["case"]]
        stored = result.get("state", case.dtype)
        lines += [f"## {case.what}: {result['parameters'] / 1e6:,.1f} M parameters, {stored}", ""]
        if memory:
            lines += ["Bytes a parameter:", ""]
        rows = _list_memory_rows(result) if memory else _list_time_rows(result)
        lines += [format_table(rows, "l" + "r" * (len(rows[0]) - 1)), ""]
        lines += [f"Failed, {line}.\n" for line in result["failed"]]
    lines += [f"Left out, {line}." for line in report["left_out"]]
    return "\n".join(lines).rstrip()


def _list_time_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Returns the head and the rows of a table of times."""
    on_card = _is_of_card(result)
    head = ["tuning" if "state" in result else "optimizer", "ms", "p10 to p90", "of torch fused"]
    table = [[*head, *_SPEEDS, "host µs", "state MB", "temporary MB"] if on_card else head]
    for row in result["optimizers"]:
        cells = [_label(row), *_format_times(row), format_or_dash(row["ratio"], "{:.2f}")]
        if on_card:
            cells += [
                *_format_speeds(row),
                f"{row['host_us']:,.0f}",
                format_or_dash(row["state_bytes"], "{:,.0f}", 1e6),
                format_or_dash(row["peak_bytes"], "{:,.1f}", 1e6),
            ]
        table.append(cells)
    return table


def _list_memory_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Returns the head and the rows of a table of bytes a parameter."""
    on_card = _is_of_card(result)
    head = ["optimizer", "state", "temporary", "parameter, gradient and both", "time, of torch fused"]
    table = [[*head, "ms", "p10 to p90", *_SPEEDS] if on_card else head]
    for row in result["optimizers"]:
        each = compute_bytes_each(row, result)
        sizes = (each["state"], each["temporary"], sum(each.values()))
        cells = [_label(row), *(f"{size:.2f}" for size in sizes), format_or_dash(row["ratio"], "{:.2f}")]
        table.append([*cells, *_format_times(row), *_format_speeds(row)] if on_card else cells)
    return table


def _is_of_card(result: Mapping[str, Any]) -> bool:
    return bool(result["optimizers"]) and result["optimizers"][0]["host_us"] is not None


def _label(row: Mapping[str, Any]) -> str:
    return label_contestant(row["optimizer"]) + (" (shipped)" if row.get("shipped") else "")


def _format_times(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['ms']:.3f}", f"{row['p10_ms']:.3f} to {row['p90_ms']:.3f}"]


def _format_speeds(row: Mapping[str, Any]) -> list[str]:
    return [
        format_or_dash(row.get("gb_per_s"), "{:,.0f}"),
        format_or_dash(row.get("share_of_copy"), "{:.0%}"),
    ]


def format_or_dash(value: float | None, form: str, unit: float = 1.0) -> str:
    """Returns `value / unit` as `form` has it; a hyphen for None."""
    return "-" if value is None else form.format(value / unit)


def compute_bytes_each(row: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, float]:
    """Returns the bytes a parameter at the peak of a step, by what they are for.

    Args:
        row: one contestant of a case.
        result: the case that the row is of.
    """
    import torch

    itemsize = getattr(torch, result.get("dtype") or CASES[result["case"]].dtype).itemsize
    count = result["parameters"]
    return {
        "parameter": itemsize,
        "gradient": itemsize,
        "state": row["state_bytes"] / count,
        "temporary": (row["peak_bytes"] or 0) / count,  # not measured while tuning
    }
