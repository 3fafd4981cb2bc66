"""The look of the project's pictures, and the frame that each is drawn in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adamnx_hf.common.files import beside

__all__ = ["BLUE", "PALETTE", "RC", "canvas", "page"]

#: Okabe and Ito's colours, which the colour-blind tell apart.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"]
#: The first of the palette, which stands for AdamNX where one colour stands out.
BLUE = PALETTE[0]
#: Matplotlib's settings for pictures of runs.
RC: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.color": "#ebebeb",
    "axes.axisbelow": True,
}


@contextlib.contextmanager
def page(
    path: Path, *, size: tuple[float, float], dpi: int = 150, style: Mapping[Any, Any] = RC
) -> Iterator[Any]:
    """Yields an empty figure to draw on, then writes the picture whole or not at all.

    The file's folder is made if it is missing. No screen is needed.

    Args:
        path: of the picture; the suffix is the format.
        size: width and height in inches.
        dpi: dots an inch.
        style: settings of Matplotlib that hold while the picture is drawn.

    Raises:
        OSError: the file cannot be written. A picture that was there before is unchanged.
    """
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    with plt.rc_context(dict(style)):
        figure = plt.figure(figsize=size, dpi=dpi, layout="constrained")
        try:
            yield figure
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside(path) as draft:
                figure.savefig(draft)
        finally:
            plt.close(figure)


@contextlib.contextmanager
def canvas(
    path: Path,
    rows: int = 1,
    columns: int = 1,
    *,
    size: tuple[float, float],
    dpi: int = 150,
    style: Mapping[Any, Any] = RC,
    **subplots: Any,
) -> Iterator[tuple[Any, Any]]:
    """Yields a figure and its axes; see :func:`page`.

    Args:
        path, size, dpi, style: as for :func:`page`.
        rows, columns: how many axes.
        subplots: further arguments of `Figure.subplots`, such as `sharey` or `width_ratios`.

    Yields:
        The figure, and its axes as `Figure.subplots` returns them.

    Raises:
        OSError: as :func:`page`.
    """
    with page(path, size=size, dpi=dpi, style=style) as figure:
        yield figure, figure.subplots(rows, columns, **subplots)
