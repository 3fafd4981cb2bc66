"""The documentation's figures: `python -m adamnx_hf.figures docs/images`.

With `--results docs/results` those of the pages of results, each from the data beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamnx_hf.common.drawing import PALETTE, RC
from adamnx_hf.common.files import save_figure
from adamnx_hf.studies.decay import BETA2, newest_weights, shares

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "draw_bfloat16",
    "draw_decay",
    "draw_gains",
    "draw_kernel",
    "draw_protocols",
    "draw_results",
    "draw_tuned",
    "draw_twins",
    "v_in_bfloat16",
]

COLOURS = {"adam": "#D55E00", "adamnx": "#0072B2", "adax": "#56B4E9", "adafactor": "#009E73"}


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
        save_figure(figure, path, facecolor="white")


def _draw_weights(axes: Any) -> None:
    import numpy as np

    from adamnx_hf.optim.schedules import horizon

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


def draw_kernel(path: Path) -> None:
    """How one launch covers tensors of all sizes, and how many bytes a parameter a step moves.

    Args:
        path: of the PNG to write.
    """
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    style: dict[Any, Any] = {
        "font.size": 12,
        "axes.titlesize": 14,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 12,
    }
    with plt.rc_context(style):
        figure, (top, bottom) = plt.subplots(
            2, 1, figsize=(9, 6), dpi=180, layout="constrained", gridspec_kw={"height_ratios": [3, 2]}
        )
        _draw_launch(top)
        _draw_traffic(bottom)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path, facecolor="white")


def _draw_launch(axes: Any) -> None:
    """Three tensors, their chunks, and the program that steps each."""
    from matplotlib.patches import Rectangle

    axes.set(xlim=(0, 12.6), ylim=(1.5, 5.6), title="One launch: a program for each chunk of each tensor")
    axes.axis("off")
    tensors = [
        ("a large tensor", 4.6, "#0072B2"),
        ("a smaller one", 2.5, "#009E73"),
        ("a bias", 0.4, "#D55E00"),
    ]
    program, x = 0, 0.2
    for row, (name, chunks, colour) in enumerate(tensors):
        axes.text(x, 5.25, name, color=colour, weight="bold", fontsize=11)
        whole = int(chunks)
        widths = [1.0] * whole + ([chunks - whole] if chunks > whole else [])
        for i, width in enumerate(widths):
            left = x + i
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
        x += len(widths) + 0.55
    axes.text(x - 0.2, 4.6, "chunks of 1,024", va="center", color="#444444", fontsize=11)
    axes.text(x - 0.2, 2.6, "programs", va="center", color="#444444", fontsize=11)
    axes.text(x - 0.2, 1.95, "rows of the table", va="center", color="#444444", fontsize=11)


def _draw_traffic(axes: Any) -> None:
    """Bytes that float32 training moves for each parameter, clipping included."""
    bars = [
        ("clip_grad_norm_, step", [("norm", 4), ("scale g", 8), ("step", 28)]),
        ("AdamNX(max_grad_norm=…)", [("norm", 4), ("step", 28)]),
        ("no clipping", [("step", 28)]),
    ]
    colours = {"norm": "#56B4E9", "scale g": "#D55E00", "step": "#0072B2"}
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


def v_in_bfloat16(
    steps: int = 6000, size: int = 4096, every: int = 20, beta2: float = 0.99
) -> dict[str, np.ndarray]:
    """How far a v in bfloat16 is off, for random gradients of many scales, from a float32 twin.

    Args:
        steps: of AdamNX.
        size: elements.
        every: how many steps apart to look.
        beta2: AdamNX's.

    Returns:
        `step`, and for `"stochastic"` and `"nearest"` rounding the mean and the root mean square over the
        elements of the relative error: arrays of `steps / every`.
    """
    import numpy as np
    import torch

    from adamnx_hf.optim import schedules
    from adamnx_hf.optim.formats import random_bits, round_stochastically

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
    """What rounding does to a v in bfloat16: to the nearest it freezes, at random it stays right on average.

    Args:
        path: of the PNG to write.
    """
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    errors = v_in_bfloat16()
    plt.switch_backend("agg")
    with plt.rc_context({**RC, "font.size": 12}):
        figure, axes = plt.subplots(figsize=(8, 4.2), dpi=180, layout="constrained")
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
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path, facecolor="white")


def draw_gains(path: Path, contents: Sequence[dict[str, Any]]) -> None:
    """How much lower AdamNX's loss ends than with Adam's decay, against the horizons in a run.

    Args:
        path: of the PNG to write.
        contents: of comparison.json, one of each length of run; the first contender has Adam's decay.
    """
    from matplotlib import pyplot as plt

    from adamnx_hf.optim.schedules import horizon

    plt.switch_backend("agg")
    with plt.rc_context(RC):
        figure, axes = plt.subplots(figsize=(8, 4.6), dpi=150, layout="constrained")
        for content, colour in zip(contents, PALETTE, strict=False):
            steps = content["contenders"][0]["steps"]
            beta2 = {one["label"]: one["betas"][1] for one in content["contenders"]}
            items = [item for item in content["comparisons"] if item["metric"] == "eval_loss"]
            places = [steps / horizon(beta2[item["second"]]) for item in items]
            rows = sorted(zip(places, items, strict=True), key=lambda row: row[0])
            x = [place for place, _ in rows]
            axes.plot(
                x,
                [item["mean"] for _, item in rows],
                "o-",
                color=colour,
                lw=1,
                label=f"{content['recipe']}, {steps} steps",
            )
            for place, item in rows:
                axes.plot([place] * 2, [item["low"], item["high"]], color=colour, lw=2.5, alpha=0.7)
        axes.axhline(0, color="#444444", lw=1)
        seeds = len(contents[0]["seeds"])
        note = f"mean of {seeds} pairs, and its 95 % t interval"
        axes.set(xscale="log", xlabel=f"horizons in the run, T/H ({note})")
        axes.set_title("How much lower the eval loss ends with AdamNX than with Adam's decay")
        axes.legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path, facecolor="white")


def draw_twins(path: Path, content: dict[str, Any]) -> None:
    """The eval loss of one seed's runs, and how far each is from the first contender's.

    Args:
        path: of the PNG to write.
        content: of comparison.json.
    """
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    with plt.rc_context(RC):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), dpi=150, layout="constrained")
        curves = [one["runs"][0]["per_epoch"] for one in content["contenders"]]
        losses = [[row["eval_loss"] for row in rows] for rows in curves]
        steps = [row["step"] for row in curves[0]]
        for i, (one, values) in enumerate(zip(content["contenders"], losses, strict=True)):
            left.plot(steps, values, color=PALETTE[i], lw=5 - 1.8 * i, label=one["label"])
            if i:
                away = [abs(a - b) for a, b in zip(values, losses[0], strict=True)]
                right.plot(steps, away, "o-", color=PALETTE[i], lw=1.5, label=one["label"])
        left.set(xlabel="step", title="Eval loss")
        right.set_yscale("symlog", linthresh=1e-6)  # it may be exactly 0
        right.set(xlabel="step", title="Distance from the first one's", ylim=(-1e-7, None))
        left.legend(frameon=False, fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path, facecolor="white")


#: What readers call the contenders of `.ci/card`, and their colours.
ON_A_CARD = {
    "adamw": ("AdamW", "#D55E00"),
    "adamw_scaled": ("AdamW, memory scaled to the run", "#E69F00"),
    "adamnx_auto": ("AdamNX, horizon=auto", "#0072B2"),
    "graft": ("AdamW's direction, AdamNX's length", "#009E73"),
    "adafactor_decay": ("Adafactor's decay", "#CC79A7"),
}


def draw_tuned(path: Path, content: dict[str, Any]) -> None:
    """Draws a sweep's curves over the learning rate, and the differences at each contender's best rate.

    Args:
        path: of the PNG to write.
        content: a verdict of `.ci/card`, with accuracy in percent as its primary metric.
    """
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    with plt.rc_context(RC):
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), dpi=150, layout="constrained")
        _draw_sweep(left, content)
        _draw_card_differences(right, content)
        right.set_title("At each one's best rate, on the test rows")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path, facecolor="white")


def _draw_sweep(axes: Any, content: dict[str, Any]) -> None:
    """Draws each contender's metric over the learning rate: a dot a seed, a line through the means."""
    for one in content["contenders"]:
        name, colour = ON_A_CARD[one["name"]]
        rates = [point["learning_rate"] for point in one["sweep"]]
        means = [sum(point["values"]) / len(point["values"]) for point in one["sweep"]]
        axes.plot(rates, means, color=colour, lw=2, label=name)
        for point in one["sweep"]:
            axes.plot(
                [point["learning_rate"]] * len(point["values"]), point["values"], ".", color=colour, ms=5
            )
        axes.plot(one["learning_rate"], max(means), "o", color=colour, ms=9, mec="white", zorder=5)
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{1000 * rate:g}" for rate in rates], minor=False)
    axes.set_xticks([], minor=True)
    seeds = len(one["sweep"][0]["seeds"])
    axes.set(xlabel="peak learning rate, thousandths", ylabel="top-1 accuracy on held-out rows, %")
    axes.set_title(f"The sweep: {seeds} seeds, their mean, and the rate that was chosen")
    axes.legend(frameon=False, fontsize=9, loc="lower left")


