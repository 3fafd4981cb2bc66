"""`adamnx-hf memory [RECIPE ...]`: bytes of parameters, gradients and states, before anything runs."""

from __future__ import annotations

import argparse

from adamnx_hf.common.text import format_table

__all__ = ["EXTRA", "add_arguments", "run"]

#: The extra of this package that has what this command needs.
EXTRA = "recipes"

_HEAD = ["recipe", "parameters", "trained", "bytes a parameter: weights", "gradients", "states", "all, GB"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `adamnx-hf memory`."""
    parser.description = (
        "Bytes of parameters, gradients and optimizer states of recipes, on one device that holds them all. "
        "Activations come on top of that. Nothing is loaded."
    )
    parser.add_argument(
        "recipes", nargs="*", metavar="RECIPE", help="default: all recipes that tell their model's size"
    )
    parser.add_argument(
        "--optim", nargs="+", metavar="NAME", help="as in TrainingArguments (default: the recipe's)"
    )


def run(args: argparse.Namespace) -> None:
    """Prints a table, in Markdown. GB are 10⁹ bytes."""
    from adamnx_hf.recipes.files import list_recipes, read_recipe
    from adamnx_hf.runs.memory import of_recipe

    names = args.recipes or [n for n, path in list_recipes().items() if read_recipe(path).get("model_config")]
    rows = [_HEAD]
    for name in names:
        for optim in args.optim or [None]:
            memory, count, trained = of_recipe(name, [f"--optim={optim}"] if optim else [])
            label = f"`{name}`" + (f" with {optim}" if optim else "")
            each = [f"{size / count:.3f}" for size in (memory.parameters, memory.gradients, memory.states)]
            rows.append([label, f"{count:,}", f"{trained:,}", *each, f"{memory.total / 1e9:.4g}"])
    print(format_table(rows, "lrrrrrr"))
