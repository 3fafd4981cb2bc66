"""`adamnx-hf jitter RUN`: how much v and the step jitter when training has come to rest.

At a place where gradients are independent draws of one distribution, v is a weighted mean of squared
gradients with weights `w_s` that add up to 1, so that its variance, relative to its squared mean, is

    Var(v) / E(v)² = κ · Σ_s w_s²,    κ = Var(g²) / E(g²)²,

with κ = 2 for normal gradients around 0. The sum is the schedule's part of it: `squared_shares`. The
command holds the weights of a trained network where they are, takes its gradients batch by batch, and looks
at v and at the step m / (√v + ε) of streams drawn from them; beside them normal noise, of which all is known.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adamnx_hf.common.errors import RecipeError, number
from adamnx_hf.common.files import save_figure, write_json
from adamnx_hf.studies.decay import newest_weights, squared_shares

__all__ = ["EXTRA", "add_arguments", "draw", "gradients_of", "run", "simulate"]

#: The extra of this package that has what this command needs.
EXTRA = "recipes"

#: Schedules, β2 and names of what is drawn; `adamnx` 0.9003 has the paper's 6.28 horizons in 600 steps.
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
    """Looks at v and the step over many streams of gradients drawn, with replacement, from those given.

    Args:
        gradients: (draws, coordinates), of a place that does not move.
        schedule, beta2: of v; see :data:`adamnx_hf.optim.schedules.BETA2_SCHEDULES`.
        at: steps to look at, from 1 on, rising.
        streams: how many; each draws one row a step for all coordinates.
        beta1: of m, which is corrected as AdamNX's.
        eps: ε.
        seed: of the draws.

    Returns:
        For each step: `step`; `v`: Var(v)/E(v)² over the streams in units of the coordinate's κ, mean over
        the coordinates; `moved`: the same of the square of v's change in this step; `update`: the mean of
        (m/(√v + ε))²; `update_still`: the same if √v stood still at the root of the mean of g².
    """
    from tqdm import tqdm

    from adamnx_hf.optim.schedules import BETA2_SCHEDULES, adam

    gradients = gradients.double()
    squares = gradients.square()
    mean = squares.mean(0)
    kept = mean > 0  # of a coordinate without gradients nothing can be said
    gradients, mean = gradients[:, kept], mean[kept]
    kappa = squares[:, kept].var(0, correction=0) / mean.square()
    weights = BETA2_SCHEDULES[schedule]
    generator = torch.Generator().manual_seed(seed)
    m = torch.zeros(streams, gradients.shape[1], dtype=torch.float64)
    v = torch.zeros_like(m)
    wanted, rows = set(at), []
    for step in tqdm(range(1, max(at) + 1), desc=f"{schedule} {beta2:g}", unit=" steps", leave=False):
        drawn = gradients[torch.randint(len(gradients), (streams,), generator=generator)]
        m.lerp_(drawn, float(adam(float(step), beta1)))
        before = v.clone() if step in wanted else v
        v.lerp_(drawn.square_() if step not in wanted else drawn.square(), float(weights(float(step), beta2)))
        if step in wanted:
            relative = v.var(0, correction=0) / mean.square() / kappa
            moved = (v - before).square().mean(0) / mean.square() / kappa
            update = (m / (v.sqrt() + eps)).square().mean()
            still = (m / (mean.sqrt() + eps)).square().mean()
            rows.append(
                {
                    "step": step,
                    "v": float(relative.mean()),
                    "moved": float(moved.mean()),
                    "update": float(update),
                    "update_still": float(still),
                }
            )
    return rows


def gradients_of(
    folder: Path, batches: int, coordinates: int, dataset_name: str | None = None, seed: int = 0
) -> Tensor:
    """Gradients of a trained network that stays where it is, batch by batch as in training.

    Args:
        folder: of a run, with its model.
        batches: how many, over as many epochs as it takes.
        coordinates: how many weights, drawn at random among all.
        dataset_name: where the data set is now, if not where the run had it.
        seed: of which weights, and of the batches.

    Returns:
        (batches, coordinates), float32, on the CPU.

    Raises:
        RecipeError: the folder holds no whole model, or the data set is not there.
    """
    from tqdm import tqdm
    from transformers import set_seed

    from adamnx_hf.studies.sharpness import trainer_of

    trainer = trainer_of(folder, dataset_name)
    set_seed(seed)
    model = trainer.model.train()
    params = [param for param in model.parameters() if param.requires_grad]
    size = sum(param.numel() for param in params)
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:coordinates].sort().values
    rows: list[Tensor] = []
    with tqdm(total=batches, desc="gradients", unit=" batches", leave=False) as bar:
        while len(rows) < batches:
            for inputs in trainer.get_train_dataloader():
                loss = trainer.compute_loss(model, trainer._prepare_inputs(inputs))
                grads = torch.autograd.grad(loss, params, materialize_grads=True)
                rows.append(torch.cat([grad.reshape(-1) for grad in grads])[chosen].float().cpu())
                bar.update()
                if len(rows) == batches:
                    break
    return torch.stack(rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `adamnx-hf jitter`."""
    parser.usage = "adamnx-hf jitter RUN [--steps N] [--batches N] [--coordinates N] [--dataset-name NAME]"
    parser.description = (
        "Holds a trained network where it is, and measures how much v and the step jitter by its gradients' "
        "noise: with Adam's decay and with AdamNX's, beside what theory says."
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run, with its model")
    parser.add_argument("--dataset-name", "--dataset_name", metavar="NAME", help="where its data set is now")
    for name, default, text in (
        ("steps", 3000, "length of the streams"),
        ("batches", 500, "gradients to draw from"),
        ("coordinates", 512, "weights, drawn at random"),
        ("streams", 128, "streams of each kind"),
    ):
        parser.add_argument(
            f"--{name}",
            type=number(int, 2),
            default=default,
            metavar="N",
            help=f"{text} (%(default)s)",
        )


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from adamnx_hf.runs.environment import describe_environment

    try:
        real = gradients_of(args.folder, args.batches, args.coordinates, args.dataset_name)
    except RecipeError as error:
        print(f"adamnx-hf jitter: error: {error}", file=sys.stderr)
        return 1
    content = measure(real, args.steps, args.streams) | {"environment": describe_environment()}
    write_json(args.folder / "jitter.json", content)
    draw(args.folder / "jitter.png", content)
    for name, sample in content["gradients"].items():
        print(f"{name}: κ {sample['kappa']:.3g}, of g² one batch later {sample['autocorrelation']:+.3f}")
        for one in sample["schedules"]:
            last = one["rows"][-1]
            print(
                f"  {one['schedule']} {one['beta2']:g}, step {last['step']}: v {last['v']:.3g} "
                f"(theory {one['theory'][-1]:.3g}), moved {last['moved']:.3g}, "
                f"step² {last['update']:.4g} (v still: {last['update_still']:.4g})"
            )
    print(f"Written to {args.folder}: jitter.json, jitter.png")
    return 0


def measure(real: Tensor, steps: int, streams: int) -> dict[str, Any]:
    """What jitter.json holds: see :func:`simulate`, for the gradients given and for normal noise.

    Args:
        real: (batches, coordinates), in the order they came.
        steps: of the streams.
        streams: of each schedule.
    """
    import numpy as np

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
    """Medians over the coordinates: κ, the share of the mean in E(g²), and how g² goes with the next g²."""
    g = gradients.double()
    squares = g.square()
    mean = squares.mean(0)
    kept = mean > 0
    away = squares[:, kept] - mean[kept]
    variance = away.square().mean(0)
    together = (away[1:] * away[:-1]).mean(0) / variance
    return {
        "kappa": float((variance / mean[kept].square()).median()),
        "signal": float((g.mean(0)[kept].square() / mean[kept]).median()),
        "autocorrelation": float(together.median()),
    }


def draw(path: Path, content: dict[str, Any]) -> None:
    """Theory as lines, what was measured as dots: the variance of v, and what moves in a single step.

    Args:
        path: of the PNG.
        content: of jitter.json.
    """
    import numpy as np
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from adamnx_hf.common.drawing import PALETTE, RC

    def label(one: dict[str, Any]) -> str:
        return f"{'AdamNX' if one['schedule'] == 'adamnx' else 'Adam'} {one['beta2']:g}"

    plt.switch_backend("agg")
    with plt.rc_context(RC):
        figure, (left, middle, right) = plt.subplots(
            1, 3, figsize=(13, 4.4), dpi=150, layout="constrained", gridspec_kw={"width_ratios": [3, 3, 2]}
        )
        for name, marker in zip(content["gradients"], "o^", strict=True):
            for one, colour in zip(content["gradients"][name]["schedules"], PALETTE, strict=False):
                if marker == "o":
                    steps = np.arange(1, content["steps"] + 1)
                    sums = squared_shares(one["schedule"], content["steps"], one["beta2"])
                    weights = newest_weights(one["schedule"], steps, one["beta2"])
                    # v_t − v_(t−1) = w (g² − v_(t−1)), two independent parts
                    moved = weights[1:] ** 2 * (1 + sums[:-1])
                    left.plot(steps, sums, color=colour, lw=1.8, label=label(one))
                    middle.plot(steps[1:], moved, color=colour, lw=1.8)
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
        real = content["gradients"]["a network's gradients"]["schedules"]
        ratios = [one["rows"][-1]["update"] / one["rows"][-1]["update_still"] - 1 for one in real]
        right.barh(range(len(real)), ratios, color=PALETTE[: len(real)])
        right.axvline(0, color="#444444", lw=1)
        right.set_yticks(range(len(real)), [label(one) for one in real])
        right.invert_yaxis()
        right.xaxis.set_major_formatter("{x:+.1%}")
        right.xaxis.set_major_locator(MaxNLocator(4))
        right.set_title("Mean squared step of the\nnetwork, against a v without error", fontsize=10)
        right.grid(axis="y", visible=False)
        save_figure(figure, path)