def _draw_card_differences(axes: Any, content: dict[str, Any]) -> None:
    """Draws each declared difference: a dot a seed, the mean and its interval, over what counts as none."""
    items = content["differences"]
    by_name = {one["name"]: one for one in content["contenders"]}
    for place, item in enumerate(items):
        first, second = (
            {run["seed"]: run[content["judged_by"]] for run in by_name[item[key]]["runs"]}
            for key in ("first", "second")
        )
        colour = ON_A_CARD[item["first"]][1]
        pairs = [first[seed] - second[seed] for seed in first]
        axes.plot(pairs, [place] * len(pairs), ".", color="#333333", ms=4, zorder=4)
        axes.plot([item["low"], item["high"]], [place] * 2, color=colour, lw=3, alpha=0.75)
        axes.plot(item["mean"], place, "o", color=colour, ms=8, mec="white", zorder=5)
    least = content["settings"]["smallest_effect"]
    axes.axvspan(-least, least, color="#eeeeee", zorder=0)
    axes.axvline(0, color="#444444", lw=1)
    axes.set_yticks(
        range(len(items)),
        [f"{ON_A_CARD[item['first']][0]}\nminus {ON_A_CARD[item['second']][0]}" for item in items],
        fontsize=9,
    )
    axes.set_ylim(len(items) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"difference in top-1, points (grey: under {least:g})")


