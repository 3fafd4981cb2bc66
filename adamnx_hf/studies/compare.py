"""`adamnx-hf compare RECIPE --optim A B ...`: optimizers on one recipe, paired by seed, each at its best.

For each seed every optimizer starts from the same weights and sees the same batches. With `--sweep` each
takes the values, of the same grid for all, that do best on data held out of the training split; then it is
judged on the recipe's evaluation split, with other seeds, after the last step. What is said of two
optimizers follows from Student's t interval of their paired differences.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import shlex
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.common.errors import RecipeError, number
from adamnx_hf.common.files import save_figure, sole_writer, write_json, write_text
from adamnx_hf.common.splits import judged_on_training_rows, overlap, training_rows
from adamnx_hf.studies.paired import Difference, compared

__all__ = ["EXTRA", "TAKES_FLAGS", "Contender", "add_arguments", "compare", "markdown", "run", "verdict"]

#: The extra of this package that has what this command needs.
EXTRA = "recipes"

#: A recipe's fields are flags, too.
TAKES_FLAGS = True

LOSS = "eval_loss"
MINUS = "\N{MINUS SIGN}"

# A sweep's seeds are none of those that judge.
_SWEEP_SEEDS_FROM = 1000

# Of every run: quiet, and nothing kept but its results.
_FLAGS = ("--save_strategy=no", "--load_best_model_at_end=false", "--report_to=none", "--push_to_hub=false")

# Of a model that was kept: a whole one, or an adapter.
_MODEL_CONFIGS = ("config.json", "adapter_config.json")

# What belongs to the comparison, not to an optimizer.
_RESERVED = {
    "seed": "is the comparison's: give the first one as a flag, and how many with --seeds",
    "optim": "is what is compared; name optimizers with --optim",
    "optim_args": "is made of the settings themselves: NAME KEY=VALUE",
    "output_dir": "is the comparison's: --output-dir",
    **dict.fromkeys(
        (
            "train_split",
            "eval_split",
            "hold_out",
            "hold_out_seed",
            "eval_on_held_out",
            "sweep_hold_out",
            "eval_on_sweep_rows",
            "max_train_samples",
            "max_eval_samples",
        ),
        "has to be the same for all: give it as a flag",
    ),
}


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer and what is set with it: `adamnx beta2_schedule=adam`, `adamw adam_beta2=0.95`."""

    label: str

    @property
    def settings(self) -> dict[str, str]:
        """What stands after the name."""
        pairs = [word.partition("=") for word in self.label.split()[1:]]
        for key, equals, value in pairs:
            if not (key and equals and value):
                raise RecipeError(f"--optim {self.label!r}: write NAME KEY=VALUE ..., in quotes")
        return {key: value for key, _, value in pairs}

    def flags(self, fields: Sequence[str], optim_args: str | None = None) -> list[str]:
        """As flags of `adamnx-hf run`: what is no field of the recipe belongs to optim_args.

        Args:
            fields: of the recipe.
            optim_args: which the optimizer has from the recipe; its own settings are added, and win.
        """
        from trainer_patches.optim_args import split

        own = {key: value for key, value in self.settings.items() if key in fields}
        others = {key: value for key, value in self.settings.items() if key not in fields}
        words = [f"--optim={self.label.split()[0]}", *(f"--{key}={value}" for key, value in own.items())]
        if others:
            together = {**(split(optim_args) if optim_args else {}), **others}
            words.append("--optim_args=" + ",".join(f"{key}={value}" for key, value in together.items()))
        return words

    @property
    def folder(self) -> str:
        """Its name as a folder's."""
        return re.sub(r"[^\w.=-]+", "-", self.label)


