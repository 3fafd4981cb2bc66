"""The pictures of a comparison."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from adamnx_hf.catalog import find_decay
from adamnx_hf.common.drawing import PALETTE, canvas
from adamnx_hf.common.text import MINUS
from adamnx_hf.studies.decay import newest_weights, shares
from adamnx_hf.studies.tables import format_field

__all__ = ["draw", "draw_decay", "draw_sweep"]


def draw(path: Path, content: dict[str, Any]) -> None:
    """Draws curves with bands over the seeds, and the paired differences with their intervals.

    Runs that were evaluated once have a dot a seed in the place of a curve.

    Args:
        path: where the PNG is written.
        content: comparison.json's.
    """
    metrics, contenders = list(content["metrics"]), content["contenders"]
    pairs = sum(item["metric"] == metrics[0] for item in content["comparisons"])
    lower = 0.8 + 0.55 * pairs
    size = (max(4.4 * len(metrics), 7), 4.4 + lower)
    once = all(len(run["per_epoch"]) == 1 for one in contenders for run in one["runs"])
    with canvas(
        path, 2, len(metrics), size=size, squeeze=False, gridspec_kw={"height_ratios": [3.4, lower]}
    ) as (figure, axes):
        for column, metric in enumerate(metrics):
            top, bottom = axes[:, column]
            for i, one in enumerate(contenders):
                (_draw_dots if once else _draw_curves)(top, i, one, metric, column == 0)
            top.set(xlabel="step", title=format_field(metric).replace("eval ", "").capitalize())
            if once:
                top.set(xlabel="after the last step", xticks=[], xlim=(-0.7, len(contenders) - 0.3))
            _draw_differences(bottom, content, metric)
            if column:
                bottom.tick_params(labelleft=False)
        figure.suptitle(_title(content, "each" if once else "range"), fontsize=12)
        columns = 1 if any(len(one["label"]) > 40 for one in contenders) else min(len(contenders), 3)
        figure.legend(loc="outside lower center", ncols=columns, frameon=False)


def _title(content: dict[str, Any], spread: str) -> str:
    seeds = len(content["seeds"])
    title = f"{content['recipe']} · mean and {spread} of {seeds} seed{'s' * (seeds != 1)}"
    if content["smoke"]:
        title += " · smoke run: says nothing about the optimizers"
    if content.get("judged_on_training_rows"):
        title += " · judged on rows that were trained on"
    return title


def _values(one: dict[str, Any], metric: str) -> Any:
    """Returns a contender's values of a metric: (seeds, evaluations that all runs have)."""
    series = [[row.get(metric) for row in run["per_epoch"]] for run in one["runs"]]
    length = min(map(len, series))
    return np.array([row[:length] for row in series], dtype=float)


def _draw_dots(axes: Any, place: int, one: dict[str, Any], metric: str, labelled: bool) -> None:
    values, colour = _values(one, metric), PALETTE[place % len(PALETTE)]
    axes.plot([place] * len(values), values[:, 0], "o", color=colour, alpha=0.4, ms=6, mew=0)
    label = one["label"] if labelled else None
    axes.plot([place], values.mean(axis=0), "D", color=colour, ms=6, label=label)


def _draw_curves(axes: Any, place: int, one: dict[str, Any], metric: str, labelled: bool) -> None:
    values, colour = _values(one, metric), PALETTE[place % len(PALETTE)]
    length = values.shape[1]
    steps = [row["step"] for row in one["runs"][0]["per_epoch"][:length]]
    style = {"marker": "o" if length < 20 else None, "ms": 4, "label": one["label"] if labelled else None}
    # The first is drawn wider, so that it shows where another one covers it.
    axes.plot(steps, values.mean(axis=0), lw=3.2 if place == 0 else 1.6, color=colour, **style)
    if len(values) > 1:
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, lw=0)