def draw_protocols(path: Path, contents: Sequence[dict[str, Any]]) -> None:
    """Draws what the choice of the learning rate is worth beside the choice of the optimizer.

    Args:
        path: of the PNG to write.
        contents: verdicts of `.ci/card`: under the paper's protocol, and with tuned rates.
    """
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    with plt.rc_context(RC):
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), dpi=150, layout="constrained")
        rows = [(content, one) for content in contents for one in content["contenders"]]
        for place, (content, one) in enumerate(rows):
            colour, values = ON_A_CARD[one["name"]][1], [run[content["judged_by"]] for run in one["runs"]]
            left.barh(place, sum(values) / len(values), color=colour, alpha=0.75, height=0.62)
            left.plot(values, [place] * len(values), ".", color="#333333", ms=5)
        names = [f"{ON_A_CARD[one['name']][0]}, {one['learning_rate']:g}" for _, one in rows]
        left.set_yticks(range(len(rows)), names, fontsize=9)
        left.invert_yaxis()
        left.grid(axis="y", visible=False)
        left.set(xlabel="top-1 accuracy on the test rows, % (a dot a seed)")
        left.set_title("Optimizer, and its peak learning rate")
        _draw_card_differences(right, contents[0])
        right.set_title("All at the paper's 0.01")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path, facecolor="white")


def draw_results(folder: Path) -> list[Path]:
    """Draws the figures of the pages of results from the data beside them.

    Args:
        folder: `docs/results`.

    Returns:
        The PNGs written.
    """
    from adamnx_hf.studies import compare, jitter, sharpness

    def read(name: str) -> Any:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    written: list[Path] = []
    lengths = sorted((folder / "horizon").glob("*.json"), key=lambda path: int(path.stem))
    card = [read(f"cifar100_h200/{name}.json") for name in ("paper_protocol", "tuned")]
    figures: list[tuple[str, Callable[[Path, Any], None], Any]] = [
        ("ablation/comparison.png", compare.draw, read("ablation/comparison.json")),
        ("ablation/decay.png", compare.draw_decay, read("ablation/comparison.json")),
        ("adax/twins.png", draw_twins, read("adax/twins.json")),
        ("cifar100_h200/tuned.png", draw_tuned, read("cifar100_h200/tuned.json")),
        ("cifar100_h200/protocols.png", draw_protocols, card),
        ("flatness/sharpness.png", sharpness.draw, read("flatness/sharpness.json")),
        ("horizon/gains.png", draw_gains, [read(f"horizon/{path.name}") for path in lengths]),
        ("jitter/jitter.png", jitter.draw, read("jitter/jitter.json")),
    ]
    for name, draw, data in figures:
        draw(folder / name, data)
        written.append(folder / name)
    return written


def main(argv: list[str] | None = None) -> None:
    """Draws all figures into a folder."""
    parser = argparse.ArgumentParser(prog="python -m adamnx_hf.figures", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/images"))
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="draw those of the pages of results instead"
    )
    args = parser.parse_args(argv)
    if args.results:
        print(*draw_results(args.results), sep="\n")
        return
    for name, draw in (
        ("decay.png", draw_decay),
        ("kernel.png", draw_kernel),
        ("bfloat16.png", draw_bfloat16),
    ):
        draw(args.folder / name)
        print(args.folder / name)
