"""The demo's picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adamnx_hf.common.drawing import PALETTE, RC, page
from adamnx_hf.common.text import MINUS
from adamnx_hf.studies.demo.study import DATA, MODEL, Demo, Run, label_of, values_of
from adamnx_hf.studies.paired import paired_difference

__all__ = ["draw"]

_STYLE = {**RC, "font.size": 11, "axes.titlesize": 12, "grid.color": "#e6e6e6"}

#: Values by optimizer and metric: (epochs, seeds).
_Values = Mapping[tuple[str, str], np.ndarray]


def draw(path: Path, demo: Demo, runs: Sequence[Run], data: Any, logits: np.ndarray) -> None:
    """Draws the curves, their differences, and the hardest test digits.

    Args:
        path: where the PNG is written.
        demo: what was trained.
        runs: all of them.
        data: the digits.
        logits: (test digits, classes), the first run's.
    """
    from matplotlib.ticker import MaxNLocator

    values = {
        (optim, metric): np.array([values_of(runs, optim, metric, epoch) for epoch in range(demo.epochs)])
        for optim in demo.optims
        for metric in ("test_loss", "test_accuracy")
    }
    epochs = np.arange(1, demo.epochs + 1)
    with page(path, size=(12, 7.2), style=_STYLE) as figure:
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
        top, bottom = figure.subfigures(2, 1, height_ratios=[3.6, 1])
        panels = top.subplots(1, 3 if len(demo.optims) > 1 else 2)
        _draw_curves(panels, demo.optims, values, epochs)
        for axes in panels:
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(demo.optims) > 1:
            _draw_differences(panels[2], demo.optims, values, epochs)
        _draw_hardest(bottom, f"{label_of(demo.optims[0])}, seed {demo.seeds[0]}", data, logits)
        figure.suptitle(
            f"{DATA} · {MODEL} · learning rate {demo.learning_rate:g} · "
            f"mean ± sd of seed{'s' if len(demo.seeds) > 1 else ''} {', '.join(map(str, demo.seeds))}",
            fontsize=12.5,
        )


def _draw_curves(panels: Any, optims: Sequence[str], values: _Values, epochs: np.ndarray) -> None:
    from matplotlib.ticker import LogLocator, PercentFormatter

    for i, optim in enumerate(optims):
        # The first is drawn wider, so that it shows where another one covers it.
        width, colour = 4 if i == 0 else 1.8, PALETTE[i % len(PALETTE)]
        for axes, metric in zip(panels, ("test_loss", "test_accuracy"), strict=False):
            mine = values[optim, metric]
            mean = mine.mean(axis=1)
            axes.plot(epochs, mean, "o-", lw=width, ms=2 * width, color=colour, label=label_of(optim))
            if mine.shape[1] > 1:
                sd = mine.std(axis=1, ddof=1)
                low = np.maximum(mean - sd, mine.min() / 2)  # the loss has a logarithmic axis
                axes.fill_between(epochs, low, mean + sd, color=colour, alpha=0.15, linewidth=0)
    loss, accuracy = panels[:2]
    loss.set(title="Test loss", yscale="log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter("")
    loss.legend(frameon=False)
    accuracy.set_title("Test accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _draw_differences(axes: Any, optims: Sequence[str], values: _Values, epochs: np.ndarray) -> None:
    """Draws the paired difference in test loss after each epoch, with its interval."""
    first = optims[0]
    axes.axhline(0, color="#444444", linewidth=1)
    for i, second in enumerate(optims[1:], 1):
        pairs = zip(values[first, "test_loss"], values[second, "test_loss"], strict=True)
        differences = [paired_difference(a, b) for a, b in pairs]
        low = [item.mean if item.low is None else item.low for item in differences]
        high = [item.mean if item.high is None else item.high for item in differences]
        colour = "#555555" if len(optims) == 2 else PALETTE[i % len(PALETTE)]
        means = [item.mean for item in differences]
        axes.plot(epochs, means, "o-", lw=1.8, ms=4, color=colour, label=f"{MINUS} {label_of(second)}")
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    if len(optims) > 2:
        axes.legend(frameon=False)
    others = label_of(optims[1]) if len(optims) == 2 else "..."
    axes.set_title(f"Test loss: {label_of(first)} {MINUS} {others}")
    axes.set_xlabel("epoch\n(paired by seed; band: 95 % t interval)")


def _draw_hardest(figure: Any, who: str, data: Any, logits: np.ndarray, count: int = 14) -> None:
    """Draws the test digits whose true class got the lowest probability, with the answers."""
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    test = data["test"].with_format(None)
    truth = np.array(test["label"])
    hardest = np.argsort(probabilities[np.arange(len(truth)), truth], kind="stable")[:count]
    figure.suptitle(
        f"The {count} test digits hardest for {who}", x=0.012, ha="left", fontsize=12, weight="bold"
    )
    for axes, i in zip(figure.subplots(1, count), hardest, strict=True):
        axes.imshow(np.asarray(test[int(i)]["image"]), cmap="gray_r", interpolation="nearest")
        axes.set_axis_off()
        answer = int(logits[i].argmax())
        right = answer == truth[i]
        axes.set_title(
            f"{answer} ✓" if right else f"{answer}, not {truth[i]}",
            color="#222222" if right else PALETTE[1],
            fontsize=10.5,
            loc="center",
            weight="normal",
        )
