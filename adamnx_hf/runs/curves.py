"""Pictures of runs: losses, metrics and learning rate by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adamnx_hf.common.drawing import PALETTE, canvas
from adamnx_hf.common.text import format_metric
from adamnx_hf.runs.epochs import find_best_and_last
from adamnx_hf.tasks.base import Metric

__all__ = ["draw_runs"]


def draw_runs(
    path: Path, title: str, runs: Mapping[str, Sequence[Mapping[str, Any]]], metrics: Mapping[str, Metric]
) -> None:
    """Draws each run's losses, its metrics with the best epochs marked, and its learning rate.

    Args:
        path: of the picture, a PNG.
        title: of the picture.
        runs: the epochs of each run, see :func:`adamnx_hf.runs.epochs.list_epochs`, by the run's label, which
            may be empty.
        metrics: the task's, by name.

    Raises:
        OSError: the file cannot be written. A picture that was there before is unchanged.
    """
    from matplotlib.ticker import MaxNLocator

    with canvas(path, 1, 3, size=(13, 4.2)) as (figure, (losses, judged, rates)):
        for i, (label, rows) in enumerate(runs.items()):
            colour = PALETTE[i % len(PALETTE)]
            look = {"marker": "o" if len(rows) < 30 else None, "ms": 3}
            epochs = [row["epoch"] for row in rows]
            prefix = f"{label}, " if label else ""
            for key, name, line in (("train_loss", "training", "--"), ("eval_loss", "evaluation", "-")):
                losses.plot(
                    epochs, _list_values(rows, key), line, color=colour, label=f"{prefix}{name}", **look
                )
            _draw_metrics(judged, rows, metrics, prefix, colour if len(runs) > 1 else None)
            rates.plot(epochs, _list_values(rows, "learning_rate"), color=colour, **look)
        losses.set_title("Loss")
        judged.set_title("Metrics (star: best epoch)")
        rates.set_title("Learning rate, last logged in the epoch")
        if any((row["learning_rate"] or 0) > 0 for rows in runs.values() for row in rows):
            rates.set_yscale("log")
        for axes in (losses, judged, rates):
            if axes.lines and axes is not rates:
                axes.legend(frameon=False, fontsize=9)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.suptitle(title, fontsize=12)


def _draw_metrics(
    axes: Any,
    rows: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Metric],
    prefix: str,
    colour: str | None,
) -> None:
    """Draws the metrics of one run, each in a colour of its own if `colour` is None."""
    for j, (name, metric) in enumerate(metrics.items()):
        summary = find_best_and_last(rows, {name: metric}).get(name)
        if summary is None:  # the run does not have this metric
            continue
        tint = colour or PALETTE[j % len(PALETTE)]
        axes.plot(
            [row["epoch"] for row in rows],
            _list_values(rows, name),
            "-" if j == 0 else "--",
            color=tint,
            marker="o" if len(rows) < 30 else None,
            ms=3,
            label=f"{prefix}{format_metric(name)}, best {summary['best']:.2f}",
        )
        axes.plot([summary["best_epoch"]], [summary["best"]], "*", color=tint, ms=11)


def _list_values(rows: Sequence[Mapping[str, Any]], key: str) -> Any:
    return np.array([row.get(key) for row in rows], dtype=float)  # nan for None, which leaves a gap
