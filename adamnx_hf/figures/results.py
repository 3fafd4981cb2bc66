"""The figures of the pages of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.common.drawing import BLUE, PALETTE, canvas
from adamnx_hf.optim.schedules import horizon
from adamnx_hf.studies import jitter
from adamnx_hf.studies.compare import charts as compare
from adamnx_hf.studies.sharpness import charts as sharpness

__all__ = ["draw_gains", "draw_protocols", "draw_results", "draw_tuned", "draw_twins"]


def draw_gains(path: Path, contents: Sequence[dict[str, Any]]) -> None:
    """Draws how much lower AdamNX's loss ends than with Adam's decay, against the horizons in a run.

    Args:
        path: where the PNG is written.
        contents: those of comparison.json, one for each length of run; the first contender has Adam's decay.
    """
    with canvas(path, size=(8, 4.6)) as (_, axes):
        for content, colour in zip(contents, PALETTE, strict=False):
            steps = content["contenders"][0]["steps"]
            beta2 = {one["label"]: one["betas"][1] for one in content["contenders"]}
            items = [item for item in content["comparisons"] if item["metric"] == "eval_loss"]
            items.sort(key=lambda item: horizon(beta2[item["second"]]), reverse=True)
            x = [steps / horizon(beta2[item["second"]]) for item in items]
            label = f"{content['recipe']}, {steps} steps"
            axes.plot(x, [item["mean"] for item in items], "o-", color=colour, lw=1, label=label)
            for place, item in zip(x, items, strict=True):
                axes.plot([place] * 2, [item["low"], item["high"]], color=colour, lw=2.5, alpha=0.7)
        axes.axhline(0, color="#444444", lw=1)
        note = f"mean of {len(contents[0]['seeds'])} pairs, and its 95 % t interval"
        axes.set(
            xscale="log",
            xlabel=f"horizons in the run, T/H ({note})",
            title="How much lower the eval loss ends with AdamNX than with Adam's decay",
        )
        axes.legend(frameon=False)


def draw_twins(path: Path, content: dict[str, Any]) -> None:
    """Draws the eval loss of one seed's runs, and how far each is from the first contender's.

    Args:
        path: where the PNG is written.
        content: comparison.json's.
    """
    with canvas(path, 1, 2, size=(10, 4.2)) as (_, (left, right)):
        curves = [one["runs"][0]["per_epoch"] for one in content["contenders"]]
        losses = [[row["eval_loss"] for row in rows] for rows in curves]
        steps = [row["step"] for row in curves[0]]
        for i, (one, values) in enumerate(zip(content["contenders"], losses, strict=True)):
            left.plot(steps, values, color=PALETTE[i], lw=5 - 1.8 * i, label=one["label"])
            if i:
                away = [abs(a - b) for a, b in zip(values, losses[0], strict=True)]
                right.plot(steps, away, "o-", color=PALETTE[i], lw=1.5, label=one["label"])
        left.set(xlabel="step", title="Eval loss")
        right.set_yscale("symlog", linthresh=1e-6)  # it may be exactly 0
        right.set(xlabel="step", title="Distance from the first one's", ylim=(-1e-7, None))
        left.legend(frameon=False, fontsize=9)


#: The names for readers, and the colours, of `.ci/card`'s contenders.
_ON_A_CARD = {
    "adamw": ("AdamW", PALETTE[1]),
    "adamw_scaled": ("AdamW, memory scaled to the run", PALETTE[5]),
    "adamnx_auto": ("AdamNX, horizon=auto", BLUE),
    "graft": ("AdamW's direction, AdamNX's length", PALETTE[2]),
    "adafactor_decay": ("Adafactor's decay", PALETTE[3]),
}


def draw_tuned(path: Path, content: dict[str, Any]) -> None:
    """Draws a sweep's curves over the learning rate, and the differences at each contender's best rate.

    Args:
        path: where the PNG is written.
        content: a verdict of `.ci/card`, with accuracy in percent as its primary metric.
    """
    with canvas(path, 1, 2, size=(12, 4.8)) as (_, (left, right)):
        _draw_sweep(left, content)
        _draw_card_differences(right, content)
        right.set_title("At each one's best rate, on the test rows")


def _draw_sweep(axes: Any, content: dict[str, Any]) -> None:
    """Draws each contender's metric over the learning rate: a dot a seed, a line through the means."""
    for one in content["contenders"]:
        name, colour = _ON_A_CARD[one["name"]]
        rates = [point["learning_rate"] for point in one["sweep"]]
        means = [sum(point["values"]) / len(point["values"]) for point in one["sweep"]]
        axes.plot(rates, means, color=colour, lw=2, label=name)
        for point in one["sweep"]:
            axes.plot(
                [point["learning_rate"]] * len(point["values"]), point["values"], ".", color=colour, ms=5
            )
        axes.plot(one["learning_rate"], max(means), "o", color=colour, ms=9, mec="white", zorder=5)
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{1000 * rate:g}" for rate in rates], minor=False)
    axes.set_xticks([], minor=True)
    axes.set(
        xlabel="peak learning rate, thousandths",
        ylabel="top-1 accuracy on held-out rows, %",
        title=f"The sweep: {len(one['sweep'][0]['seeds'])} seeds, their mean, and the rate that was chosen",
    )
    axes.legend(frameon=False, fontsize=9, loc="lower left")


