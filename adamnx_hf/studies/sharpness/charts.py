"""The picture of a comparison's sharpness."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from adamnx_hf.common.drawing import PALETTE, canvas
from adamnx_hf.studies.sharpness.measures import MEASURES

__all__ = ["draw"]

_TITLES = {
    "hessian": "Largest eigenvalue\nof the Hessian",
    "relative_hessian": "The same, in units of\neach filter's size",
    "random": "Rise of the loss when\nmoved at random",
    "ascent": "Rise of the loss\nby ascent",
}


def draw(path: Path, content: dict[str, Any]) -> None:
    """Draws each measure of each run, runs of one seed joined.

    Args:
        path: where the PNG is written.
        content: a comparison's sharpness.json.
    """
    labels = [one["label"] for one in content["contenders"]]
    with canvas(path, 1, len(MEASURES), size=(12, 4.4)) as (figure, axes):
        for panel, name in zip(axes, MEASURES, strict=True):
            values = [[row[name] for row in one["runs"]] for one in content["contenders"]]
            for pair in zip(*values, strict=True):
                panel.plot(range(len(labels)), pair, color="#bbbbbb", lw=1, zorder=1)
            for place, row in enumerate(values):
                colour = PALETTE[place % len(PALETTE)]
                label = labels[place] if panel is axes[0] else None
                panel.plot([place] * len(row), row, "o", color=colour, alpha=0.6, mew=0, label=label)
                panel.plot([place - 0.25, place + 0.25], [statistics.fmean(row)] * 2, color=colour, lw=3)
            panel.set_title(_TITLES[name], fontsize=10)
            panel.set(xticks=[], xlim=(-0.5, len(labels) - 0.5), ylim=(0, None))
        figure.suptitle(
            f"{content['recipe']} · {len(content['seeds'])} seeds, joined by a grey line; bars: means; "
            "lower is flatter",
            fontsize=11,
        )
        figure.legend(loc="outside lower center", ncols=min(len(labels), 3), frameon=False)
