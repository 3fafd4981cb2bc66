"""`adamnx-hf sharpness RUN ...`: measures how flat the place is where runs have ended."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from adamnx_hf.common.errors import RecipeError, number

__all__ = ["EXTRA", "add_arguments", "run"]

#: The extra of this package that has what this command needs.
EXTRA = "recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `adamnx-hf sharpness`."""
    parser.usage = "adamnx-hf sharpness RUN [RUN ...] | COMPARISON [--optim LABEL LABEL ...]"
    parser.description = (
        "Measures how flat the place is where runs have ended, on their own training examples. The "
        "runs of a comparison made with --keep-models are also compared, in pairs of one seed."
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="folders of runs, or the folder of a comparison",
    )
    parser.add_argument(
        "--optim",
        nargs="+",
        metavar="LABEL",
        help="which of a comparison's optimizers; the first is compared with each other one (default: all)",
    )
    parser.add_argument(
        "--dataset-name", "--dataset_name", metavar="FOLDER", help="data set in place of the run's own"
    )
    for flag, kind, metavar, default, text in (
        ("--samples", number(int, 1), "N", 1000, "how many examples"),
        ("--random-radius", float, "R", 0.1,
         "size of the random moves, as a share of each filter's root mean square"),
        ("--ascent-radius", float, "R", 0.005,
         "radius of the ascent's ball, as such a share for each weight"),
        ("--directions", number(int, 2), "N", 8, "how many random moves"),
    ):  # fmt: skip
        parser.add_argument(
            flag, type=kind, metavar=metavar, default=default, help=f"{text} (default: %(default)s)"
        )


def run(args: argparse.Namespace) -> None:
    """Measures a comparison, or runs one by one, and prints what came out."""
    from tqdm import tqdm

    from adamnx_hf.runs.loaded import check_model
    from adamnx_hf.studies.sharpness.study import Settings, markdown, measure_comparison, measure_run

    for name in ("random_radius", "ascent_radius"):
        if not 0 < getattr(args, name) < math.inf:
            raise RecipeError(f"--{name.replace('_', '-')}: {getattr(args, name)} is not a number above 0")
    settings = Settings(
        args.samples, args.random_radius, args.ascent_radius, args.directions, args.dataset_name
    )
    folder = args.folders[0]
    if len(args.folders) == 1 and (folder / "comparison.json").is_file():
        print(markdown(measure_comparison(folder, settings, args.optim)))
        print(f"\nWritten to {folder}: sharpness.json, sharpness.png")
        return
    if args.optim:
        raise RecipeError("--optim: chooses among a comparison's optimizers; give the comparison's folder")
    for folder in args.folders:
        check_model(folder)
    for folder in tqdm(args.folders, desc="sharpness", unit=" runs", leave=False):
        print(json.dumps(measure_run(folder, settings), indent=1))