def _draw_card_differences(axes: Any, content: dict[str, Any]) -> None:
    """Draws each declared difference: a dot a seed, the mean and its interval, over what counts as none."""
    items = content["differences"]
    by_name = {one["name"]: one for one in content["contenders"]}
    for place, item in enumerate(items):
        first, second = (
            {run["seed"]: run[content["judged_by"]] for run in by_name[item[key]]["runs"]}
            for key in ("first", "second")
        )
        colour = _ON_A_CARD[item["first"]][1]
        pairs = [first[seed] - second[seed] for seed in first]
        axes.plot(pairs, [place] * len(pairs), ".", color="#333333", ms=4, zorder=4)
        axes.plot([item["low"], item["high"]], [place] * 2, color=colour, lw=3, alpha=0.75)
        axes.plot(item["mean"], place, "o", color=colour, ms=8, mec="white", zorder=5)
    least = content["settings"]["smallest_effect"]
    axes.axvspan(-least, least, color="#eeeeee", zorder=0)
    axes.axvline(0, color="#444444", lw=1)
    axes.set_yticks(
        range(len(items)),
        [f"{_ON_A_CARD[item['first']][0]}\nminus {_ON_A_CARD[item['second']][0]}" for item in items],
        fontsize=9,
    )
    axes.grid(axis="y", visible=False)
    axes.set(ylim=(len(items) - 0.4, -0.6), xlabel=f"difference in top-1, points (grey: under {least:g})")


def draw_protocols(path: Path, contents: Sequence[dict[str, Any]]) -> None:
    """Draws how much the choice of the learning rate matters beside the choice of the optimizer.

    Args:
        path: where the PNG is written.
        contents: verdicts of `.ci/card`: under the paper's protocol, and with tuned rates.
    """
    with canvas(path, 1, 2, size=(12, 4.2)) as (_, (left, right)):
        rows = [(content, one) for content in contents for one in content["contenders"]]
        for place, (content, one) in enumerate(rows):
            colour, values = _ON_A_CARD[one["name"]][1], [run[content["judged_by"]] for run in one["runs"]]
            left.barh(place, sum(values) / len(values), color=colour, alpha=0.75, height=0.62)
            left.plot(values, [place] * len(values), ".", color="#333333", ms=5)
        names = [f"{_ON_A_CARD[one['name']][0]}, {one['learning_rate']:g}" for _, one in rows]
        left.set_yticks(range(len(rows)), names, fontsize=9)
        left.invert_yaxis()
        left.grid(axis="y", visible=False)
        left.set(
            xlabel="top-1 accuracy on the test rows, % (a dot a seed)",
            title="Optimizer, and its peak learning rate",
        )
        _draw_card_differences(right, contents[0])
        right.set_title("All at the paper's 0.01")


def draw_results(folder: Path) -> list[Path]:
    """Draws the figures of the pages of results from the data beside them.

    Args:
        folder: `docs/results`.

    Returns:
        The PNGs written.
    """

    def read(name: str) -> Any:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    lengths = sorted((folder / "horizon").glob("*.json"), key=lambda path: int(path.stem))
    card = [read(f"cifar100_h200/{name}.json") for name in ("paper_protocol", "tuned")]
    figures: list[tuple[str, Callable[[Path, Any], None], Any]] = [
        ("ablation/comparison.png", compare.draw, read("ablation/comparison.json")),
        ("ablation/decay.png", compare.draw_decay, read("ablation/comparison.json")),
        ("adax/twins.png", draw_twins, read("adax/twins.json")),
        ("cifar100_h200/tuned.png", draw_tuned, read("cifar100_h200/tuned.json")),
        ("cifar100_h200/protocols.png", draw_protocols, card),
        ("flatness/sharpness.png", sharpness.draw, read("flatness/sharpness.json")),
        ("horizon/gains.png", draw_gains, [read(f"horizon/{path.name}") for path in lengths]),
        ("jitter/jitter.png", jitter.draw, read("jitter/jitter.json")),
        ("learning_rate/tuned.png", compare.draw_sweep, read("learning_rate/tuned.json")),
        ("learning_rate/warmup.png", compare.draw_sweep, read("learning_rate/warmup.json")),
    ]
    for name, draw, data in figures:
        draw(folder / name, data)
    return [folder / name for name, _, _ in figures]
