"""The demo's settings, its runs and their comparison."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import adamnx_hf
from adamnx_hf.catalog import OPTIMIZERS
from adamnx_hf.studies import paired

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
_WORDS = paired.Words(
    none="no difference shown (the interval contains 0)", unknown="cannot be judged from these seeds"
)


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
        """Whether the learning rate is the one that was chosen for AdamW."""
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
    loss = paired.verdict(names, comparison.loss, "lower", _WORDS)
    accuracy = paired.verdict(names, comparison.accuracy, "higher", _WORDS)
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
