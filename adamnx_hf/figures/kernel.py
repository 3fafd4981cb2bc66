"""The figure of the kernel: one launch for all tensors, and the bytes that a step moves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from adamnx_hf.common.drawing import BLUE, PALETTE, RC, canvas

__all__ = ["draw_kernel"]

_STYLE = {**RC, "axes.grid": False, "font.size": 12, "axes.titlesize": 14, "axes.titlepad": 12}


def draw_kernel(path: Path) -> None:
    """Draws how one launch covers tensors of all sizes, and how many bytes a parameter a step moves.

    Args:
        path: where the PNG is written.
    """
    ratios = {"height_ratios": [3, 2]}
    with canvas(path, 2, 1, size=(9, 6), dpi=180, style=_STYLE, gridspec_kw=ratios) as (_, (top, bottom)):
        _draw_launch(top)
        _draw_traffic(bottom)


def _draw_launch(axes: Any) -> None:
    """Draws three tensors, their chunks, and the program that steps each chunk."""
    from matplotlib.patches import Rectangle

    axes.set(xlim=(0, 12.6), ylim=(1.5, 5.6), title="One launch: a program for each chunk of each tensor")
    axes.axis("off")
    tensors = [
        ("a large tensor", 4.6, BLUE),
        ("a smaller one", 2.5, PALETTE[2]),
        ("a bias", 0.4, PALETTE[1]),
    ]
    program, x = 0, 0.2
    for row, (name, chunks, colour) in enumerate(tensors):
        axes.text(x, 5.25, name, color=colour, weight="bold", fontsize=11)
        for i in range(math.ceil(chunks)):
            left, width = x + i, min(chunks - i, 1)
            axes.add_patch(
                Rectangle((left, 4.3), width, 0.6, facecolor=colour, alpha=0.85, edgecolor="white")
            )
            axes.annotate(
                "",
                (left + 0.5, 2.95),
                (left + width / 2, 4.25),
                arrowprops={"arrowstyle": "<-", "color": "#888888"},
            )
            axes.add_patch(
                Rectangle((left + 0.06, 2.3), 0.88, 0.6, facecolor="white", edgecolor=colour, linewidth=2)
            )
            axes.text(left + 0.5, 2.6, str(program), ha="center", va="center", fontsize=11)
            axes.text(left + 0.5, 1.95, str(row), ha="center", va="center", color=colour, weight="bold")
            program += 1
        x += math.ceil(chunks) + 0.55
    for y, text in ((4.6, "chunks of 1,024"), (2.6, "programs"), (1.95, "rows of the table")):
        axes.text(x - 0.2, y, text, va="center", color="#444444", fontsize=11)


def _draw_traffic(axes: Any) -> None:
    """Draws the bytes that float32 training moves for each parameter, clipping included."""
    bars = [
        ("clip_grad_norm_, step", [("norm", 4), ("scale g", 8), ("step", 28)]),
        ("AdamNX(max_grad_norm=…)", [("norm", 4), ("step", 28)]),
        ("no clipping", [("step", 28)]),
    ]
    colours = {"norm": PALETTE[4], "scale g": PALETTE[1], "step": BLUE}
    for place, (_, parts) in enumerate(bars[::-1]):
        left = 0
        for name, width in parts:
            axes.barh(place, width, left=left, color=colours[name], edgecolor="white", height=0.66)
            axes.text(left + width / 2, place, name, color="white", ha="center", va="center", fontsize=11)
            left += width
        axes.text(left + 0.5, place, f"{left}", va="center", weight="bold")
    axes.set(
        yticks=range(len(bars)),
        yticklabels=[name for name, _ in bars[::-1]],
        xlim=(0, 43),
        xticks=[],
        title="Bytes moved for each float32 parameter",
    )
    axes.spines[["top", "right", "bottom"]].set_visible(False)
