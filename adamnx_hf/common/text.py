"""Numbers, names of metrics and Markdown tables, as every report writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["EN_DASH", "MINUS", "format_metric", "format_number", "format_signed", "format_table"]

MINUS = "\N{MINUS SIGN}"
#: What a table shows where there is no value.
EN_DASH = "\N{EN DASH}"


def format_number(value: float | None) -> str:
    """Returns `value` with five digits; a dash for None."""
    return EN_DASH if value is None else f"{value:.5g}"


def format_signed(value: float | None) -> str:
    """Returns `value` with its sign and three digits; a dash for None."""
    return EN_DASH if value is None else f"{value:+.3g}".replace("-", MINUS)


def format_metric(name: str) -> str:
    """Returns a metric's name in words: `top1_error` as `top-1 error`."""
    return name.replace("_", " ").replace("top", "top-")


def format_table(rows: Iterable[Sequence[str]], align: str = "", *, padded: bool = False) -> str:
    """Returns a Markdown table, whose first row is its head.

    Args:
        rows: of cells, all of the same length. A bar in a cell is escaped; a cell of the head may be empty.
        align: `l` or `r` for each column, from the first; columns that are not named are left as they are.
        padded: whether spaces stand around the dashes below the head, too.
    """
    head, *body = rows
    rules = ["---:" if side == "r" else "---" for side in align.ljust(len(head))]
    heads = _row(head).replace("|  |", "| |")
    return "\n".join([heads, _row(rules) if padded else f"|{'|'.join(rules)}|", *map(_row, body)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
