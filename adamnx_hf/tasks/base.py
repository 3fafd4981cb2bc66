"""The protocol of tasks, their metrics, a recipe's fields, and the resolved recipe that a task is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from adamnx_hf.common.plain_values import plain_value

__all__ = ["Metric", "Recipe", "RecipeArguments", "Task", "check_range", "find_field", "make_field"]


def make_field(default: Any, text: str, **flags: bool) -> Any:
    """Makes a dataclass's field that a recipe can set.

    Args:
        default: the default value. Each instance gets a copy of a list.
        text: the help.
        flags: `data=True` marks a field that chooses the data, or how they are read. A title or a table for
            the recipe's own data would be untrue for a run with another value. `neutral=True` marks a field
            that only says where the same data are, so that another value may give the same run.
    """
    metadata = {"help": text, **flags}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_range(arguments: Any, names: Iterable[str], low: float, high: float, verdict: str = "not") -> None:
    """Checks that some fields of a dataclass are numbers in a range, or None where that is their default.

    Args:
        arguments: the dataclass's instance.
        names: the fields.
        low, high: the smallest and the largest number.
        verdict: the message's word for a number outside the range, such as "not a percentage".

    Raises:
        ValueError: a number is outside the range, or nan.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is None and getattr(type(arguments), name) is None:
            continue
        if not low <= value <= high:
            raise ValueError(f"{name}: {value} is {verdict} from {low} to {high}")


def convert_percent(percent: float) -> float:
    """Converts a percentage to a share from 0 to 1."""
    return round(percent / 100, 6)


def convert_error(percent: float) -> float:
    """Converts an error in percent to the share from 0 to 1 that is right."""
    return round(1 - percent / 100, 6)


class Metric(NamedTuple):
    """A figure that a task reports."""

    best: Literal["min", "max"]
    """Whether a low or a high value is the better one."""
    hub_type: str
    """The metric's type on the Hub, such as `accuracy`."""
    hub_name: str
    """The metric's name on the Hub, in words."""
    to_hub: Callable[[float], float] = convert_percent
    """Converts our figure to the Hub's. Our figure is a percentage unless this is `float`."""


@runtime_checkable
class Task(Protocol):
    """The names that the module of a task has.

    The module may also have:

    - `DISPLACES`: fields that leave others without meaning. Where a flag gives one, the recipe's others are
      dropped: `{"model_name_or_path": ("architecture", ...)}`.
    - `PIPELINE_TAG`: the Hub's name of the task, or None if it has none. The default is the task's name with
      hyphens.
    - `TrainingArguments`: a subclass of :class:`adamnx_hf.tasks.trainer.RecipeTrainingArguments`.
    - `make_meta_model(arguments)`: makes the model on the meta device, and says how many bytes each quantized
      parameter takes, by `id`. `adamnx-hf memory` counts by these.
    - `draw_predictions(recipe, trainer, path)`: draws the trained model's predictions for some of the
      evaluation split, as a PNG.
    """

    Arguments: Any
    """A dataclass of the recipe's fields that are the task's own."""
    METRICS: Mapping[str, Metric]
    """The metrics that are reported best and last, by name."""
    UNIT: str
    """The unit that throughput counts, such as `"images"`."""

    def fast(self) -> dict[str, Any]:
        """Returns the values of `--fast`, by field name."""

    def smoke(self, arguments: Any) -> dict[str, Any]:
        """Returns the values of `--smoke`, by field name, for the task's `arguments`."""

    def make_trainer(self, recipe: Recipe) -> Any:
        """Makes a :class:`adamnx_hf.tasks.trainer.RecipeTrainer` with model, data and metrics.

        A training set draws its random numbers from its attribute `random`, a
        :class:`adamnx_hf.tasks.randomness.RowRandom`.
        """


@dataclasses.dataclass
class RecipeArguments:
    """The fields that every recipe has, beside those of its task and of TrainingArguments."""

    task: str = dataclasses.field(metadata={"help": "The task: one of adamnx_hf.tasks.TASKS."})
    title: str = make_field("", "A few words that say what is trained.")
    paper_tables: list[int] = make_field([], "The paper's tables that the recipe reproduces.")
    hardware: str = make_field("", "The hardware that the recipe is meant for.")
    hours: str = make_field("", "Hours to expect on that hardware, and whether they were measured.")
    optimizers: dict | str | None = make_field(
        None, "Fields that change with optim: their values by optimizer names, as JSON in a flag."
    )
    fast: bool = make_field(
        False,
        "Train for speed: bf16, channels_last, torch.compile, a fused step, images kept decoded and "
        "augmented in batches on the device.",
    )
    smoke: bool = make_field(
        False,
        "Try it out: a few steps of a tiny model on a few examples, made up unless dataset_name is a local "
        "folder. Never connects to the Hub.",
    )


@dataclasses.dataclass
class Recipe:
    """A recipe, resolved: every field checked and typed."""

    name: str
    values: dict[str, Any]
    """The fields that the file, `--fast`, `--smoke` or a flag sets. `adamnx-hf run` takes a file of these."""
    changes: dict[str, Any]
    """The fields that flags changed and that may matter for the outcome."""
    data_changes: dict[str, Any]
    """The fields that flags changed and that choose the data, or how they are read."""
    given: frozenset[str]
    """The names of the fields that flags set."""
    arguments: RecipeArguments
    task: Any
    """The task's module, a :class:`Task`."""
    task_arguments: Any
    training_arguments: Any
    synthetic_data: bool
    """Whether the data are made up."""

    def find_default(self, field: str) -> Any:
        """Finds the default of a field; returns None if there is no such field or no default."""
        parts = (self.arguments, self.task_arguments, self.training_arguments)
        found = find_field(map(type, parts), field)
        if found is not None and callable(found.default_factory):
            return found.default_factory()
        if found is None or found.default is dataclasses.MISSING:
            return None
        return plain_value(found.default)


def find_field(classes: Iterable[Any], name: str) -> dataclasses.Field[Any] | None:
    """Finds a field by its name among those of the dataclasses; returns None if there is none."""
    fields = (field for kind in classes for field in dataclasses.fields(kind))
    return next((field for field in fields if field.name == name), None)
