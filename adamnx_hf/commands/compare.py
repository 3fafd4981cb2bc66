"""`adamnx-hf compare RECIPE --optim A B ...`: compares optimizers on one recipe."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.common.errors import RecipeError, number
from adamnx_hf.studies.compare.contenders import parse_contenders, parse_family, parse_sweeps
from adamnx_hf.studies.compare.plan_file import OPTIONS, PlanFile, read_plan_file, write_value
from adamnx_hf.studies.compare.study import Study, hide_folders

__all__ = ["EXTRA", "TAKES_FLAGS", "add_arguments", "make_study", "run"]

#: The extra of this package that has what this command needs.
EXTRA = "recipes"

#: A recipe's fields are flags, too.
TAKES_FLAGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `adamnx-hf compare`."""
    parser.usage = (
        "adamnx-hf compare RECIPE (--optim NAME NAME ... | --plan FILE) [--seeds N] "
        "[--sweep FIELD=V,V ...] [--FIELD VALUE ...]"
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
        metavar="NAME",
        help='names as in TrainingArguments(optim=...), with settings as in "adamnx beta2_schedule=adam"; '
        "the first is compared with each other one",
    )
    parser.add_argument(
        "--seeds",
        type=number(int, 1),
        metavar="N",
        help=f"how many seeds judge (default: {Study.seeds})",
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
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="YAML that settles beforehand what is run and how it is judged. Its hash and what other options "
        "change of it are kept",
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
        "A field that an optimizer's own settings fix is not swept for it. learning_rate=auto begins around "
        "the recipe's, goes on beyond an edge, and ends with values a factor of 1.41 apart around the best",
    )
    parser.add_argument(
        "--sweep-budget",
        "--sweep_budget",
        type=number(int, 5),
        metavar="N",
        help=f"values that each optimizer may try with learning_rate=auto (default: {Study.sweep_budget})",
    )
    parser.add_argument(
        "--sweep-seeds",
        "--sweep_seeds",
        type=number(int, 1),
        metavar="N",
        help=f"seeds that each value of a sweep is tried with; none judges (default: {Study.sweep_seeds})",
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
        metavar="PERCENT",
        help=f"percent of the training split that the sweep is judged on (default: {Study.hold_out}). With "
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
    print(f"\nWritten to {content['folder']}: comparison.json, comparison.md and pictures")


def make_study(args: argparse.Namespace) -> Study:
    """Makes the study that the arguments ask for, and their plan where they do not say otherwise.

    Raises:
        RecipeError: the plan, an optimizer, a sweep or `--hold-out` does not fit.
    """
    plan = read_plan_file(args.plan) if args.plan else PlanFile({}, "")
    typed = {key: value for key in OPTIONS if (value := getattr(args, key)) not in (None, [])}
    chosen: dict[str, Any] = {**plan.values, **typed}
    fields, sweeps = chosen.pop("fields", {}), chosen.pop("sweep", [])
    flags = [*(f"--{key}={write_value(value)}" for key, value in fields.items()), *args.flags]
    if "eval_on_held_out" in _read_fields(flags):  # --hold_out is an option here, no flag of the recipe
        flags.append(f"--hold_out={chosen.get('hold_out', Study.hold_out)}")
    if isinstance(sweeps, dict):
        sweeps = [f"{key}={write_value(values)}" for key, values in sweeps.items()]
    if "optim" not in chosen:
        raise RecipeError("--optim: names two optimizers or more; or name a --plan that does")
    contenders = parse_contenders(chosen.pop("optim"))
    given = {"sweep": "; ".join(args.sweep), "recipe": args.recipe, "fields": _read_fields(args.flags)}
    study = Study(
        recipe=args.recipe,
        contenders=contenders,
        family=parse_family(chosen.pop("family", ()), contenders),
        flags=flags,
        sweeps=parse_sweeps(sweeps),
        output_dir=args.output_dir,
        keep_models=args.keep_models,
        overwrite=args.overwrite_output_dir,
        plan=plan if args.plan else None,
        given=typed | given,
        **{key: value for key, value in chosen.items() if key != "recipe"},
    )
    return dataclasses.replace(study, command=_format_command(study, sweeps))


def _read_fields(words: Sequence[str]) -> dict[str, str]:
    """Returns the recipe's fields among the words of a command, with their values."""
    fields: dict[str, str] = {}
    for i, word in enumerate(words):
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            following = itertools.takewhile(lambda other: not other.startswith("--"), words[i + 1 :])
            fields[flag.removeprefix("--").replace("-", "_")] = value if equals else ",".join(following)
    return fields


def _format_command(study: Study, sweeps: Sequence[str]) -> str:
    """Returns a command that makes the study, without folders of this machine and tokens."""
    from adamnx_hf.runs.command_line import hide_tokens

    options = ["--keep-models"] if study.keep_models else []
    options += [f"--sweep={text}" for text in sweeps]
    if sweeps:
        split = study.validation_split
        options += [f"--sweep-seeds={study.sweep_seeds}"]
        options += [f"--sweep-budget={study.sweep_budget}"] if "learning_rate=auto" in sweeps else []
        options += [f"--validation-split={split}"] if split else [f"--hold-out={study.hold_out}"]
    options += [f"--metric={study.metric}"] if study.metric else []
    options += [] if study.smallest_effect is None else [f"--smallest-effect={study.smallest_effect:g}"]
    words = []
    for word in hide_tokens(study.flags):
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        words.append(f"{flag}{equals}{hide_folders(value)}" if value else word)
    optims = ["--optim", *(one.label for one in study.contenders)]
    start = ["adamnx-hf", "compare", hide_folders(study.recipe), *optims, f"--seeds={study.seeds}"]
    return shlex.join([*start, *options, *words])
