"""The figure of a v in bfloat16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from adamnx_hf.common.drawing import PALETTE, RC, canvas
from adamnx_hf.optim import schedules
from adamnx_hf.optim.formats import random_bits, round_stochastically

__all__ = ["draw_bfloat16", "v_in_bfloat16"]


def v_in_bfloat16(
    steps: int = 6000, size: int = 4096, every: int = 20, beta2: float = 0.99
) -> dict[str, np.ndarray]:
    """Measures how far a v in bfloat16 is off from a float32 twin, for random gradients of many scales.

    Args:
        steps: how many steps of AdamNX.
        size: how many elements v has.
        every: how many steps lie between two measurements.
        beta2: AdamNX's.

    Returns:
        Arrays of `steps / every` values: `step`; and the relative error's mean and root mean square over the
        elements, as `stochastic mean`, `stochastic rms`, `nearest mean` and `nearest rms`.
    """
    generator = torch.Generator().manual_seed(0)
    scale = torch.randn(size, generator=generator).exp()
    exact = torch.zeros(size)
    kept = {name: torch.zeros(size, dtype=torch.bfloat16) for name in ("stochastic", "nearest")}
    rows = []
    for step in range(1, steps + 1):
        weight = float(schedules.adamnx(float(step), beta2))
        square = (scale * torch.randn(size, generator=generator)).square()
        exact = exact.lerp(square, weight)
        bits = random_bits(size, step, 0, exact.device) >> 16 & 0xFFFF
        kept["stochastic"] = round_stochastically(kept["stochastic"].float().lerp(square, weight), bits)
        kept["nearest"] = kept["nearest"].float().lerp(square, weight).bfloat16()
        if step % every == 0:
            errors = [kept[name].float() / exact - 1 for name in ("stochastic", "nearest")]
            rows.append([step, *(float(f) for e in errors for f in (e.mean(), e.square().mean().sqrt()))])
    names = ("step", "stochastic mean", "stochastic rms", "nearest mean", "nearest rms")
    return dict(zip(names, np.array(rows).T, strict=True))


def draw_bfloat16(path: Path) -> None:
    """Draws what rounding does to a v in bfloat16: to the nearest it freezes, at random it stays unbiased.

    Args:
        path: where the PNG is written.
    """
    from matplotlib.ticker import PercentFormatter

    errors = v_in_bfloat16()
    with canvas(path, size=(8, 4.2), dpi=180, style={**RC, "font.size": 12}) as (_, axes):
        for name, colour, label in (
            ("nearest", PALETTE[1], "to the nearest"),
            ("stochastic", PALETTE[0], "stochastically"),
        ):
            mean, spread = errors[f"{name} mean"], errors[f"{name} rms"]
            deviation = (spread**2 - mean**2) ** 0.5
            axes.plot(errors["step"], mean, color=colour, lw=2.5)
            axes.fill_between(
                errors["step"], mean - deviation, mean + deviation, color=colour, alpha=0.18, lw=0
            )
            axes.annotate(
                f"rounded {label}: {mean[-1]:+.1%}",
                (errors["step"][-1], mean[-1]),
                (-6, 14 if name == "nearest" else 22),
                textcoords="offset points",
                color=colour,
                weight="bold",
                ha="right",
            )
        axes.axhline(0, color="#444444", lw=1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set(xlabel="step", xlim=(0, errors["step"][-1]), title="v kept in bfloat16, against a float32 v")
        axes.text(
            0.01, 0.97, "mean relative error, and its standard deviation over 4,096 elements",
            transform=axes.transAxes, va="top", color="#555555", fontsize=10.5,
        )  # fmt: skip
