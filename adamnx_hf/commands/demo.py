"""`adamnx-hf demo`: trains a small vision transformer with AdamNX and with AdamW, and draws the curves."""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path

from adamnx_hf.common.errors import RecipeError, number
from adamnx_hf.common.files import entries, write_text
from adamnx_hf.studies.demo.study import (
    LEARNING_RATE,
    MADE_BY,
    OPTIMS,
    Demo,
    compare_runs,
    describe,
    make_table,
    verdict,
)

__all__ = ["add_arguments", "check_folder", "run"]

RESULTS, CURVES = "results.json", "curves.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `adamnx-hf demo`."""
    parser.add_argument(
        "--output-dir", type=Path, default=Path("demo-output"), help="where to write (default: %(default)s)"
    )
    parser.add_argument(
        "--overwrite-output-dir", action="store_true", help="write even if the folder holds other files"
    )
    parser.add_argument(
        "--optim",
        nargs="+",
        default=list(OPTIMS),
        metavar="NAME",
        help="names as in TrainingArguments(optim=...); the first is compared with each other one",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=number(int, 0),
        default=[0, 1, 2],
        metavar="SEED",
        help="the seeds (default: 0 1 2)",
    )
    parser.add_argument("--epochs", type=number(int, 1), default=16, help="how many (default: %(default)s)")
    parser.add_argument(
        "--learning-rate",
        type=number(float, 0, inclusive=False),
        default=LEARNING_RATE,
        help="learning rate of all optimizers; the default, %(default)s, was chosen for AdamW",
    )


def run(args: argparse.Namespace) -> None:
    """Trains, writes `curves.png` and `results.json`, and prints a table."""
    for name in ("optim", "seeds"):
        values = getattr(args, name)
        if len(set(values)) < len(values):
            raise RecipeError(f"--{name} {' '.join(map(str, values))} names one twice")
    check_folder(args.output_dir, args.overwrite_output_dir)
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"--output-dir {args.output_dir}: {error.strerror}") from error
    # A module of the extra that is missing ends the command now, not after the training.
    for module in ("matplotlib", "scipy.stats", "sklearn"):
        importlib.import_module(module)
    from rich.console import Console

    from adamnx_hf.studies.demo.charts import draw
    from adamnx_hf.studies.demo.training import load_digits, train_all

    demo, folder = Demo(args.optim, args.seeds, args.epochs, args.learning_rate), args.output_dir
    console, started = Console(highlight=False), time.perf_counter()
    with console.status("Loading PyTorch, Transformers and the digits ..."):
        data = load_digits()
        for module in ("torch", "transformers"):
            importlib.import_module(module)
    runs, logits = train_all(demo, data, console)
    comparisons = compare_runs(demo, runs)
    write_text(folder / RESULTS, json.dumps(describe(demo, runs, comparisons), indent=2) + "\n")
    draw(folder / CURVES, demo, runs, data, logits)
    console.print(make_table(demo, runs, comparisons), markup=False)
    for item in comparisons:
        console.print(verdict(item), soft_wrap=True)
    console.print(
        f"\nDone in {time.perf_counter() - started:.0f} s. Numbers: {folder / RESULTS}. "
        f"Picture: {folder / CURVES}",
        soft_wrap=True,
    )


def check_folder(folder: Path, overwrite: bool) -> None:
    """Checks that `folder` holds nothing but what a demo has written.

    Raises:
        RecipeError: it is a file, or holds other files that may not be overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--output-dir {folder} is a file")
    if overwrite or not folder.exists():
        return
    names = {path.name for path in entries(folder)}
    try:
        ours = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["made_by"] == MADE_BY
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if foreign := sorted(names - {RESULTS, CURVES} if ours else names):
        raise RecipeError(
            f"{folder} holds files that are not the demo's ({', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}): choose another --output-dir, "
            f"or pass --overwrite-output-dir"
        )