@dataclasses.dataclass
class _Run:
    """One training run of a comparison."""

    contender: Contender
    seed: int
    values: dict[str, str]
    """Of the swept fields."""
    folder: Path
    words: list[str]
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    keep_model: bool = False

    def score(self, metric: str) -> float:
        """Its value after the last step; nan where it is not known or not finite."""
        value = self.results["per_epoch"][-1].get(metric)
        return float(value) if value is not None and math.isfinite(value) else math.nan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `adamnx-hf compare`."""
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
        "--seeds", type=number(int, 1), default=5, metavar="N", help="how many judge (default: %(default)s)"
    )
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FIELD=V,V,...",
        help="values of a field to choose from for each optimizer; of several sweeps, all combinations. "
        "A field that an optimizer's own settings fix is not swept for it",
    )
    parser.add_argument(
        "--sweep-seeds",
        "--sweep_seeds",
        type=number(int, 1),
        default=1,
        metavar="N",
        help="seeds of each sweep value, none of which judges (default: %(default)s)",
    )
    parser.add_argument(
        "--validation-split",
        "--validation_split",
        metavar="SPLIT",
        help="split that the sweep is judged on. Default: --hold-out percent of the training split, on which "
        "then no run trains",
    )
    parser.add_argument(
        "--hold-out",
        "--hold_out",
        type=number(int, 1),
        default=10,
        metavar="PERCENT",
        help="of the training split, for the sweep (default: %(default)s). With --eval_on_held_out true as "
        "many are drawn before, to judge by",
    )
    parser.add_argument(
        "--metric",
        help="what the sweep chooses by: eval_loss, or one of the task's (default: the task's first)",
    )
    parser.add_argument(
        "--output-dir",
        "--output_dir",
        type=Path,
        metavar="FOLDER",
        help="default: runs/<recipe>/compare",
    )
    parser.add_argument(
        "--keep-models",
        "--keep_models",
        action="store_true",
        help="write the models of the runs that judge, too, as for `adamnx-hf sharpness`",
    )
    parser.add_argument(
        "--overwrite-output-dir",
        "--overwrite_output_dir",
        action="store_true",
        help="run again what stands in the folder with other settings",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    if "--smoke" in args.flags:  # before anything imports the Hub's library, which looks once
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        content = compare(args)
    except RecipeError as error:
        print(f"adamnx-hf compare: error: {error}", file=sys.stderr)
        return 1
    print(markdown(content))
    print(f"\nWritten to {content['folder']}: comparison.json, comparison.md, comparison.png, decay.png")
    return 0


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Runs what has not been run yet, and writes the comparison.

    Args:
        args: of :func:`add_arguments`, with `flags`, the recipe's own.

    Returns:
        What comparison.json holds, with its `folder`.

    Raises:
        RecipeError: something does not fit, or another comparison is writing into the folder; nothing has
            been trained by then.
    """
    from adamnx_hf import recipes

    _contenders(args.optim)
    if args.hold_out > 50:
        raise RecipeError(f"--hold-out: {args.hold_out} percent leaves too little to train on; 50 at most")
    if "eval_on_held_out" in _flag_names(args.flags):  # --hold_out is an option here, no flag of the recipe
        args.flags = [*args.flags, f"--hold_out={args.hold_out}"]
    base = recipes.resolve(args.recipe, [*args.flags, *_FLAGS])
    folder = args.output_dir or Path("runs") / base.name / "compare"
    with sole_writer(folder):
        return _compare(args, base, folder)


