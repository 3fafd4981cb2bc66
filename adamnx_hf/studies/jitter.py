"""Jitter: how much v and the step vary when training has come to rest.

At a place where gradients are independent draws of one distribution, v is a weighted mean of squared
gradients with weights `w_s` that add up to 1, so that its variance, relative to its squared mean, is

    Var(v) / E(v)² = κ · Σ_s w_s²,    κ = Var(g²) / E(g²)²,

with κ = 2 for normal gradients around 0. The sum depends on the schedule alone:
:func:`adamnx_hf.studies.decay.squared_shares`. :func:`gradients_of` holds the weights of a trained network
where they are and takes its gradients batch by batch. :func:`simulate` looks at v and at the step
m / (√v + ε) of streams drawn from them, and of normal noise, whose moments are known.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamnx_hf.common.drawing import PALETTE, canvas
from adamnx_hf.optim.schedules import BETA2_SCHEDULES, adam
from adamnx_hf.studies.decay import newest_weights, squared_shares

__all__ = ["draw", "gradients_of", "measure", "simulate"]

#: The schedules that are measured, each with its β2. `adamnx` at 0.9003 has the paper's 6.28 horizons in 600
#: steps.
SHOWN = (("adam", 0.999), ("adam", 0.99), ("adamnx", 0.99), ("adamnx", 0.9003))


def simulate(
    gradients: Tensor,
    schedule: str,
    beta2: float,
    at: Sequence[int],
    *,
    streams: int = 256,
    beta1: float = 0.9,
    eps: float = 1e-8,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Measures v and the step over many streams of gradients, drawn from the given ones with replacement.

    Args:
        gradients: (draws, coordinates), at weights that do not move.
        schedule, beta2: the decay of v; see :data:`adamnx_hf.optim.schedules.BETA2_SCHEDULES`.
        at: the steps to measure at, from 1 on, rising.
        streams: how many. Each draws one row a step for all coordinates.
        beta1: the decay of m, which is corrected as AdamNX's.
        eps: ε.
        seed: draws the streams.

    Returns:
        A row for each step of `at`: `step`; `v`, which is Var(v)/E(v)² over the streams in units of the
        coordinate's κ, averaged over the coordinates; `moved`, the same for the square of v's change in this
        step; `update`, the mean of (m/(√v + ε))²; `update_still`, the same if √v stood still at the root of
        the mean of g².
    """
    from tqdm import tqdm

    gradients = gradients.double()
    squares = gradients.square()
    mean = squares.mean(0)
    kept = mean > 0  # a coordinate without gradients has no κ
    gradients, mean = gradients[:, kept], mean[kept]
    kappa = squares[:, kept].var(0, correction=0) / mean.square()
    weights = BETA2_SCHEDULES[schedule]
    generator = torch.Generator().manual_seed(seed)
    m = torch.zeros(streams, gradients.shape[1], dtype=torch.float64)
    v = torch.zeros_like(m)
    rows = []
    for step in tqdm(range(1, max(at) + 1), desc=f"{schedule} {beta2:g}", unit=" steps", leave=False):
        drawn = gradients[torch.randint(len(gradients), (streams,), generator=generator)]
        m.lerp_(drawn, float(adam(float(step), beta1)))
        before = v.clone() if step in at else v
        v.lerp_(drawn.square_(), float(weights(float(step), beta2)))
        if step in at:
            values = {
                "v": v.var(0, correction=0) / mean.square() / kappa,
                "moved": (v - before).square().mean(0) / mean.square() / kappa,
                "update": (m / (v.sqrt() + eps)).square(),
                "update_still": (m / (mean.sqrt() + eps)).square(),
            }
            rows.append({"step": step} | {name: float(value.mean()) for name, value in values.items()})
    return rows


def gradients_of(
    folder: Path, batches: int, coordinates: int, dataset_name: str | None = None, seed: int = 0
) -> Tensor:
    """Computes gradients of a trained network at weights that stay, batch by batch as in training.

    Args:
        folder: a run's, with its model.
        batches: how many, over as many epochs as that takes.
        coordinates: how many weights, drawn at random among all.
        dataset_name: where the data set is now, if not where the run had it.
        seed: draws the weights and the batches.

    Returns:
        (batches, coordinates), float32, on the CPU.

    Raises:
        RecipeError: the folder holds no whole model, or the data set is not there.
    """
    from tqdm import tqdm
    from transformers import set_seed

    from adamnx_hf.runs.loaded import load_trainer

    trainer = load_trainer(folder, dataset_name)
    set_seed(seed)
    model = trainer.model.train()
    params = [param for param in model.parameters() if param.requires_grad]
    size = sum(param.numel() for param in params)
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:coordinates].sort().values
    epochs = (trainer.get_train_dataloader() for _ in itertools.count())
    drawn = itertools.islice(itertools.chain.from_iterable(epochs), batches)
    rows: list[Tensor] = []
    for inputs in tqdm(drawn, total=batches, desc="gradients", unit=" batches", leave=False):
        loss = trainer.compute_loss(model, trainer._prepare_inputs(inputs))
        grads = torch.autograd.grad(loss, params, materialize_grads=True)
        rows.append(torch.cat([grad.reshape(-1) for grad in grads])[chosen].float().cpu())
    return torch.stack(rows)


