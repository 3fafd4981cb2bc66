"""The demo's settings, its runs, their comparison, and the table of both."""

from __future__ import annotations

import dataclasses
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import adamnx_hf
from adamnx_hf.catalog import OPTIMIZERS
from adamnx_hf.common.text import MINUS
from adamnx_hf.studies import paired
from adamnx_hf.studies.tables import format_mean

__all__ = [
    "DATA",
    "LEARNING_RATE",
    "MADE_BY",
    "MODEL",
    "OPTIMS",
    "Comparison",
    "Demo",
    "Run",
    "compare_runs",
    "describe",
    "label_of",
    "make_table",
    "values_of",
    "verdict",
]

#: The mark of a results.json that the demo has written.
MADE_BY = "adamnx-hf demo"
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
DATA = "scikit-learn digits"
MODEL = "ViT, 58,570 parameters"

#: The optimizers by default; names as in `TrainingArguments(optim=...)`.
OPTIMS = ("adamnx", "adamw_torch_fused")

_LABELS = {name: OPTIMIZERS[name].label for name in OPTIMS}
_WORDS: dict[str, Any] = {
    "none": "no difference shown (the interval contains 0)",
    "unknown": "cannot be judged from these seeds",
}


@dataclasses.dataclass(frozen=True)
class Demo:
    """The settings of the demo."""

    optims: Sequence[str] = OPTIMS
    """Names as in `TrainingArguments(optim=...)`. The first is compared with each other one."""
    seeds: Sequence[int] = (0, 1, 2)
    epochs: int = 16
    learning_rate: float = LEARNING_RATE
    """The learning rate of all optimizers."""

    @property
    def rate_is_adamws(self) -> bool:
        """Returns whether the learning rate is the one that was chosen for AdamW."""
        return self.learning_rate == LEARNING_RATE


@dataclasses.dataclass
class Run:
    """One training run, as `results.json` has it."""

    optim: str
    seed: int
    optimizer: str = ""
    """The class that the Trainer really used."""
    betas: list[float] | None = None
    """The betas that the optimizer really had."""
    seconds: float = 0.0
    epochs: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """`epoch`, `test_accuracy` and `test_loss` of each epoch."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The first optimizer against another one, over the seeds."""

    first: str
    second: str
    loss: paired.Difference
    accuracy: paired.Difference


def label_of(optim: str) -> str:
    """Returns the optimizer's name for people."""
    return _LABELS.get(optim, optim)


def values_of(runs: Sequence[Run], optim: str, metric: str, epoch: int = -1) -> list[float]:
    """Returns one optimizer's values after an epoch (0 is the first), seed by seed."""
    return [run.epochs[epoch][metric] for run in runs if run.optim == optim]


def compare_runs(demo: Demo, runs: Sequence[Run]) -> list[Comparison]:
    """Compares the first optimizer with each other one."""
    first, *others = demo.optims
    return [
        Comparison(
            label_of(first),
            label_of(second),
            *(
                paired.paired_difference(values_of(runs, first, metric), values_of(runs, second, metric))
                for metric in ("test_loss", "test_accuracy")
            ),
        )
        for second in others
    ]


def verdict(comparison: Comparison) -> str:
    """Says in one line what the two differences allow to be said; see :mod:`adamnx_hf.studies.paired`."""
    names = (comparison.first, comparison.second)
    loss = paired.verdict(names, comparison.loss, "lower", **_WORDS)
    accuracy = paired.verdict(names, comparison.accuracy, "higher", **_WORDS)
    return f"test loss: {loss}; test accuracy: {accuracy}. One small task: not a general result."


def describe(demo: Demo, runs: Sequence[Run], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Returns the content of results.json."""
    packages = ("adamnx-hf", "torch", "transformers", "accelerate", "datasets", "scikit-learn", "numpy")
    return {
        "made_by": MADE_BY,
        "data": DATA,
        "model": MODEL,
        "settings": {
            "optim": list(demo.optims),
            "seeds": list(demo.seeds),
            "epochs": demo.epochs,
            "learning_rate": demo.learning_rate,
            "learning_rate_chosen_for": OPTIMS[1] if demo.rate_is_adamws else None,
            "schedule": "cosine, 10 % warm-up",
            "batch_size": BATCH_SIZE,
            "weight_decay": WEIGHT_DECAY,
        },
        "runs": [dataclasses.asdict(run) for run in runs],
        "comparisons": [dataclasses.asdict(item) | {"verdict": verdict(item)} for item in comparisons],
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return adamnx_hf.__version__ if package == "adamnx-hf" else version(package)
    except PackageNotFoundError:
        return None


def make_table(demo: Demo, runs: Sequence[Run], comparisons: Sequence[Comparison]) -> Any:
    """Returns the optimizers and their differences as a table of rich's."""
    from rich.table import Table

    chosen_for = ", chosen for AdamW." if demo.rate_is_adamws else "."
    table = Table(
        "optimizer",
        "test accuracy",
        "test loss",
        "s per run",
        title=f"{DATA}, {MODEL}: after {demo.epochs} epochs",
        caption=f"Mean ± sd over {len(demo.seeds)} seeds; differences paired by seed [95 % t interval].\n"
        f"Learning rate {demo.learning_rate:g} for all{chosen_for}",
    )
    for optim in demo.optims:
        mine = [run for run in runs if run.optim == optim]
        betas = f" ({', '.join(f'{beta:g}' for beta in mine[0].betas)})" if mine[0].betas else ""
        table.add_row(
            label_of(optim) + betas,
            format_mean(values_of(runs, optim, "test_accuracy"), ".2%", ".2%"),
            format_mean(values_of(runs, optim, "test_loss"), ".4f", ".4f"),
            f"{statistics.fmean(run.seconds for run in mine):.1f}",
        )
    if comparisons:
        table.add_section()
    for item in comparisons:
        table.add_row(
            f"{item.first} {MINUS} {item.second}",
            _format_interval(item.accuracy, 100, ".2f", " points"),
            _format_interval(item.loss, 1, ".4f"),
            "",
        )
    return table


def _format_interval(difference: paired.Difference, scale: float, form: str, unit: str = "") -> str:
    mean = f"{difference.mean * scale:+{form}}{unit}"
    if difference.low is None or difference.high is None:
        return mean
    return f"{mean}\n[{difference.low * scale:+{form}}, {difference.high * scale:+{form}}]"