def _draw_differences(axes: Any, content: dict[str, Any], metric: str) -> None:
    """Draws a line for each pair of contenders: a dot a seed, the mean, and its interval."""
    from matplotlib.ticker import MaxNLocator

    items = [item for item in content["comparisons"] if item["metric"] == metric]
    labels = [one["label"] for one in content["contenders"]]
    axes.axvline(0, color="#444444", linewidth=1)
    for place, item in enumerate(items):
        y, colour = -place, PALETTE[labels.index(item["second"]) % len(PALETTE)]
        dots = [value for value in item["differences"] if value is not None]
        axes.plot(dots, [y] * len(dots), "o", color=colour, alpha=0.4, ms=6, mew=0)
        if item["mean"] is not None:
            if item["low"] is not None:
                axes.plot([item["low"], item["high"]], [y, y], color=colour, lw=2)
            axes.plot([item["mean"]], [y], "D", color=colour, ms=6)
    firsts = {item["first"] for item in items}
    names = [f"{MINUS} {item['second']}" for item in items]
    if len(firsts) > 1:
        names = [f"{item['first']} {name}" for item, name in zip(items, names, strict=True)]
    axes.set(
        yticks=[-i for i in range(len(items))],
        yticklabels=[textwrap.fill(name, 26) for name in names],
        ylim=(-len(items) + 0.5, 0.5),
        xlabel=f"{items[0]['better']} is better",
    )
    start = f"{firsts.pop()} {MINUS} …" if len(firsts) == 1 else "Differences"
    axes.set_title(f"{start}, by seed,\nwith mean and 95 % t interval", fontsize=9, weight="normal")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:.3g}")
    axes.grid(axis="y", visible=False)


def draw_sweep(path: Path, content: dict[str, Any]) -> None:
    """Draws the metric over each swept field: means over the sweep's seeds, their errors, and the choice.

    Of several fields a curve has the others as they were chosen. Without a sweep, or where its values are no
    positive numbers, nothing is drawn.

    Args:
        path: where the PNG is written.
        content: comparison.json's.
    """
    curves: dict[str, list[Any]] = {}
    for i, one in enumerate(content["contenders"]):
        for field in one["chosen"]:
            points = _line_through_choice(one, field, content["chosen_by"])
            if len(points) > 1 and min(points) > 0:
                curves.setdefault(field, []).append((PALETTE[i % len(PALETTE)], one, points))
    if not curves:
        return
    with canvas(path, 1, len(curves), size=(6.4 * len(curves), 5), squeeze=False) as (figure, axes):
        for field, axis in zip(curves, axes[0], strict=True):
            for colour, one, points in curves[field]:
                rates = sorted(points)
                means = [float(np.mean(points[rate])) for rate in rates]
                errors = [_standard_error(points[rate]) for rate in rates]
                label = one["label"] if axis is axes[0, 0] else None
                axis.errorbar(rates, means, errors, color=colour, marker="o", ms=4, capsize=2, label=label)
                chosen = float(one["chosen"][field])
                axis.plot([chosen], [means[rates.index(chosen)]], "D", color=colour, ms=9, mfc="none")
            axis.set(xscale="log", xlabel=format_field(field), ylabel=format_field(content["chosen_by"]))
        figure.suptitle(f"{content['recipe']} · sweep, mean and standard error, with the chosen values")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)


def _standard_error(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0


def _line_through_choice(one: dict[str, Any], field: str, metric: str) -> dict[float, list[float]]:
    """Returns a metric's values at each value of a swept field, with the others as a contender chose them."""
    points: dict[float, list[float]] = {}
    for row in one["sweep"]:
        others = all(row["values"][key] == value for key, value in one["chosen"].items() if key != field)
        try:
            number = float(row["values"][field])
        except ValueError:
            return {}
        if others and None not in row[metric]:
            points[number] = row[metric]
    return points


def draw_decay(path: Path, content: dict[str, Any]) -> None:
    """Draws how much of g² entered v at each step of these runs, and which steps v is made of at their end.

    Contenders without such a second moment are left out; without any, nothing is drawn.

    Args:
        path: where the PNG is written.
        content: comparison.json's.
    """
    shown = []
    for i, one in enumerate(content["contenders"]):
        schedule = one["beta2_schedule"] or find_decay(one["optimizer"])
        if schedule and one["betas"] and one["steps"] > 1:
            shown.append((PALETTE[i % len(PALETTE)], one, schedule, one["betas"][1]))
    if not shown:
        return
    with canvas(path, 1, 2, size=(10, 4.2)) as (_, (left, right)):
        for i, (colour, one, schedule, beta2) in enumerate(shown):
            steps = np.arange(1, one["steps"] + 1)
            style = {
                "color": colour,
                "lw": 3.5 - 2 * i / len(shown),
                "label": f"{one['label']} (β2 {beta2:.4g})",
            }
            left.plot(steps, newest_weights(schedule, steps, beta2), **style)
            right.plot(steps / steps[-1], np.cumsum(shares(schedule, one["steps"], beta2)), **style)
        left.set(
            xscale="log", yscale="log", xlabel="step t", title=f"How much of g² enters v: 1 {MINUS} β̂2,t"
        )
        right.set(
            xlabel="part of the run, from its first step on",
            title="Share of v at the end that came from it",
            ylim=(0, 1.02),
        )
        left.legend(frameon=False, fontsize=9, loc="lower left")