def measure(real: Tensor, steps: int, streams: int) -> dict[str, Any]:
    """Simulates all schedules on the given gradients and on normal noise; returns what jitter.json holds.

    Args:
        real: (batches, coordinates), in the order they came.
        steps: the length of the streams.
        streams: how many streams each schedule has.
    """
    at = sorted({round(step) for step in np.geomspace(1, steps, 16)})
    noise = torch.randn(20_000, 32, generator=torch.Generator().manual_seed(0))
    samples = {"normal noise": noise, "a network's gradients": real}
    return {
        "steps": steps,
        "streams": streams,
        "gradients": {
            name: {
                "draws": len(gradients),
                "coordinates": gradients.shape[1],
                **_describe(gradients),
                "schedules": [
                    {
                        "schedule": schedule,
                        "beta2": beta2,
                        "theory": squared_shares(schedule, steps, beta2)[[t - 1 for t in at]].tolist(),
                        "rows": simulate(gradients, schedule, beta2, at, streams=streams),
                    }
                    for schedule, beta2 in SHOWN
                ],
            }
            for name, gradients in samples.items()
        },
    }


def _describe(gradients: Tensor) -> dict[str, float]:
    """Returns medians over the coordinates: κ, the mean's share in E(g²), and how g² goes with the next."""
    g = gradients.double()
    squares = g.square()
    mean = squares.mean(0)
    kept = mean > 0
    away = squares[:, kept] - mean[kept]
    variance = away.square().mean(0)
    return {
        "kappa": float((variance / mean[kept].square()).median()),
        "signal": float((g.mean(0)[kept].square() / mean[kept]).median()),
        "autocorrelation": float(((away[1:] * away[:-1]).mean(0) / variance).median()),
    }


def draw(path: Path, content: dict[str, Any]) -> None:
    """Draws the variance of v, and what moves in a single step: theory as lines, measurements as dots.

    Args:
        path: where the PNG is written.
        content: jitter.json's.
    """
    with canvas(path, 1, 3, size=(13, 4.4), gridspec_kw={"width_ratios": [3, 3, 2]}) as (_, axes):
        left, middle, right = axes
        for name, marker in zip(content["gradients"], "o^", strict=True):
            for one, colour in zip(content["gradients"][name]["schedules"], PALETTE, strict=False):
                if marker == "o":
                    _draw_theory(left, middle, one, content["steps"], colour)
                at = [row["step"] for row in one["rows"]]
                style = {"marker": marker, "ls": "", "ms": 6, "color": colour, "mfc": "none"}
                left.plot(at, [row["v"] for row in one["rows"]], **style)
                middle.plot(at[1:], [row["moved"] for row in one["rows"]][1:], **style)
        left.set(xscale="log", yscale="log", xlabel="step", title="Var(v) / E(v)², in units of κ")
        middle.set(xscale="log", yscale="log", xlabel="step", title="E (v moved in one step)², likewise")
        middle.set_ylim(bottom=1e-14)  # below it stands still in float32, and float64 soon after
        for name, marker in zip(content["gradients"], "o^", strict=True):
            left.plot([], [], marker=marker, ls="", mfc="none", color="#555555", label=name)
        left.legend(frameon=False, fontsize=9)
        _draw_steps(right, content["gradients"]["a network's gradients"]["schedules"])


def _label(one: dict[str, Any]) -> str:
    return f"{'AdamNX' if one['schedule'] == 'adamnx' else 'Adam'} {one['beta2']:g}"


def _draw_theory(variance: Any, moved: Any, one: dict[str, Any], count: int, colour: str) -> None:
    steps = np.arange(1, count + 1)
    sums = squared_shares(one["schedule"], count, one["beta2"])
    weights = newest_weights(one["schedule"], steps, one["beta2"])
    variance.plot(steps, sums, color=colour, lw=1.8, label=_label(one))
    # v_t − v_(t−1) = w (g² − v_(t−1)), two independent parts
    moved.plot(steps[1:], weights[1:] ** 2 * (1 + sums[:-1]), color=colour, lw=1.8)


def _draw_steps(axes: Any, schedules: Sequence[dict[str, Any]]) -> None:
    """Draws how much larger the mean squared step is than with a v without error."""
    from matplotlib.ticker import MaxNLocator

    ratios = [one["rows"][-1]["update"] / one["rows"][-1]["update_still"] - 1 for one in schedules]
    axes.barh(range(len(schedules)), ratios, color=PALETTE[: len(schedules)])
    axes.axvline(0, color="#444444", lw=1)
    axes.set_yticks(range(len(schedules)), [_label(one) for one in schedules])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:+.1%}")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_title("Mean squared step of the\nnetwork, against a v without error", fontsize=10)
    axes.grid(axis="y", visible=False)
