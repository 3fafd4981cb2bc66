"""`adamnx-hf recipes`: lists the recipes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from adamnx_hf.common import hub
from adamnx_hf.common.errors import RecipeError, nearest, printable
from adamnx_hf.common.text import format_metric
from adamnx_hf.recipes.files import find_folder
from adamnx_hf.recipes.listing import describe_recipes

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `adamnx-hf recipes`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--hub", action="store_true", help="instead: those on the Hub, by their tag adamnx")
    parser.add_argument("--json", action="store_true", help="as JSON: a list of objects")


def run(args: argparse.Namespace) -> None:
    """Prints the list."""
    found = hub.tagged() if args.hub else describe_recipes()
    names = [recipe["name"] for recipe in found]
    for name in args.names:
        if name not in names:
            raise RecipeError(f"{name}: no recipe of that name{nearest(name, names)}")
    chosen = [recipe for recipe in found if not args.names or recipe["name"] in args.names]
    if args.json:
        print(json.dumps(chosen, indent=2, ensure_ascii=False))
    elif args.hub:
        for recipe in chosen:
            print(
                f"{printable(recipe['name'])}\n  changed    {recipe['last_modified']}\n"
                f"  downloads  {recipe['downloads']}"
            )
        print("\nTry one: adamnx-hf run NAME" if chosen else f"Nothing on the Hub has the tag {hub.TAG}")
    else:
        print("\n\n".join(format_recipe(recipe) for recipe in chosen))
        print("\nTry one: adamnx-hf run NAME --smoke")
        print(f"Configs for accelerate launch: {find_folder() / 'accelerate_configs'}")


def format_recipe(recipe: Mapping[str, Any]) -> str:
    """Returns the lines about one recipe.

    Args:
        recipe: an entry of :func:`adamnx_hf.recipes.listing.describe_recipes`.
    """
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
        lines.append(f"  published  {' / '.join(map(format_metric, metrics))}, %: {'; '.join(figures)}")
        if note := recipe["published"][0]["note"]:
            lines.append(f"             {note.partition('. ')[0]}.")
    elif numbers:
        lines.append("  published  not in the text we hold")
    return "\n".join([*lines, f"  hardware   {recipe['hardware']}", f"  hours      {recipe['hours']}"])
