"""Numbers, names of metrics and Markdown tables, as every report writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["EN_DASH", "MINUS", "format_metric", "format_number", "format_signed", "format_table"]

MINUS = "\N{MINUS SIGN}"
#: The cell of a table where there is no value.
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
        rows: lists of cells, all of the same length. A bar in a cell is escaped. The head may hold empty
            cells.
        align: `l` or `r` for each column, from the first; columns that are not named are left as they are.
        padded: whether spaces stand around the dashes below the head, too.
    """
    head, *body = rows
    rules = ["---:" if side == "r" else "---" for side in align.ljust(len(head))]
    rule = _row(rules) if padded else f"|{'|'.join(rules)}|"
    return "\n".join([_row(head).replace("|  |", "| |"), rule, *map(_row, body)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
