"""`adamnx-hf run RECIPE [--flag value ...]`: trains a recipe and writes down what came out."""

from __future__ import annotations

import argparse
import os

from adamnx_hf.common.hub import SCHEME

__all__ = ["EXTRA", "add_arguments", "run"]

#: The extra of this package that has what this command needs.
EXTRA = "recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `adamnx-hf run`."""
    parser.usage = "adamnx-hf run RECIPE [--smoke] [--fast] [--FIELD VALUE ...]"
    parser.description = (
        "Trains a recipe. Under accelerate: accelerate launch -m adamnx_hf.cli run RECIPE ..."
    )
    parser.epilog = (
        "Every field of a recipe is a flag: TrainingArguments' own, and the task's. "
        "`adamnx-hf run RECIPE --help` lists those of the task, --help-all the others, too; "
        "`adamnx-hf recipes` lists the recipes."
    )
    for flag in ("--smoke", "--fast"):  # may stand before the recipe, too
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(hint="; the recipe comes first: adamnx-hf run RECIPE --FIELD VALUE")
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="one that `adamnx-hf recipes` lists, a file, or hf://me/name[@revision]",
    )
    parser.add_argument("flags", nargs=argparse.REMAINDER, metavar="...", help="fields to change, as flags")


def run(args: argparse.Namespace) -> None:
    """Trains the recipe, or prints its fields."""
    flags = [f"--{name}" for name in ("smoke", "fast") if getattr(args, name)] + args.flags
    # Before anything imports the Hub's library, which looks once.
    if "--smoke" in flags and not args.recipe.startswith(SCHEME):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if args.recipe.startswith(SCHEME):  # nobody is told who runs somebody's recipe
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from adamnx_hf.recipes.help import format_help
    from adamnx_hf.recipes.resolution import resolve

    if asked := {"--help", "-h", "--help-all"}.intersection(flags):
        print(format_help(args.recipe, every="--help-all" in asked))
        return
    recipe = resolve(args.recipe, flags)
    from adamnx_hf.runs.command_line import format_command
    from adamnx_hf.runs.training import train

    train(recipe, command=format_command(args.recipe, flags))