def _compare(args: argparse.Namespace, base: Any, folder: Path) -> dict[str, Any]:
    from adamnx_hf import recipes
    from adamnx_hf.runs.environment import describe_environment
    from adamnx_hf.runs.titles import find_title, list_data_changes

    contenders = _contenders(args.optim)
    metrics = {LOSS: "min", **{name: metric.best for name, metric in base.task.METRICS.items()}}
    chosen_by = args.metric or next(iter(base.task.METRICS), LOSS)
    if chosen_by not in metrics:
        raise RecipeError(f"--metric: {chosen_by!r} is none of {', '.join(metrics)}")
    seed = base.training_arguments.seed
    sweeps = _sweeps(args.sweep)
    parts, validation = _splits(args, base.task_arguments) if sweeps else ([], [])
    fields = recipes.list_fields(args.recipe)
    own_optim_args = {one: _own_optim_args(args, one) for one in contenders}

    def make(contender: Contender, values: dict[str, str], seed: int, where: Path, splits: list[str]) -> _Run:
        swept = [f"--{key}={value}" for key, value in values.items()]
        words = [*args.flags, *_FLAGS, *contender.flags(fields, own_optim_args[contender])]
        words += [*swept, *splits]
        words += [f"--seed={seed}", "--overwrite_output_dir=true", "--disable_tqdm=true"]
        return _Run(contender, seed, values, where, [*words, f"--output_dir={where}"])

    grids = {one: _grid(sweeps, one) for one in contenders}
    if sweeps and all(len(grid) == 1 for grid in grids.values()):
        raise RecipeError("--sweep: the settings of every optimizer fix what it would choose; leave it out")
    sweep_runs = [
        make(
            one,
            values,
            seed + _SWEEP_SEEDS_FROM + i,
            folder / "sweep" / one.folder / _slug(values) / f"seed{i}",
            validation,
        )
        for one in contenders
        for values in grids[one]
        if len(grids[one]) > 1
        for i in range(args.sweep_seeds)
    ]
    # Nothing is trained before everything has been found to fit: also the values that may be chosen.
    judging = {
        (one, _slug(values), i): make(
            one, values, seed + i, folder / one.folder / _slug(values) / f"seed{i}", parts
        )
        for one in contenders
        for values in grids[one]
        for i in range(args.seeds)
    }
    for item in judging.values():
        item.keep_model = args.keep_models
    for item in (*sweep_runs, *judging.values()):
        # The first seed tells whether settings fit; for the others it is enough to look at what is there.
        if item.folder.name == "seed0" or (item.folder / "results.json").is_file():
            _look(item, args)

    on_training_rows = judged_on_training_rows(base)
    if on_training_rows:
        print(
            f"adamnx-hf compare: {training_rows(base.task_arguments)}; each verdict says so", file=sys.stderr
        )
    bar = _Progress(len(sweep_runs) + len(contenders) * args.seeds)
    with bar:
        for item in sweep_runs:
            _carry_out(item, args, bar)
            if all(row.get(chosen_by) is None for row in item.results["per_epoch"]):
                raise RecipeError(
                    f"--metric: no evaluation on these data gives {chosen_by}; choose by another, such as "
                    f"--metric {LOSS}"
                )
        chosen = {
            one: _best(one, grids[one], sweep_runs, chosen_by, metrics[chosen_by]) for one in contenders
        }
        runs = []
        # Seed by seed, so that what an interrupted comparison has is in pairs.
        todo = [judging[one, _slug(chosen[one]), i] for i in range(args.seeds) for one in contenders]
        for item in todo:
            _carry_out(item, args, bar)
            runs.append(item)

    # A task's metric that this recipe does not ask for is in no run.
    metrics = {
        name: kind
        for name, kind in metrics.items()
        if name == LOSS or any(row.get(name) is not None for run in runs for row in run.results["per_epoch"])
    }
    first, *others = contenders
    content = {
        "recipe": base.name,
        "title": find_title(base),
        "data": "made up" if base.synthetic_data else _without_folder(base.task_arguments.dataset_name),
        "data_changes": _without_folder(list_data_changes(base)),
        "command": _command(args),
        "seeds": [seed + i for i in range(args.seeds)],
        "sweep": {key: list(values) for key, values in sweeps.items()},
        "sweep_seeds": args.sweep_seeds if sweeps else 0,
        "chosen_by": chosen_by if sweeps else None,
        "splits": _told(args, base.task_arguments, bool(sweeps)),
        "judged_on_training_rows": on_training_rows,
        "smoke": base.arguments.smoke,
        "metrics": metrics,
        "commits": sorted({str(run.results["environment"].get("commit")) for run in runs}),
        "contenders": [
            _summary(one, chosen[one], grids[one], sweep_runs, runs, metrics, chosen_by) for one in contenders
        ],
        "comparisons": [
            _comparison(first, second, metric, kind, runs, on_training_rows)
            for second in others
            for metric, kind in metrics.items()
        ],
        "environment": describe_environment(),
    }  # fmt: skip
    write_json(folder / "comparison.json", content)
    write_text(folder / "comparison.md", markdown(content) + "\n")
    draw(folder / "comparison.png", content)
    draw_decay(folder / "decay.png", content)
    return content | {"folder": str(folder)}


def _sweeps(texts: Sequence[str]) -> dict[str, list[str]]:
    """`["learning_rate=1e-3,3e-3"]` by field."""
    result: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        words = [word.strip() for word in values.split(",") if word.strip()]
        if not equals or len({_as_number(word) for word in words}) < max(2, len(words)):
            raise RecipeError(f"--sweep {text!r}: write FIELD=VALUE,VALUE,... with two values or more")
        if key in _RESERVED:
            raise RecipeError(f"--sweep: {key} {_RESERVED[key]}")
        if key in result:
            raise RecipeError(f"--sweep: {key} is given twice")
        result[key] = words
    return result


def _grid(sweeps: dict[str, list[str]], contender: Contender) -> list[dict[str, str]]:
    swept = {key: values for key, values in sweeps.items() if key not in contender.settings}
    return [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]


def _slug(values: dict[str, str]) -> str:
    return "-".join(f"{key}={value}" for key, value in values.items()) or "as-given"


def _as_number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def _contenders(labels: Sequence[str]) -> list[Contender]:
    """The optimizers, each once.

    Raises:
        RecipeError: there are fewer than two, one is given twice, or sets what a comparison sets itself.
    """
    contenders = [Contender(" ".join(label.split())) for label in labels]
    seen: dict[Any, str] = {}
    for one in contenders:
        if not one.label:
            raise RecipeError("--optim: an empty name")
        if reserved := [key for key in one.settings if key in _RESERVED]:
            raise RecipeError(f"--optim {one.label!r}: {reserved[0]} {_RESERVED[reserved[0]]}")
        for key in ((one.label.split()[0], frozenset(one.settings.items())), one.folder):
            if key in seen:
                raise RecipeError(f"--optim: {one.label!r} is {seen[key]!r} again; each is compared once")
            seen[key] = one.label
    if len(contenders) < 2:
        raise RecipeError(f"--optim: needs two optimizers or more; got {labels[0]!r}")
    return contenders


