"""The table that the demo prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from adamnx_hf.common.text import MINUS
from adamnx_hf.studies.demo.study import DATA, MODEL, Comparison, Demo, Run, label_of, values_of
from adamnx_hf.studies.paired import Difference
from adamnx_hf.studies.tables import format_mean

__all__ = ["make_table"]


def make_table(demo: Demo, runs: Sequence[Run], comparisons: Sequence[Comparison]) -> Any:
    """Returns the optimizers and their differences as a table of rich's."""
    from rich.table import Table

    chosen_for = ", chosen for AdamW." if demo.rate_is_adamws else "."
    table = Table(
        "optimizer",
        "test accuracy",
        "test loss",
        "s per run",
        title=f"{DATA}, {MODEL}: after {demo.epochs} epochs",
        caption=f"Mean ± sd over {len(demo.seeds)} seeds; differences paired by seed [95 % t interval].\n"
        f"Learning rate {demo.learning_rate:g} for all{chosen_for}",
    )
    for optim in demo.optims:
        mine = [run for run in runs if run.optim == optim]
        betas = f" ({', '.join(f'{beta:g}' for beta in mine[0].betas)})" if mine[0].betas else ""
        table.add_row(
            label_of(optim) + betas,
            format_mean(values_of(runs, optim, "test_accuracy"), ".2%", ".2%"),
            format_mean(values_of(runs, optim, "test_loss"), ".4f", ".4f"),
            f"{statistics.fmean(run.seconds for run in mine):.1f}",
        )
    if comparisons:
        table.add_section()
    for item in comparisons:
        table.add_row(
            f"{item.first} {MINUS} {item.second}",
            _format_interval(item.accuracy, 100, ".2f", " points"),
            _format_interval(item.loss, 1, ".4f"),
            "",
        )
    return table


def _format_interval(difference: Difference, scale: float, form: str, unit: str = "") -> str:
    mean = f"{difference.mean * scale:+{form}}{unit}"
    if difference.low is None or difference.high is None:
        return mean
    return f"{mean}\n[{difference.low * scale:+{form}}, {difference.high * scale:+{form}}]"
