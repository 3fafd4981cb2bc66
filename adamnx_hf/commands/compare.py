"""`adamnx-hf compare RECIPE --optim A B ...`: compares optimizers on one recipe."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from adamnx_hf.common.errors import number
from adamnx_hf.studies.compare.contenders import parse_contenders, parse_sweeps
from adamnx_hf.studies.compare.study import Study, hide_folders

__all__ = ["EXTRA", "TAKES_FLAGS", "add_arguments", "make_study", "run"]

#: The extra of this package that has what this command needs.
EXTRA = "recipes"

#: A recipe's fields are flags, too.
TAKES_FLAGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `adamnx-hf compare`."""
    parser.usage = (
        "adamnx-hf compare RECIPE --optim NAME NAME ... [--seeds N] [--sweep FIELD=V,V ...] "
        "[--FIELD VALUE ...]"
    )
    parser.description = (
        "Trains a recipe with several optimizers over several seeds and says what the differences, paired by "
        "seed, allow to be said. A comparison that was interrupted goes on where it stopped."
    )
    parser.epilog = (
        "Other flags are the recipe's fields, for all runs: `adamnx-hf run RECIPE --help` lists them. "
        'Example: adamnx-hf compare cifar100_efficientnetv2_tiny --optim adamnx "adamnx horizon=auto" adamw '
        "--seeds 5 --sweep learning_rate=1e-3,3e-3,1e-2"
    )
    parser.add_argument("recipe", metavar="RECIPE", help="one that `adamnx-hf recipes` lists, or a file")
    parser.add_argument(
        "--optim",
        nargs="+",
        required=True,
        metavar="NAME",
        help='names as in TrainingArguments(optim=...), with settings as in "adamnx beta2_schedule=adam"; '
        "the first is compared with each other one",
    )
    parser.add_argument(
        "--seeds",
        type=number(int, 1),
        default=8,
        metavar="N",
        help="how many seeds judge (default: %(default)s)",
    )
    parser.add_argument(
        "--metric",
        help="metric that verdicts are about, and that a sweep chooses by: eval_loss, or one of the task's "
        "(default: the task's first)",
    )
    parser.add_argument(
        "--smallest-effect",
        "--smallest_effect",
        type=number(float, 0, inclusive=False),
        metavar="X",
        help="smallest difference in that metric that matters to you. Smaller ones are called neither better "
        "nor worse, and what is shown to be smaller is called no more than X apart (default: any matters)",
    )
    _add_sweep_arguments(parser)
    parser.add_argument(
        "--output-dir",
        "--output_dir",
        type=Path,
        metavar="FOLDER",
        help="where to write (default: runs/<recipe>/compare)",
    )
    parser.add_argument(
        "--keep-models",
        "--keep_models",
        action="store_true",
        help="also write the models of the runs that judge; `adamnx-hf sharpness` needs them",
    )
    parser.add_argument(
        "--overwrite-output-dir",
        "--overwrite_output_dir",
        action="store_true",
        help="run again what is in the folder with other settings",
    )


def _add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FIELD=V,V,...",
        help="values of a field that each optimizer chooses from; several sweeps give all combinations. "
        "A field that an optimizer's own settings fix is not swept for it",
    )
    parser.add_argument(
        "--sweep-seeds",
        "--sweep_seeds",
        type=number(int, 1),
        default=3,
        metavar="N",
        help="seeds that each value of a sweep is tried with; none of them judges (default: %(default)s)",
    )
    parser.add_argument(
        "--validation-split",
        "--validation_split",
        metavar="SPLIT",
        help="split that the sweep is judged on (default: --hold-out percent of the training split, which no "
        "run then trains on)",
    )
    parser.add_argument(
        "--hold-out",
        "--hold_out",
        type=number(int, 1),
        default=10,
        metavar="PERCENT",
        help="percent of the training split that the sweep is judged on (default: %(default)s). With "
        "--eval_on_held_out true, as many are first drawn for the runs that judge",
    )


def run(args: argparse.Namespace) -> None:
    """Carries the comparison out and prints it as Markdown."""
    if "--smoke" in args.flags:  # before anything imports the Hub's library, which looks once
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from adamnx_hf.studies.compare.execute import compare
    from adamnx_hf.studies.compare.markdown import markdown

    content = compare(make_study(args))
    print(markdown(content))
    print(f"\nWritten to {content['folder']}: comparison.json, comparison.md, comparison.png, decay.png")


def make_study(args: argparse.Namespace) -> Study:
    """Makes the study that the arguments ask for.

    Raises:
        RecipeError: an optimizer, a sweep or `--hold-out` does not fit.
    """
    flags = list(args.flags)
    if "eval_on_held_out" in _field_names(flags):  # --hold_out is an option here, no flag of the recipe
        flags.append(f"--hold_out={args.hold_out}")
    return Study(
        recipe=args.recipe,
        contenders=parse_contenders(args.optim),
        flags=flags,
        sweeps=parse_sweeps(args.sweep),
        seeds=args.seeds,
        sweep_seeds=args.sweep_seeds,
        validation_split=args.validation_split,
        hold_out=args.hold_out,
        metric=args.metric,
        smallest_effect=args.smallest_effect,
        output_dir=args.output_dir,
        keep_models=args.keep_models,
        overwrite=args.overwrite_output_dir,
        command=_format_command(args, flags),
    )


def _field_names(words: Sequence[str]) -> set[str]:
    flags = (word.partition("=")[0] for word in words if word.startswith("--"))
    return {flag.removeprefix("--").replace("-", "_") for flag in flags}


def _format_command(args: argparse.Namespace, flags: Sequence[str]) -> str:
    """Returns the command as it was typed, without folders of this machine and tokens."""
    from adamnx_hf.runs.command_line import hide_tokens

    options = ["--keep-models"] if args.keep_models else []
    options += [f"--sweep={text}" for text in args.sweep]
    if args.sweep:
        options += [f"--sweep-seeds={args.sweep_seeds}"]
        split = args.validation_split
        options += [f"--validation-split={split}"] if split else [f"--hold-out={args.hold_out}"]
    options += [f"--metric={args.metric}"] if args.metric else []
    options += [] if args.smallest_effect is None else [f"--smallest-effect={args.smallest_effect:g}"]
    words = []
    for word in hide_tokens(flags):
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        words.append(f"{flag}{equals}{hide_folders(value)}" if value else word)
    recipe = hide_folders(args.recipe)
    optims = ["--optim", *args.optim]
    return shlex.join(["adamnx-hf", "compare", recipe, *optims, f"--seeds={args.seeds}", *options, *words])