def _own_optim_args(args: argparse.Namespace, one: Contender) -> str | None:
    """The optim_args that the recipe, or a flag, gives to this optimizer."""
    from adamnx_hf import recipes

    with _as_it_was():
        try:
            flags = [*args.flags, *_FLAGS, f"--optim={one.label.split()[0]}"]
            given: str | None = recipes.resolve(args.recipe, flags).training_arguments.optim_args
        except RecipeError as error:
            raise RecipeError(f"{one.label}: {error}") from error
    return given


def _splits(args: argparse.Namespace, arguments: Any) -> tuple[list[str], list[str]]:
    """The flags of the judged runs and of the sweep's that say which rows are whose.

    Raises:
        RecipeError: the sweep would choose by rows that are trained on or judged on.
    """
    if not args.validation_split:
        held_out = f"--sweep_hold_out={args.hold_out}"
        return [held_out], [held_out, "--eval_on_sweep_rows=true"]
    for field in ("eval_split", "train_split"):
        if overlap(args.validation_split, getattr(arguments, field)):
            raise RecipeError(
                f"--validation-split: {args.validation_split} has rows of {field} "
                f"({getattr(arguments, field)}); name others, or leave it out for a part of the training rows"
            )
    on_the_split = ["--eval_on_held_out=false"] if arguments.eval_on_held_out else []
    return [], [f"--eval_split={args.validation_split}", *on_the_split]


def _flag_names(words: Sequence[str]) -> set[str]:
    """The fields that `words` of a command line set."""
    flags = (word.partition("=")[0] for word in words if word.startswith("--"))
    return {flag.removeprefix("--").replace("-", "_") for flag in flags}


def _told(args: argparse.Namespace, arguments: Any, swept: bool) -> dict[str, str | None]:
    """Which rows were trained on, chosen by and judged by, in words."""
    train, left = arguments.train_split, 100.0
    rows = {"train": train, "sweep": None, "judged": arguments.eval_split}
    swept_percent = args.hold_out if swept and not args.validation_split else 0
    for name, percent in (("judged", arguments.hold_out), ("sweep", swept_percent)):
        if percent:
            drawn, left = left * percent / 100, left * (100 - percent) / 100
            rows["train"] = f"{left:g} % of {train}"
            if name == "sweep" or arguments.eval_on_held_out:
                rows[name] = f"another {drawn:g} % of {train}, drawn at random"
    if swept and args.validation_split:
        rows["sweep"] = args.validation_split
    return rows


def _resolve(item: _Run, args: argparse.Namespace) -> Any:
    from adamnx_hf import recipes

    with _as_it_was():
        try:
            return recipes.resolve(args.recipe, item.words)
        except RecipeError as error:
            raise RecipeError(f"{item.contender.label}: {error}") from error


def _look(item: _Run, args: argparse.Namespace) -> None:
    """Takes over the results of a run that is done already.

    Raises:
        RecipeError: those in its folder are of other settings, and may not be overwritten.
    """
    import yaml

    from adamnx_hf.recipes import as_file, read_recipe

    resolved, path = _resolve(item, args), item.folder / "results.json"
    _try_optimizer(resolved, item)
    if not path.is_file():
        return
    expected = yaml.safe_load(yaml.safe_dump(as_file(resolved)))
    there = read_recipe(item.folder / "recipe.yaml") if (item.folder / "recipe.yaml").is_file() else {}
    for fields in (expected, there):  # a run writes the title down only where it is true of the data
        fields.pop("title", None)
    if there == expected:
        if item.keep_model and not any((item.folder / name).is_file() for name in _MODEL_CONFIGS):
            return  # it was run without its model being kept: again
        with contextlib.suppress(ValueError):  # damaged: run again
            item.results = json.loads(path.read_text(encoding="utf-8"))
    elif not args.overwrite_output_dir:
        other = next(key for key in {**expected, **there} if expected.get(key) != there.get(key))
        raise RecipeError(
            f"output_dir: {item.folder} holds a run with {other}={there.get(other)}, not "
            f"{expected.get(other)}; choose another --output-dir or pass --overwrite-output-dir"
        )


def _try_optimizer(recipe: Any, item: _Run) -> None:
    """That the optimizer takes its settings: Transformers asks it only when training begins."""
    from adamnx_hf.runs.trial import try_optimizer

    with _as_it_was():
        try:
            try_optimizer(recipe.training_arguments)
        except RecipeError as error:
            raise RecipeError(f"{item.contender.label}: {error}") from error


