"""A benchmark's report as bar charts: a panel for each case, a bar for each contestant."""

from __future__ import annotations

import contextlib
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.bench.cases import CASES
from adamnx_hf.bench.contestants import label_contestant
from adamnx_hf.bench.tables import compute_bytes_each, format_or_dash
from adamnx_hf.common.drawing import BLUE, PALETTE, canvas

__all__ = ["draw_memory", "draw_times"]

_GREY = "#BBBBBB"
_STYLE = {"font.size": 11, "axes.titlelocation": "left", "axes.titlesize": 12}


@contextlib.contextmanager
def _draw_panels(
    path: Path, results: Sequence[Mapping[str, Any]], size: tuple[float, float, float], **subplots: Any
) -> Iterator[tuple[Any, list[Any]]]:
    """Yields a figure with a panel for each of `results`, and the panels.

    Args:
        path: the picture.
        results: cases with contestants.
        size: in inches, the width, the height for each panel and the height of the rest.
        subplots: further arguments of `matplotlib.pyplot.subplots`.
    """
    bars = [len(result["optimizers"]) for result in results]
    width, panel, rest = size
    inches = (width, 0.36 * sum(bars) + panel * len(results) + rest)
    subplots |= {"gridspec_kw": {"height_ratios": bars}, "squeeze": False}
    with canvas(path, len(results), size=inches, style=_STYLE, **subplots) as (figure, panels):
        yield figure, panels[:, 0]


def draw_times(report: Mapping[str, Any], title: str, path: Path) -> None:
    """Draws each contestant's time as a share of torch's fused AdamW's; no picture if no time has one."""
    results = [r for r in report["results"] if any(row["ratio"] for row in r["optimizers"])]
    if not results:
        return
    with _draw_panels(path, results, (8, 0.8, 0.8)) as (figure, panels):
        figure.suptitle(f"{title}\n1 = torch's fused AdamW, with or without clipping; shorter is faster")
        for axes, result in zip(panels, results, strict=True):
            rows = result["optimizers"][::-1]
            ratios = [row["ratio"] or math.nan for row in rows]
            colours = [BLUE if row["optimizer"].startswith("adamnx") else _GREY for row in rows]
            bars = axes.barh([label_contestant(row["optimizer"]) for row in rows], ratios, color=colours)
            texts = [f"{ratio:.2f}   ({row['ms']:,.2f} ms)" for ratio, row in zip(ratios, rows, strict=True)]
            axes.axvline(1, color="#444444", linewidth=1, linestyle=":", zorder=0)
            ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.bar_label(bars, texts, padding=5, fontsize=10, bbox=ground)
            axes.set_title(textwrap.fill(_title_panel(result), 58))
            axes.set_xlim(0, max(ratios) * 1.25)
            axes.spines[["top", "right", "bottom"]].set_visible(False)
            axes.tick_params(bottom=False, labelbottom=False)


def draw_memory(report: Mapping[str, Any], title: str, path: Path) -> None:
    """Draws each contestant's bytes a parameter, by what they are for, and writes its time beside them."""
    results = [result for result in report["results"] if result["optimizers"]]
    if not results:
        return
    colours = {"parameter": _GREY, "gradient": "#DDDDDD", "state": BLUE, "temporary": PALETTE[5]}
    with _draw_panels(path, results, (9, 0.9, 1.0), sharex=True) as (figure, panels):
        figure.suptitle(
            f"{title}\nbytes a parameter at the peak of a step, and its time: 1 = torch's fused AdamW"
        )
        for axes, result in zip(panels, results, strict=True):
            rows = result["optimizers"][::-1]
            labels = [label_contestant(row["optimizer"]) for row in rows]
            parts = [compute_bytes_each(row, result) for row in rows]
            left = [0.0] * len(rows)
            for part, colour in colours.items():
                widths = [each[part] for each in parts]
                bars = axes.barh(labels, widths, left=left, color=colour, edgecolor="white", label=part)
                left = [start + width for start, width in zip(left, widths, strict=True)]
            texts = [
                f"{total:.1f} B   time {format_or_dash(row['ratio'], '{:.2f}')}"
                for total, row in zip(left, rows, strict=True)
            ]
            axes.bar_label(bars, texts, padding=5, fontsize=10)
            axes.set_title(f"{_title_panel(result)}, {CASES[result['case']].dtype}")
            axes.margins(x=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


def _title_panel(result: Mapping[str, Any]) -> str:
    return f"{CASES[result['case']].what}, {result['parameters'] / 1e6:,.1f} M parameters"
