"""`adamnx-hf paper`: the paper's tables beside whatever runs are found."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.recipes.paper_tables import Table, tables

__all__ = ["EXTRA", "add_arguments", "fill", "find_runs", "run"]

#: The extra of this package that `--curves` needs.
EXTRA = "recipes"

EMPTY = "\N{EN DASH}"

# Fields about the data that are others for a copy of the same data set.
_PLACE = re.compile(r"dataset_(name|config_name|revision)|data_files|\w+_column|\w+_field|box_format")


def find_runs(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """What the results.json files of `adamnx-hf run` under `folders` hold, with their `path`."""
    runs = []
    for root in folders:
        for path in sorted(root.rglob("results.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(content, dict) and _well_formed(content):
                runs.append(content | {"path": str(path.parent)})
    return runs


def _well_formed(content: Mapping[str, Any]) -> bool:
    metrics = content.get("metrics")
    return (
        all(isinstance(content.get(key), str) for key in ("recipe", "optim"))
        and all(isinstance(content.get(key, {}), dict) for key in ("changes", "data_changes"))
        and isinstance(metrics, dict)
        and all(
            isinstance(value, dict) and all(isinstance(value.get(k), int | float) for k in ("best", "last"))
            for value in metrics.values()
        )
    )


def _kind(optim: str, schedule: str | None) -> tuple[str, str | None]:
    """What tells the rows of a table apart: the name and, of AdamNX, the decay schedule."""
    return optim, (schedule or "adamnx") if optim == "adamnx" else None


def _kind_of_run(run: Mapping[str, Any]) -> tuple[str, str | None]:
    from trainer_patches.optim_args import split

    given = split(run["optim_args"]) if run.get("optim_args") else {}
    return _kind(run["optim"], given.get("beta2_schedule"))


def _objection(
    run: Mapping[str, Any], row: Mapping[str, Any] | None, table: Table, examples: Mapping[str, int]
) -> str:
    """Why `run` may not stand in the row; empty if it may."""
    changes = run.get("changes", {}) | {
        key: value for key, value in run.get("data_changes", {}).items() if not _PLACE.fullmatch(key)
    }
    if row is not None and "betas" in row and row["betas"] == run.get("betas"):
        changes = {key: value for key, value in changes.items() if not key.startswith("adam_beta")}
    if run.get("smoke"):
        return "a smoke run"
    if changes:
        return "changed: " + ", ".join(f"{key}={value}" for key, value in changes.items())
    for key, count in examples.items():
        if run.get(key) != count:
            return f"{run.get(key)} {key}, not {count}"
    if lacking := [metric for metric in table.metrics if metric not in run["metrics"]]:
        return f"no {lacking[0]} in its results.json"
    if row is None:
        return "no row for its optimizer"
    if "betas" in row and row["betas"] != run.get("betas"):
        return f"betas {run.get('betas')}, not {row['betas']}"
    return ""


def fill(
    table: Table, runs: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of `table` with the runs that belong there, and the runs of its recipe that do not.

    Returns:
        Rows of `label`, `published`, `runs` (paths), and by metric `best` and `last` (lists, one value a
        run); and `{"path", "why"}` of each run that was left out.
    """
    rows = [
        {"label": row["label"], "published": row.get("published", {}), "runs": [], "best": {}, "last": {}}
        for row in table.rows
    ]
    left_out = []
    kinds = [_kind(row["optim"], row.get("beta2_schedule")) for row in table.rows]
    candidates = []
    for run in runs:
        if run["recipe"] == table.recipe:
            kind = _kind_of_run(run)
            candidates.append((run, kinds.index(kind) if kind in kinds else None))

    def why_not(run: Mapping[str, Any], place: int | None, examples: Mapping[str, int]) -> str:
        return _objection(run, None if place is None else table.rows[place], table, examples)

    examples = next(
        (one for one in table.examples if not all(why_not(*candidate, one) for candidate in candidates)),
        table.examples[0],
    )
    for run, place in candidates:
        why = why_not(run, place, examples)
        if why or place is None:
            left_out.append({"path": run["path"], "why": why})
            continue
        rows[place]["runs"].append(run["path"] + (" (--fast)" if run.get("fast") else ""))
        for metric in table.metrics:
            for which in ("best", "last"):
                values = rows[place][which].setdefault(metric, [])
                values.append(run["metrics"][metric][which])
    return rows, left_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `adamnx-hf paper`."""
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], help="where to look for runs (default: runs)"
    )
    parser.add_argument(
        "--table", type=int, action="append", metavar="N", help="only this one; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--curves", type=Path, metavar="PNG", help="also draw the curves of the runs, all of one recipe"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the tables as Markdown."""
    try:
        known = tables()
        for number in args.table or []:
            if number not in known:
                raise RecipeError(f"--table {number}: the paper's tables are {', '.join(map(str, known))}")
        for root in args.folders:
            if not root.is_dir() and args.folders != [Path("runs")]:
                raise RecipeError(f"{root}: no such folder")
    except RecipeError as error:
        print(f"adamnx-hf paper: error: {error}", file=sys.stderr)
        return 1
    runs = find_runs(args.folders)
    if args.curves:
        try:
            _draw(args.curves, runs)
        except RecipeError as error:
            print(f"adamnx-hf paper: error: --curves: {error}", file=sys.stderr)
            return 1
    chosen = [known[number] for number in args.table or known]
    filled = [(table, *fill(table, runs)) for table in chosen]
    if args.json:
        print(
            json.dumps(
                [
                    {**dataclasses.asdict(table), "rows": rows, "left_out": left_out}
                    for table, rows, left_out in filled
                ],
                indent=2,
                ensure_ascii=False,
            )
        )
        return 0
    print("\n\n".join(markdown(*one) for one in filled))
    recipes = {table.recipe for table in known.values()}
    others = [run for run in runs if run["recipe"] not in recipes]
    if others:
        print("\n\nRuns of recipes that are not the paper's:\n")
        for run_ in others:
            figures = ", ".join(f"{_words(m)} {v['last']:.2f}" for m, v in run_["metrics"].items())
            print(f"- {run_['path']}: {run_['recipe']}, {run_['optim']}, last epoch: {figures}")
    return 0