def _carry_out(item: _Run, args: argparse.Namespace, bar: _Progress) -> None:
    """Trains, unless it is done.

    Raises:
        RecipeError: see :func:`adamnx_hf.runs.training.train`. Or no step was taken.
    """
    if item.results:
        bar.skip()
    else:
        _train(item, args, bar)
    if not item.results["steps"]:
        raise RecipeError(
            f"{item.contender.label}: took no step in {item.folder}, so nothing can be compared; give more "
            "rows, or a smaller --per_device_train_batch_size"
        )


def _train(item: _Run, args: argparse.Namespace, bar: _Progress) -> None:
    from adamnx_hf.runs.training import train

    with _as_it_was():
        recipe = _resolve(item, args)
        # Of other settings; a model, too, which would pass for this run's.
        for name in ("results.json", *_MODEL_CONFIGS):
            (item.folder / name).unlink(missing_ok=True)
        values = "".join(f", {key} {value}" for key, value in item.values.items())
        what = f"{item.contender.label}{values}, seed {item.seed}"
        item.results = train(
            recipe,
            command=_command(args),
            bare=True,
            keep_model=item.keep_model,
            callbacks=[bar.callback(what)],
        )
    bar.finish()


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """Puts back what a run leaves in the process: Transformers environment variables, Accelerate a state."""
    from accelerate.state import AcceleratorState

    kept = {key: value for key, value in os.environ.items() if key.startswith("ACCELERATE_")}
    try:
        yield
    finally:
        for key in [key for key in os.environ if key.startswith("ACCELERATE_")]:
            del os.environ[key]
        os.environ.update(kept)
        AcceleratorState._reset_state()


