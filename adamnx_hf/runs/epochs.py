"""A run's metrics by epoch: as rows of a table, and the best and the last of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from adamnx_hf.tasks.base import Metric

__all__ = ["find_best_and_last", "list_epochs"]


def list_epochs(
    log_history: Sequence[Mapping[str, Any]], metrics: Sequence[str], seconds: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Makes a row of each evaluation in a Trainer's log.

    Args:
        log_history: the log, `trainer.state.log_history`.
        metrics: names of metrics, without `eval_`.
        seconds: seconds of training alone, by the step at which an epoch ended.

    Returns:
        Rows of `epoch`, `step`, `learning_rate`, `train_loss` (mean of what was logged since the row before,
        weighted by its steps), `eval_loss`, the metrics and `train_seconds`. Values that are not known are
        None.
    """
    rows: list[dict[str, Any]] = []
    losses: list[tuple[int, float]] = []
    last_step, rate = 0, None
    for entry in log_history:
        step = entry.get("step", 0)
        if "loss" in entry:
            losses.append((step - last_step, entry["loss"]))
            last_step, rate = step, entry.get("learning_rate")
        if "eval_loss" in entry:
            weight = sum(steps for steps, _ in losses)
            row = {
                "epoch": round(entry["epoch"], 4),
                "step": step,
                "learning_rate": rate,
                "train_loss": sum(n * loss for n, loss in losses) / weight if weight else None,
                "eval_loss": entry["eval_loss"],
                **{name: entry.get(f"eval_{name}") for name in metrics},
                "train_seconds": round(seconds[step], 2) if step in seconds else None,
            }
            if rows and rows[-1]["step"] == step:  # evaluated again, with nothing trained in between
                before = rows.pop()
                row["train_loss"] = before["train_loss"] if row["train_loss"] is None else row["train_loss"]
            losses = []
            rows.append(row)
    return rows


def find_best_and_last(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Finds each metric's best value with its epoch, and the last epoch's value.

    Args:
        rows: of :func:`list_epochs`.
        metrics: the task's. Those that no row has are left out.

    Returns:
        `best`, `best_epoch` and `last` by the metric's name.
    """
    result = {}
    for name, metric in metrics.items():
        known = [row for row in rows if row.get(name) is not None]
        if known:
            numbers = [row for row in known if not math.isnan(row[name])]  # nan is never the best
            best = (min if metric.best == "min" else max)(numbers or known, key=lambda row: row[name])
            result[name] = {"best": best[name], "best_epoch": best["epoch"], "last": known[-1][name]}
    return result
