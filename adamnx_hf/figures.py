"""The documentation's figures: `python -m adamnx_hf.figures docs/images`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamnx_hf.optim.schedules import BETA2_SCHEDULES, horizon

if TYPE_CHECKING:
    import numpy as np

__all__ = ["draw_decay", "newest_weights", "shares"]

BETA2 = {"adam": 0.999, "adamnx": 0.99, "adax": 0.99, "adafactor": 0.0}  # each one's default
COLOURS = {"adam": "#D55E00", "adamnx": "#0072B2", "adax": "#56B4E9", "adafactor": "#009E73"}


def newest_weights(schedule: str, steps: Iterable[float]) -> np.ndarray:
    """`1 − β̂2,t` of a schedule at its default β2, for each t in `steps`."""
    import numpy as np

    weight, beta2 = BETA2_SCHEDULES[schedule], BETA2[schedule]
    return np.array([float(weight(float(step), beta2)) for step in steps])


def shares(schedule: str, steps: int) -> np.ndarray:
    """The weight of g_s² in v after `steps` steps, for s = 1 … steps. They add up to 1.

    It enters with `1 − β̂2,s` and is multiplied by every later β̂2: `w_s · Π_{s<k≤t} (1 − w_k)`.
    """
    import numpy as np

    weights = newest_weights(schedule, range(1, steps + 1))
    kept = np.ones(steps)
    kept[:-1] = np.exp(np.cumsum(np.log1p(-weights[:0:-1]))[::-1])  # w_1 = 1 leaves nothing to decay
    shares: np.ndarray = weights * kept
    return shares


def draw_decay(path: Path, step: int = 100_000) -> None:
    """What AdamNX does, in one picture: how much is new in v, and which gradients v is made of.

    Args:
        path: of the PNG to write.
        step: at which the right panel looks back.
    """
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    style: dict[Any, Any] = {
        "font.size": 13,
        "axes.titlesize": 14,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.8), dpi=180, layout="constrained")
        layout: Any = figure.get_layout_engine()
        layout.set(w_pad=0.1, h_pad=0.08, wspace=0.04)
        _draw_weights(left)
        _draw_shares(right, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, facecolor="white")
        plt.close(figure)


def _draw_weights(axes: Any) -> None:
    import numpy as np

    last = 1e6
    steps = np.geomspace(1, last, 800)
    for schedule, style in (("adafactor", "-"), ("adam", "-"), ("adamnx", "-"), ("adax", (0, (2, 3)))):
        axes.plot(
            steps,
            newest_weights(schedule, steps),
            color=COLOURS[schedule],
            linewidth=4 if schedule == "adamnx" else 2.5,
            linestyle=style,
        )
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

    h = horizon(BETA2["adamnx"])
    axes.axvline(h, ymax=0.98, color="#444444", linewidth=1.2, linestyle=":")
    texts = [
        (h * 0.8, 2e-10, f"horizon: {h:,.0f} steps", "#444444", "normal"),
        (last * 0.9, 1.6e-3, "Adam 0.999", COLOURS["adam"], "bold"),
        (2500, 0.08, "Adafactor", COLOURS["adafactor"], "bold"),
        (h * 0.8, 3e-6, "AdamNX 0.99", COLOURS["adamnx"], "bold"),
        (h * 0.8, 4e-7, "AdaX as published", "#2b8cbe", "bold"),
        (h * 0.8, 6e-8, "(dashed) is all but the same", "#2b8cbe", "normal"),
    ]
    for x, y, text, colour, weight in texts:
        axes.text(x, y, text, color=colour, ha="right", weight=weight, fontsize=12.5)


def _draw_shares(axes: Any, step: int, parts: int = 10) -> None:
    import numpy as np

    places = np.arange(parts)
    for schedule in ("adamnx", "adam"):  # no two bars meet where both can be seen
        heights = shares(schedule, step).reshape(parts, -1).sum(axis=1)
        axes.bar(places, heights, 0.86, color=COLOURS[schedule])
        for place, height in zip(places, heights, strict=True):
            if height >= 0.01:
                axes.text(
                    place,
                    height + 0.015,
                    f"{height:.0%}",
                    ha="center",
                    color=COLOURS[schedule],
                    weight="bold",
                    fontsize=11.5,
                )
    axes.text(0.6, 0.5, "AdamNX keeps\nthe earliest", color=COLOURS["adamnx"], weight="bold")
    axes.text(parts - 1.6, 0.85, "Adam keeps\nthe latest", color=COLOURS["adam"], ha="right", weight="bold")
    axes.spines["left"].set_visible(False)
    axes.set(
        yticks=[],
        ylim=(0, 1.08),
        xticks=np.array([0, parts // 2, parts]) - 0.5,
        xticklabels=["step 1", f"{step // 2:,}", f"{step:,}"],
        xlabel="step the gradient came from, by tenths",
        title=f"What v is made of at step {step:,}",
    )


def main(argv: list[str] | None = None) -> None:
    """Draws all figures into a folder."""
    parser = argparse.ArgumentParser(prog="python -m adamnx_hf.figures", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/images"))
    args = parser.parse_args(argv)
    draw_decay(args.folder / "decay.png")
    print(args.folder / "decay.png")


if __name__ == "__main__":
    main()