class _Progress:
    """A bar of all runs that moves with the steps of each, so that it can say how long is left."""

    def __init__(self, count: int) -> None:
        self.count, self.done = count, 0

    def __enter__(self) -> _Progress:
        from tqdm import tqdm

        # No smoothing: the runs are alike, and the mean of all is the best guess.
        form = "{desc} {percentage:3.0f} % |{bar}| {elapsed} so far, {remaining} left"
        self.bar = tqdm(total=self.count, bar_format=form, leave=False, dynamic_ncols=True, smoothing=0)
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def skip(self) -> None:
        """A run that was done before: it says nothing about the time that is left."""
        self.bar.total -= 1
        self.count -= 1
        self.bar.refresh()

    def finish(self) -> None:
        """A run is done."""
        self.done += 1
        self._to(self.done)

    def _to(self, place: float) -> None:
        self.bar.update(place - self.bar.n)

    def callback(self, what: str) -> Any:
        """Moves the bar with a run's steps."""
        from transformers import TrainerCallback

        progress = self
        progress.bar.set_description_str(f"{self.done + 1} of {self.count}: {what}")

        class Steps(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                progress._to(progress.done + min(state.global_step / max(state.max_steps, 1), 1))

        return Steps()


def _best(
    contender: Contender, grid: list[dict[str, str]], runs: Sequence[_Run], metric: str, kind: str
) -> dict[str, str]:
    """The values with the best mean over the sweep's seeds; a run that diverged is the worst there is."""
    if len(grid) == 1:
        return grid[0]
    ranks = {}
    for i, values in enumerate(grid):
        mine = [run for run in runs if _is(run, contender, values)]
        mean, loss = (_mean([run.score(name) for run in mine]) for name in (metric, LOSS))
        if math.isfinite(mean):
            ranks[i] = (mean if kind == "min" else -mean, loss)  # the loss decides between equals
    if not ranks:
        raise RecipeError(f"{contender.label}: diverged at every value of the sweep; add smaller ones")
    return grid[min(ranks, key=lambda i: ranks[i])]


def _is(run: _Run, contender: Contender, values: dict[str, str]) -> bool:
    return run.contender == contender and run.values == values


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _at_the_edge(chosen: dict[str, str], grid: list[dict[str, str]]) -> list[str]:
    """The swept fields whose best value is the smallest or the largest of its numbers."""
    edge = []
    for key, value in chosen.items():
        try:
            tried = sorted({float(values[key]) for values in grid})
        except ValueError:
            continue  # not numbers
        if len(tried) > 1 and float(value) in (tried[0], tried[-1]):
            edge.append(key)
    return edge


def _summary(
    one: Contender,
    chosen: dict[str, str],
    grid: list[dict[str, str]],
    sweep_runs: Sequence[_Run],
    runs: Sequence[_Run],
    metrics: dict[str, str],
    chosen_by: str,
) -> dict[str, Any]:
    mine = [run for run in runs if run.contender == one]
    results = mine[0].results
    return {
        "label": one.label,
        "optimizer": results["optimizer"],
        "betas": results["betas"],
        "beta2_schedule": results.get("beta2_schedule"),
        "steps": results["steps"],
        "learning_rate": results["learning_rate"],
        "chosen": chosen,
        "at_the_edge": _at_the_edge(chosen, grid),
        "sweep": [
            {
                "values": values,
                chosen_by: [_or_none(run.score(chosen_by)) for run in sweep_runs if _is(run, one, values)],
            }
            for values in grid
            if len(grid) > 1
        ],
        "runs": [
            {
                "seed": run.seed,
                **{metric: _or_none(run.score(metric)) for metric in metrics},
                "train_seconds": run.results["train_seconds"],
                "commit": run.results["environment"].get("commit"),
                "per_epoch": run.results["per_epoch"],
            }
            for run in mine
        ],
    }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _comparison(
    first: Contender,
    second: Contender,
    metric: str,
    kind: str,
    runs: Sequence[_Run],
    on_training_rows: bool,
) -> dict[str, Any]:
    a, b = ([run.score(metric) for run in runs if run.contender == one] for one in (first, second))
    names = (first.label, second.label)
    record, difference = compared(names, metric, "lower" if kind == "min" else "higher", a, b)
    diverged = {name: sum(map(math.isnan, values)) for name, values in zip(names, (a, b), strict=True)}
    return record | {
        "diverged": diverged,
        "verdict": verdict(*names, kind, difference, diverged, len(a), on_training_rows),
    }


def verdict(
    first: str,
    second: str,
    kind: str,
    difference: Difference | None,
    diverged: dict[str, int],
    seeds: int,
    on_training_rows: bool = False,
) -> str:
    """What the difference (first − second) allows to be said; "better" only where its interval excludes 0.

    Args:
        first, second: the optimizers' labels.
        kind: `"min"` or `"max"`, the best the metric can be.
        difference: of the pairs; None where a run diverged.
        diverged: how many runs did, by label.
        seeds: how many pairs there are.
        on_training_rows: whether they were judged on rows that they were trained on.
    """
    said = _said(first, second, kind, difference, diverged, seeds)
    return said + (", on rows that they were trained on" if on_training_rows else "")


def _said(
    first: str, second: str, kind: str, difference: Difference | None, diverged: dict[str, int], seeds: int
) -> str:
    if difference is None:
        told = " and ".join(f"{name} in {count} of {seeds}" for name, count in diverged.items() if count)
        return f"no number (diverged?): {told}; not compared"
    if difference.low is None or difference.high is None:
        if seeds == 1:
            return "one seed: cannot be judged"
        return "the same in every seed" if difference.mean == 0 else "cannot be judged: the same each time"
    if difference.sign == 0:
        return "no difference shown (the interval holds 0)"
    better = (difference.sign == -1) == (kind == "min")
    return f"{first} is {'better' if better else 'worse'} than {second} here"


def _number(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.5g}"


def _signed(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:+.3g}".replace("-", MINUS)


def markdown(content: dict[str, Any]) -> str:
    """The comparison as Markdown: a table of the optimizers, one of the differences, and what was done."""
    metrics, seeds = list(content["metrics"]), len(content["seeds"])
    swept = list(content["sweep"])
    rows = [
        ["optimizer", *(name.replace("_", " ") for name in swept), *(m.replace("_", " ") for m in metrics)]
    ]
    for one in content["contenders"]:
        cells = []
        for metric in metrics:
            values = [run[metric] for run in one["runs"] if run[metric] is not None]
            lost = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
            cells.append((_number(_mean(values)) + _spread(values) if values else "diverged") + lost)
        choice = [
            one["chosen"].get(name, "fixed") + (" (edge)" if name in one["at_the_edge"] else "")
            for name in swept
        ]
        rows.append([one["label"], *choice, *cells])
    first = content["contenders"][0]["label"]
    text = [f"# {content['recipe']}: {first} beside {len(content['contenders']) - 1} more", ""]
    if content["smoke"]:
        text += ["A smoke run: says nothing about the optimizers.", ""]
    if changed := content.get("data_changes"):
        fields = ", ".join(f"{key} {value}" for key, value in changed.items())
        text += [f"On {content['data']}, by flags that change the recipe's data: {fields}.", ""]
    if content.get("judged_on_training_rows"):
        text += [
            f"Judged on {content['splits']['judged']}, which has rows that were trained on "
            f"({content['splits']['train']}): this says nothing of others.",
            "",
        ]
    text += [*_table(rows), "", f"Mean ± standard deviation over {seeds} seed{'s' * (seeds != 1)}, after the "
             "last step.", ""]  # fmt: skip
    text += _differences(
        content["comparisons"],
        "metric",
        lambda item: f"{item['metric'].replace('_', ' ')} ({item['better']} is better)",
    )
    count = len(content["comparisons"])
    if count > 1:
        text += ["", f"{count} intervals at 95 % each: of 20 such, one misses the truth by chance."]
    if len(content["commits"]) > 1:
        text += ["", f"The runs are of different commits: {', '.join(content['commits'])}."]
    if content["sweep"]:
        grid = "; ".join(f"{key} of {', '.join(values)}" for key, values in content["sweep"].items())
        text += [
            "",
            f"Each at its best of {grid}, by {content['chosen_by'].replace('_', ' ')} on "
            f"{content['splits']['sweep']} ({content['sweep_seeds']} other seed"
            f"{'s' * (content['sweep_seeds'] != 1)}), judged on {content['splits']['judged']}; trained on "
            f"{content['splits']['train']}.",
        ]
        for one in content["contenders"]:
            text += [
                f"The best {name} of {one['label']} lies at the edge of the sweep: a wider one may do better."
                for name in one["at_the_edge"]
            ]
    return "\n".join(text)


def _spread(values: Sequence[float]) -> str:
    return f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""


def _differences(
    comparisons: Sequence[dict[str, Any]], what: str, named: Callable[[dict[str, Any]], str]
) -> list[str]:
    """The table of paired differences; `named` says of each, in the column `what`, of which figure it is."""
    rows = [["difference", what, "mean", "95 % t interval", "paired by seed"]]
    for item in comparisons:
        low, high = item["low"], item["high"]
        rows.append(
            [
                f"{item['first']} {MINUS} {item['second']}",
                named(item),
                _signed(item["mean"]),
                "\N{EN DASH}" if low is None else f"{_signed(low)} to {_signed(high)}",
                item["verdict"],
            ]
        )
    return _table(rows)


def _table(rows: list[list[str]]) -> list[str]:
    head, *body = rows
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in body)]


