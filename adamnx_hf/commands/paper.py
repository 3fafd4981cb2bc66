"""`adamnx-hf paper`: shows the paper's tables beside whatever runs are found."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.text import format_metric
from adamnx_hf.recipes.paper_tables import tables
from adamnx_hf.studies.paper import draw_curves, fill, find_runs, markdown

__all__ = ["EXTRA", "add_arguments", "run"]

#: The extra of this package that `--curves` needs.
EXTRA = "recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `adamnx-hf paper`."""
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], help="where to look for runs (default: runs)"
    )
    parser.add_argument(
        "--table", type=int, action="append", metavar="N", help="show only this table; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--curves", type=Path, metavar="PNG", help="also draw the curves of the runs, all of one recipe"
    )


def run(args: argparse.Namespace) -> None:
    """Prints the tables as Markdown or JSON, and draws the curves if they are wanted."""
    known = tables()
    for number in args.table or []:
        if number not in known:
            raise RecipeError(f"--table {number}: the paper's tables are {', '.join(map(str, known))}")
    for root in args.folders:
        if not root.is_dir() and args.folders != [Path("runs")]:
            raise RecipeError(f"{root}: no such folder")
    runs = find_runs(args.folders)
    if args.curves:
        draw_curves(args.curves, runs)
    chosen = [known[number] for number in args.table or known]
    filled = [(table, *fill(table, runs)) for table in chosen]
    if args.json:
        content = [
            {**dataclasses.asdict(table), "rows": rows, "left_out": left_out}
            for table, rows, left_out in filled
        ]
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    print("\n\n".join(markdown(*one) for one in filled))
    recipes = {table.recipe for table in known.values()}
    others = [run for run in runs if run["recipe"] not in recipes]
    if others:
        print("\n\nRuns of recipes that are not the paper's:\n")
    for run in others:
        figures = ", ".join(f"{format_metric(m)} {v['last']:.2f}" for m, v in run["metrics"].items())
        print(f"- {run['path']}: {run['recipe']}, {run['optim']}, last epoch: {figures}")
