"""`adamnx-hf recipes`: lists the recipes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from adamnx_hf.common import hub
from adamnx_hf.common.errors import RecipeError, nearest, printable
from adamnx_hf.recipes.paper_tables import Table, tables
from adamnx_hf.recipes.resolve import folder, named, read

__all__ = ["add_arguments", "listing", "run"]


def listing() -> list[dict[str, Any]]:
    """The recipes: `name`, `task`, `title`, `model`, `data`, `paper_tables`, `hardware`, `hours`, `path`.

    And `published`, a list of `table`, `row`, the metrics by name, and `note`.
    """
    known = tables()
    found = []
    for name, path in named().items():
        values = read(path)
        numbers = values.get("paper_tables") or []
        found.append(
            {
                "name": name,
                "task": values["task"],
                "title": values.get("title", ""),
                "model": values.get("architecture") or values.get("model_name_or_path"),
                "data": values.get("dataset_name"),
                "paper_tables": numbers,
                "published": [entry for number in numbers for entry in _published(known[number])],
                "hardware": values.get("hardware", ""),
                "hours": str(values.get("hours", "")),
                "path": str(path),
            }
        )
    return found


def _published(table: Table) -> list[dict[str, Any]]:
    return [
        {"table": table.number, "row": row["label"], **row["published"], "note": " ".join(table.note.split())}
        for row in table.rows
        if row.get("published")
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `adamnx-hf recipes`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--hub", action="store_true", help="instead: those on the Hub, by their tag adamnx")
    parser.add_argument("--json", action="store_true", help="as JSON: a list of objects")


def run(args: argparse.Namespace) -> int:
    """Prints the list."""
    try:
        found = hub.tagged() if args.hub else listing()
        names = [recipe["name"] for recipe in found]
        for name in args.names:
            if name not in names:
                raise RecipeError(f"{name}: no recipe of that name{nearest(name, names)}")
    except RecipeError as error:
        print(f"adamnx-hf recipes: error: {error}", file=sys.stderr)
        return 1
    chosen = [recipe for recipe in found if not args.names or recipe["name"] in args.names]
    if args.json:
        print(json.dumps(chosen, indent=2, ensure_ascii=False))
        return 0
    if args.hub:
        for recipe in chosen:
            print(
                f"{printable(recipe['name'])}\n  changed    {recipe['last_modified']}\n"
                f"  downloads  {recipe['downloads']}"
            )
        print("\nTry one: adamnx-hf run NAME" if chosen else f"Nothing on the Hub has the tag {hub.TAG}")
        return 0
    print("\n\n".join(_block(recipe) for recipe in chosen))
    print("\nTry one: adamnx-hf run NAME --smoke")
    print(f"Configs for accelerate launch: {folder() / 'accelerate_configs'}")
    return 0


def _block(recipe: Mapping[str, Any]) -> str:
    numbers = recipe["paper_tables"]
    paper = (
        f"Table{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
        if numbers
        else "not of the paper"
    )
    lines = [
        recipe["name"],
        f"  task       {recipe['task']}",
        f"  model      {recipe['model']}",
        f"  data       {recipe['data']}",
        f"  paper      {paper}",
    ]
    if recipe["published"]:
        figures = []
        for entry in recipe["published"]:
            metrics = {k: v for k, v in entry.items() if k not in ("table", "row", "note")}
            figures.append(f"{entry['row']} {' / '.join(f'{value:.2f}' for value in metrics.values())}")
        kinds = " / ".join(key.replace("_", " ").replace("top", "top-") for key in metrics)
        lines.append(f"  published  {kinds}, %: {'; '.join(figures)}")
        if note := recipe["published"][0]["note"]:
            lines.append(f"             {note.partition('. ')[0]}.")
    elif numbers:
        lines.append("  published  not in the text we hold")
    return "\n".join([*lines, f"  hardware   {recipe['hardware']}", f"  hours      {recipe['hours']}"])