def _draw(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    from adamnx_hf.runs import curves
    from adamnx_hf.tasks import load_task

    recipes = sorted({run["recipe"] for run in runs})
    if len(recipes) != 1:
        found = ", ".join(recipes) or "none"
        raise RecipeError(f"needs runs of one recipe, found {found}; name their folders")
    labels = [" ".join(filter(None, [run["optim"], run["optim_args"]])) for run in runs]
    several = len({run["seed"] for run in runs}) > 1
    named = {
        f"{label}, seed {run['seed']}" if several else label: run["per_epoch"]
        for label, run in zip(labels, runs, strict=True)
    }
    seeds = "" if several else f" \N{MIDDLE DOT} seed {runs[0]['seed']}"
    curves.draw_runs(path, f"{recipes[0]}{seeds}", named, load_task(runs[0]["task"]).METRICS)


def markdown(table: Table, rows: Sequence[Mapping[str, Any]], left_out: Sequence[Mapping[str, str]]) -> str:
    """One table as Markdown."""
    lines = [f"## Table {table.number}. {table.title}", ""]
    if table.recipe is None:
        return "\n".join([*lines, "There is no recipe for this table yet."])
    metrics = " / ".join(_words(metric) for metric in table.metrics)
    lines += [
        f"Recipe `{table.recipe}`. {metrics}, %.",
        "",
        "| | published (best) | here, best epoch | here, last epoch | runs |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        published = " / ".join(
            f"{row['published'][m]:.2f}" if m in row["published"] else EMPTY for m in table.metrics
        )
        here = [" / ".join(_mean(row[which].get(m)) for m in table.metrics) for which in ("best", "last")]
        cells = [row["label"], published, *here, str(len(row["runs"]))]
        lines.append(f"| {' | '.join(cells)} |")
    if table.note:
        lines += ["", " ".join(table.note.split())]
    if left_out:
        lines += ["", "Not in the table:", ""]
        lines += [f"- {one['path']}: {one['why']}" for one in left_out]
    return "\n".join(lines)


def _words(metric: str) -> str:
    return metric.replace("_", " ").replace("top", "top-")


def _mean(values: Sequence[float] | None) -> str:
    if not values:
        return EMPTY
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"