def _without_folder(value: Any) -> Any:
    """`value` with the last part of a path in place of a whole one, in lists and dictionaries, too."""
    if isinstance(value, dict):
        return {key: _without_folder(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folder(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _command(args: argparse.Namespace) -> str:
    """The command as it was typed, save for folders of this machine and tokens."""
    from adamnx_hf.runs.command_line import hide_tokens

    options = ["--keep-models"] if args.keep_models else []
    options += [f"--sweep={text}" for text in args.sweep]
    if args.sweep:
        options += [f"--sweep-seeds={args.sweep_seeds}"]
        split = args.validation_split
        options += [f"--validation-split={split}"] if split else [f"--hold-out={args.hold_out}"]
        options += [f"--metric={args.metric}"] if args.metric else []
    words = []
    for word in hide_tokens(args.flags):
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        words.append(f"{flag}{equals}{_without_folder(value)}" if value else word)
    recipe = _without_folder(args.recipe)
    optims = ["--optim", *args.optim]
    return shlex.join(["adamnx-hf", "compare", recipe, *optims, f"--seeds={args.seeds}", *options, *words])


def draw(path: Path, content: dict[str, Any]) -> None:
    """Curves with bands over the seeds, and the paired differences with their intervals.

    Of runs that were judged once, a dot a seed in the place of a curve.

    Args:
        path: of the PNG.
        content: of comparison.json.
    """
    import numpy as np
    from matplotlib import pyplot as plt

    from adamnx_hf.common.drawing import PALETTE, RC

    metrics, count = list(content["metrics"]), len(content["contenders"])
    lower = 0.8 + 0.55 * (count - 1)
    once = all(len(run["per_epoch"]) == 1 for one in content["contenders"] for run in one["runs"])
    plt.switch_backend("agg")
    with plt.rc_context(RC):
        figure, axes = plt.subplots(
            2,
            len(metrics),
            figsize=(max(4.4 * len(metrics), 7), 4.4 + lower),
            dpi=150,
            layout="constrained",
            squeeze=False,
            gridspec_kw={"height_ratios": [3.4, lower]},
        )
        for column, metric in enumerate(metrics):
            top, bottom = axes[:, column]
            for i, one in enumerate(content["contenders"]):
                colour = PALETTE[i % len(PALETTE)]
                series = [[row.get(metric) for row in run["per_epoch"]] for run in one["runs"]]
                length = min(map(len, series))
                values = np.array([row[:length] for row in series], dtype=float)
                x = [row["step"] for row in one["runs"][0]["per_epoch"][:length]]
                label = one["label"] if column == 0 else None
                if once:
                    top.plot([i] * len(values), values[:, 0], "o", color=colour, alpha=0.4, ms=6, mew=0)
                    top.plot([i], values.mean(axis=0), "D", color=colour, ms=6, label=label)
                    continue
                marker = "o" if length < 20 else None
                # The first is drawn wider, so that it shows where another one covers it.
                width = 3.2 if i == 0 else 1.6
                top.plot(x, values.mean(axis=0), lw=width, marker=marker, ms=4, color=colour, label=label)
                if len(values) > 1:
                    low, high = values.min(axis=0), values.max(axis=0)
                    top.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
            top.set(xlabel="step", title=metric.replace("_", " ").replace("eval ", "").capitalize())
            if once:
                top.set(xlabel="after the last step", xticks=[], xlim=(-0.7, count - 0.3))
            _draw_differences(bottom, content, metric, PALETTE)
            if column:
                bottom.tick_params(labelleft=False)
        seeds = len(content["seeds"])
        spread = "each" if once else "range"
        title = f"{content['recipe']} · mean and {spread} of {seeds} seed{'s' * (seeds != 1)}"
        if content["smoke"]:
            title += " · smoke run: says nothing about the optimizers"
        if content.get("judged_on_training_rows"):
            title += " · judged on rows that were trained on"
        figure.suptitle(title, fontsize=12)
        columns = 1 if any(len(one["label"]) > 40 for one in content["contenders"]) else min(count, 3)
        figure.legend(loc="outside lower center", ncols=columns, frameon=False)
        save_figure(figure, path)


def _draw_differences(axes: Any, content: dict[str, Any], metric: str, palette: Sequence[str]) -> None:
    """A line for each other optimizer: a dot a seed, the mean, and its interval."""
    from matplotlib.ticker import MaxNLocator

    items = [item for item in content["comparisons"] if item["metric"] == metric]
    axes.axvline(0, color="#444444", linewidth=1)
    for place, item in enumerate(items):
        y, colour = -place, palette[(place + 1) % len(palette)]
        dots = [value for value in item["differences"] if value is not None]
        axes.plot(dots, [y] * len(dots), "o", color=colour, alpha=0.4, ms=6, mew=0)
        if item["mean"] is not None:
            if item["low"] is not None:
                axes.plot([item["low"], item["high"]], [y, y], color=colour, lw=2)
            axes.plot([item["mean"]], [y], "D", color=colour, ms=6)
    axes.set(
        yticks=[-i for i in range(len(items))],
        yticklabels=[textwrap.fill(f"{MINUS} {item['second']}", 26) for item in items],
        ylim=(-len(items) + 0.5, 0.5),
        xlabel=f"{items[0]['better']} is better",
    )
    first = content["contenders"][0]["label"]
    axes.set_title(f"{first} {MINUS} …, by seed,\nwith mean and 95 % t interval", fontsize=9, weight="normal")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:.3g}")
    axes.grid(axis="y", visible=False)


# Optimizers of others whose second moment decays by one of our schedules.
_SCHEDULES = {"Adam": "adam", "AdamW": "adam", "RAdam": "adam", "NAdam": "adam", "AdaX": "adax"}


def draw_decay(path: Path, content: dict[str, Any]) -> None:
    """How much of g² entered v at each step of these runs, and which steps v is made of at their end.

    Contenders without such a second moment are left out; without any, nothing is drawn.

    Args:
        path: of the PNG.
        content: of comparison.json.
    """
    import numpy as np
    from matplotlib import pyplot as plt

    from adamnx_hf.common.drawing import PALETTE, RC
    from adamnx_hf.studies.decay import newest_weights, shares

    shown = []
    for i, one in enumerate(content["contenders"]):
        schedule = one["beta2_schedule"] or _SCHEDULES.get(one["optimizer"])
        if schedule and one["betas"] and one["steps"] > 1:
            shown.append((PALETTE[i % len(PALETTE)], one, schedule, one["betas"][1]))
    if not shown:
        return
    plt.switch_backend("agg")
    with plt.rc_context(RC):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), dpi=150, layout="constrained")
        for i, (colour, one, schedule, beta2) in enumerate(shown):
            steps = np.arange(1, one["steps"] + 1)
            style = {
                "color": colour,
                "lw": 3.5 - 2 * i / len(shown),
                "label": f"{one['label']} (β2 {beta2:.4g})",
            }
            left.plot(steps, newest_weights(schedule, steps, beta2), **style)
            right.plot(steps / steps[-1], np.cumsum(shares(schedule, one["steps"], beta2)), **style)
        left.set(
            xscale="log", yscale="log", xlabel="step t", title=f"How much of g² enters v: 1 {MINUS} β̂2,t"
        )
        right.set(
            xlabel="part of the run, from its first step on",
            title="Share of v at the end that came from it",
            ylim=(0, 1.02),
        )
        left.legend(frameon=False, fontsize=9, loc="lower left")
        save_figure(figure, path)
