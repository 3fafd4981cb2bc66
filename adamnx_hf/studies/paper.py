"""The paper's tables beside whatever runs are found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.text import EN_DASH, format_metric, format_table
from adamnx_hf.recipes.paper_tables import Table
from adamnx_hf.studies.tables import format_mean

__all__ = ["draw_curves", "fill", "find_runs", "markdown"]

# Fields about the data that differ for a copy of the same data set.
_PLACE = re.compile(r"dataset_(name|config_name|revision)|data_files|\w+_column|\w+_field|box_format")


def find_runs(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Returns what the results.json files of `adamnx-hf run` under `folders` hold, with their `path`."""
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
    """Returns what tells the rows of a table apart: the name and, for AdamNX, the decay schedule."""
    return optim, (schedule or "adamnx") if optim == "adamnx" else None


def _kind_of_run(run: Mapping[str, Any]) -> tuple[str, str | None]:
    from trainer_patches.optim_args import split

    given = split(run["optim_args"]) if run.get("optim_args") else {}
    return _kind(run["optim"], given.get("beta2_schedule"))


def _objection(
    run: Mapping[str, Any], row: Mapping[str, Any] | None, table: Table, examples: Mapping[str, int]
) -> str:
    """Says why `run` may not stand in the row; empty if it may."""
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
    """Sorts runs into the rows of a table.

    Returns:
        The rows: each has a `label`, the `published` metrics, `runs` (paths), and by metric `best` and `last`
        (lists, one value a run). And the runs of the table's recipe that were left out: `path` and `why`.
    """
    rows = [
        {"label": row["label"], "published": row.get("published", {}), "runs": [], "best": {}, "last": {}}
        for row in table.rows
    ]
    kinds = [_kind(row["optim"], row.get("beta2_schedule")) for row in table.rows]
    candidates = [run for run in runs if run["recipe"] == table.recipe]
    places = [kinds.index(kind) if (kind := _kind_of_run(run)) in kinds else None for run in candidates]
    given = [None if place is None else table.rows[place] for place in places]
    tried = [
        [_objection(run, row, table, examples) for run, row in zip(candidates, given, strict=True)]
        for examples in table.examples
    ]
    objections = next((one for one in tried if not all(one)), tried[0])
    left_out = []
    for run, place, why in zip(candidates, places, objections, strict=True):
        if why or place is None:
            left_out.append({"path": run["path"], "why": why})
            continue
        rows[place]["runs"].append(run["path"] + (" (--fast)" if run.get("fast") else ""))
        for metric in table.metrics:
            for which in ("best", "last"):
                rows[place][which].setdefault(metric, []).append(run["metrics"][metric][which])
    return rows, left_out


def draw_curves(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Draws the curves of several runs in one picture.

    Args:
        path: where the PNG is written.
        runs: of :func:`find_runs`, all of one recipe.

    Raises:
        RecipeError: the runs are of several recipes, or there are none.
    """
    from adamnx_hf.runs.curves import draw_runs
    from adamnx_hf.tasks import load_task

    recipes = sorted({run["recipe"] for run in runs})
    if len(recipes) != 1:
        raise RecipeError(
            f"--curves: needs runs of one recipe, found {', '.join(recipes) or 'none'}; name their folders"
        )
    labels = [" ".join(filter(None, [run["optim"], run["optim_args"]])) for run in runs]
    several = len({run["seed"] for run in runs}) > 1
    named = {
        f"{label}, seed {run['seed']}" if several else label: run["per_epoch"]
        for label, run in zip(labels, runs, strict=True)
    }
    seeds = "" if several else f" \N{MIDDLE DOT} seed {runs[0]['seed']}"
    draw_runs(path, f"{recipes[0]}{seeds}", named, load_task(runs[0]["task"]).METRICS)


def markdown(table: Table, rows: Sequence[Mapping[str, Any]], left_out: Sequence[Mapping[str, str]]) -> str:
    """Returns one table as Markdown; see :func:`fill`."""
    lines = [f"## Table {table.number}. {table.title}", ""]
    if table.recipe is None:
        return "\n".join([*lines, "There is no recipe for this table yet."])
    cells = [["", "published (best)", "here, best epoch", "here, last epoch", "runs"]]
    for row in rows:
        published = {metric: [value] for metric, value in row["published"].items()}
        figures = [_figures(values, table.metrics) for values in (published, row["best"], row["last"])]
        cells.append([row["label"], *figures, str(len(row["runs"]))])
    metrics = " / ".join(map(format_metric, table.metrics))
    lines += [f"Recipe `{table.recipe}`. {metrics}, %.", "", format_table(cells, "lrrrr")]
    if table.note:
        lines += ["", " ".join(table.note.split())]
    if left_out:
        lines += ["", "Not in the table:", ""]
        lines += [f"- {one['path']}: {one['why']}" for one in left_out]
    return "\n".join(lines)


def _figures(values: Mapping[str, Sequence[float]], metrics: Sequence[str]) -> str:
    return " / ".join(
        format_mean(values[name], ".2f", ".2f") if values.get(name) else EN_DASH for name in metrics
    )
