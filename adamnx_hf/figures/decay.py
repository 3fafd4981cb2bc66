"""The figure of the decay: what enters v, and what v is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adamnx_hf.common.drawing import BLUE, PALETTE, RC, canvas
from adamnx_hf.optim.schedules import BETA2_SCHEDULES, horizon
from adamnx_hf.studies.decay import newest_weights, shares

__all__ = ["draw_decay"]

_COLOURS = {"adam": PALETTE[1], "adamnx": BLUE, "adax": PALETTE[4], "adafactor": PALETTE[2]}

_STYLE = {**RC, "axes.grid": False, "font.size": 13, "axes.titlesize": 14, "axes.titlepad": 12}


def draw_decay(path: Path, step: int = 100_000) -> None:
    """Draws what AdamNX does: how much is new in v, and which gradients v is made of.

    Args:
        path: where the PNG is written.
        step: the one whose v the right panel shows.
    """
    with canvas(path, 1, 2, size=(10, 4.8), dpi=180, style=_STYLE) as (figure, (left, right)):
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08, wspace=0.04)
        _draw_weights(left)
        _draw_shares(right, step)


def _draw_weights(axes: Any) -> None:
    last = 1e6
    steps = np.geomspace(1, last, 800)
    for schedule, width, line in (
        ("adafactor", 2.5, "-"), ("adam", 2.5, "-"), ("adamnx", 4, "-"), ("adax", 2.5, (0, (2, 3))),
    ):  # fmt: skip
        axes.plot(steps, newest_weights(schedule, steps), color=_COLOURS[schedule], lw=width, ls=line)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(1, last),
        ylim=(1e-10, 2),
        xlabel="step t",
        ylabel=r"$1-\hat{\beta}_{2,t}$",
        title="How much of g² enters v at step t",
    )
    axes.grid(color="#e8e8e8")

    h = horizon(BETA2_SCHEDULES["adamnx"].default_beta2)
    axes.axvline(h, ymax=0.98, color="#444444", linewidth=1.2, linestyle=":")
    texts = [
        (h * 0.8, 2e-10, f"horizon: {h:,.0f} steps", "#444444", "normal"),
        (last * 0.9, 1.6e-3, "Adam 0.999", _COLOURS["adam"], "bold"),
        (2500, 0.08, "Adafactor", _COLOURS["adafactor"], "bold"),
        (h * 0.8, 3e-6, "AdamNX 0.99", _COLOURS["adamnx"], "bold"),
        (h * 0.8, 4e-7, "AdaX as published", "#2b8cbe", "bold"),
        (h * 0.8, 6e-8, "(dashed) is all but the same", "#2b8cbe", "normal"),
    ]
    for x, y, text, colour, weight in texts:
        axes.text(x, y, text, color=colour, ha="right", weight=weight, fontsize=12.5)


def _draw_shares(axes: Any, step: int, parts: int = 10) -> None:
    for schedule in ("adamnx", "adam"):  # no two bars meet where both can be seen
        heights = shares(schedule, step).reshape(parts, -1).sum(axis=1)
        axes.bar(range(parts), heights, 0.86, color=_COLOURS[schedule])
        for place, height in enumerate(heights):
            if height >= 0.01:
                style = {"ha": "center", "color": _COLOURS[schedule], "weight": "bold", "fontsize": 11.5}
                axes.text(place, height + 0.015, f"{height:.0%}", **style)
    axes.text(0.6, 0.5, "AdamNX keeps\nthe earliest", color=_COLOURS["adamnx"], weight="bold")
    axes.text(parts - 1.6, 0.85, "Adam keeps\nthe latest", color=_COLOURS["adam"], ha="right", weight="bold")
    axes.spines["left"].set_visible(False)
    axes.set(
        yticks=[],
        ylim=(0, 1.08),
        xticks=np.array([0, parts // 2, parts]) - 0.5,
        xticklabels=["step 1", f"{step // 2:,}", f"{step:,}"],
        xlabel="step the gradient came from, by tenths",
        title=f"What v is made of at step {step:,}",
    )
