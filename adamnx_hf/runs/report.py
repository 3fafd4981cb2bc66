"""What a run leaves behind: its environment, its metrics by epoch, best and last, and its curves."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.common.files import save_figure, write_text
from adamnx_hf.tasks.base import Metric

__all__ = [
    "best_and_last",
    "draw",
    "draw_runs",
    "environment",
    "epochs",
    "fits_title",
    "run_command",
    "write_json",
]

_PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "pytorch-optimizer",
    "torchmetrics",
    "numpy",
    "pillow",
)


def environment() -> dict[str, Any]:
    """Versions, hardware and, in a checkout, the commit."""
    import torch

    import adamnx_hf

    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "adamnx-hf": adamnx_hf.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": packages,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }


def run_command(processes: int) -> list[str]:
    """The words of `adamnx-hf run` in so many processes."""
    if processes == 1:
        return ["adamnx-hf", "run"]
    return ["accelerate", "launch", "--num_processes", str(processes), "-m", "adamnx_hf.cli", "run"]


# What a recipe's title tells of, beside the data.
_NETWORK = (
    "architecture",
    "architecture_options",
    "model_name_or_path",
    "model_config",
    "use_peft",
    "load_in_4bit",
    "load_in_8bit",
)


def fits_title(changes: Mapping[str, Any], data_changes: Mapping[str, Any]) -> bool:
    """Whether a recipe's title is true of a run: flags changed neither which data nor which network.

    Args:
        changes: by flags, see :class:`adamnx_hf.recipes.resolve.Recipe`.
        data_changes: those of fields about the data.
    """
    from adamnx_hf.tasks.data import DataArguments

    told = {field.name for field in dataclasses.fields(DataArguments)}.union(_NETWORK)
    return not data_changes and told.isdisjoint(changes)


def _commit() -> str | None:
    """The commit of the checkout this package runs from; where there is none, GIT_COMMIT's or None."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return os.environ.get("GIT_COMMIT")

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return f"{commit} with changes" if commit and git("status", "--porcelain", "-uno") else commit or None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_json(path: Path, content: Any) -> None:
    """Writes `content`, whole or not at all; see :func:`adamnx_hf.common.files.beside`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def epochs(
    log_history: Sequence[Mapping[str, Any]], metrics: Sequence[str], seconds: Mapping[int, float]
) -> list[dict[str, Any]]:
    """One row per evaluation, from a Trainer's log.

    Args:
        log_history: `trainer.state.log_history`.
        metrics: names without `eval_`.
        seconds: of training alone, by the step at which an epoch ended.

    Returns:
        Rows of `epoch`, `step`, `learning_rate`, `train_loss` (mean of what was logged since the row before,
        weighted by its steps), `eval_loss`, the metrics and `train_seconds`. What is not known is None.
    """
    rows: list[dict[str, Any]] = []
    losses: list[tuple[int, float]] = []
    last_step, rate = 0, None
    for entry in log_history:
        step = entry.get("step", 0)
        if "loss" in entry:
            losses.append((step - last_step, entry["loss"]))
            last_step, rate = step, entry.get("learning_rate")
        if "eval_loss" in entry:
            weight = sum(steps for steps, _ in losses)
            row = {
                "epoch": round(entry["epoch"], 4),
                "step": step,
                "learning_rate": rate,
                "train_loss": sum(n * loss for n, loss in losses) / weight if weight else None,
                "eval_loss": entry["eval_loss"],
                **{name: entry.get(f"eval_{name}") for name in metrics},
                "train_seconds": round(seconds[step], 2) if step in seconds else None,
            }
            if rows and rows[-1]["step"] == step:  # evaluated again, with nothing trained in between
                before = rows.pop()
                row["train_loss"] = before["train_loss"] if row["train_loss"] is None else row["train_loss"]
            losses = []
            rows.append(row)
    return rows


def best_and_last(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Each metric's best value with its epoch, and the last epoch's; without metrics that no row has."""
    result = {}
    for name, metric in metrics.items():
        known = [row for row in rows if row.get(name) is not None]
        if known:
            numbers = [row for row in known if not math.isnan(row[name])]  # of which none is the best
            best = (min if metric.best == "min" else max)(numbers or known, key=lambda row: row[name])
            result[name] = {"best": best[name], "best_epoch": best["epoch"], "last": known[-1][name]}
    return result


def draw(path: Path, title: str, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric]) -> None:
    """The run's curves as a PNG: losses, metrics with best and last marked, learning rate."""
    draw_runs(path, title, {"": rows}, metrics)


def draw_runs(
    path: Path, title: str, runs: Mapping[str, Sequence[Mapping[str, Any]]], metrics: Mapping[str, Metric]
) -> None:
    """As :func:`draw`, of several runs in one picture.

    Args:
        path: of the PNG.
        title: of the picture.
        runs: rows of :func:`epochs` by the runs' labels.
        metrics: by name.
    """
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from adamnx_hf.common.drawing import PALETTE, RC

    plt.switch_backend("agg")
    with plt.rc_context(RC):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), dpi=150, layout="constrained")
        for i, (label, rows) in enumerate(runs.items()):
            colour = PALETTE[i % len(PALETTE)]
            x = [row["epoch"] for row in rows]
            prefix = f"{label}, " if label else ""
            marker = "o" if len(rows) < 30 else None
            for key, name, line in (("train_loss", "training", "--"), ("eval_loss", "evaluation", "-")):
                y = [row[key] for row in rows]
                left.plot(x, _gaps(y), line, color=colour, marker=marker, ms=3, label=f"{prefix}{name}")
            for j, (name, metric) in enumerate(metrics.items()):
                summary = best_and_last(rows, {name: metric}).get(name)
                if summary is None:  # not a metric of this run
                    continue
                values = _gaps([row.get(name) for row in rows])
                tint = colour if len(runs) > 1 else PALETTE[j % len(PALETTE)]
                words = name.replace("_", " ").replace("top", "top-")
                middle.plot(
                    x,
                    values,
                    "-" if j == 0 else "--",
                    color=tint,
                    marker=marker,
                    ms=3,
                    label=f"{prefix}{words}, best {summary['best']:.2f}",
                )
                middle.plot([summary["best_epoch"]], [summary["best"]], "*", color=tint, ms=11)
            right.plot(x, _gaps([row["learning_rate"] for row in rows]), color=colour, marker=marker, ms=3)
        left.set_title("Loss")
        middle.set_title("Metrics (star: best epoch)")
        right.set_title("Learning rate, last logged in the epoch")
        if any((row["learning_rate"] or 0) > 0 for rows in runs.values() for row in rows):
            right.set_yscale("log")
        for axes in (left, middle):
            if axes.lines:
                axes.legend(frameon=False, fontsize=9)
        for axes in (left, middle, right):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.suptitle(title, fontsize=12)
        save_figure(figure, path)


def _gaps(values: Sequence[Any]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]
