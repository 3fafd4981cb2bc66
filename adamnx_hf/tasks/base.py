"""The protocol of tasks, their metrics, and the resolved recipe that they are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from adamnx_hf.common.plain_values import plain_value, read_json

__all__ = ["Metric", "Recipe", "RecipeArguments", "Task", "find_field", "make_field"]


def make_field(default: Any, text: str, **flags: bool) -> Any:
    """Makes a dataclass's field that a recipe can set.

    Args:
        default: its default value; a list is copied for each instance.
        text: its help.
        flags: `data=True` for a field that says which data, or how they are read. A title or a table for the
            recipe's own data would be untrue for a run with another value. `neutral=True` for a field that
            only says where the same data are, so that another value may give the same run.
    """
    metadata = {"help": text, **flags}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def as_share(percent: float) -> float:
    """Returns a share from 0 to 1 for one in percent."""
    return round(percent / 100, 6)


def as_rest(percent: float) -> float:
    """Returns the share from 0 to 1 that an error in percent leaves."""
    return round(1 - percent / 100, 6)


class Metric(NamedTuple):
    """A figure that a task reports."""

    best: Literal["min", "max"]
    """Whether a low or a high value is the better one."""
    hub_type: str
    """Its type on the Hub, such as `accuracy`."""
    hub_name: str
    """Its name on the Hub, in words."""
    to_hub: Callable[[float], float] = as_share
    """Turns our figure, a percentage unless this is `float`, into the Hub's."""


@runtime_checkable
class Task(Protocol):
    """The names that the module of a task has.

    It may also have:

    - `DISPLACES`: fields that leave others without meaning. Where a flag gives one, the recipe's others are
      dropped: `{"model_name_or_path": ("architecture", ...)}`.
    - `PIPELINE_TAG`, if the task's name with hyphens is not one of the Hub's tasks: the one that is, or None.
    - `TrainingArguments`: a subclass of :class:`adamnx_hf.tasks.trainer.RecipeTrainingArguments`.
    - `draw_predictions(recipe, trainer, path)`: after training, draws what the model makes of some of the
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

        What a training set draws comes from its `random`, a
        :class:`adamnx_hf.tasks.randomness.RowRandom`.
        """


@dataclasses.dataclass
class RecipeArguments:
    """The fields that every recipe has, beside the task's and TrainingArguments'."""

    task: str = dataclasses.field(metadata={"help": "What is trained; one of adamnx_hf.tasks.TASKS."})
    title: str = dataclasses.field(default="", metadata={"help": "What it is, in a few words."})
    paper_tables: list[int] = dataclasses.field(
        default_factory=list, metadata={"help": "The paper's tables it reproduces."}
    )
    hardware: str = dataclasses.field(default="", metadata={"help": "What it is meant to run on."})
    hours: str = dataclasses.field(
        default="", metadata={"help": "Hours to expect on that hardware, and whether they were measured."}
    )
    optimizers: dict | str | None = dataclasses.field(
        default=None,
        metadata={"help": "What else changes with optim: field values by its names, as JSON in a flag."},
    )
    fast: bool = dataclasses.field(
        default=False,
        metadata={
            "help": "Train for speed: bf16, channels_last, torch.compile, a fused step, images kept decoded "
            "and augmented in batches on the device."
        },
    )
    smoke: bool = dataclasses.field(
        default=False,
        metadata={
            "help": "Try it out: a few steps of a tiny model on a few examples, made up unless "
            "dataset_name is a local folder. Never connects to the Hub."
        },
    )

    def __post_init__(self) -> None:
        if isinstance(self.optimizers, str):
            self.optimizers = read_json(self.optimizers)


@dataclasses.dataclass
class Recipe:
    """A recipe, resolved: every field checked and typed."""

    name: str
    values: dict[str, Any]
    """The fields that were set, wherever; `adamnx-hf run` takes a file of them."""
    changes: dict[str, Any]
    """Fields that flags set to something else than the recipe's, where it may matter for the outcome."""
    data_changes: dict[str, Any]
    """Fields that say which data, and how they are read, that flags set to something else."""
    given: frozenset[str]
    """The names of the fields that flags set."""
    arguments: RecipeArguments
    task: Any
    """The task's module, a :class:`Task`."""
    task_arguments: Any
    training_arguments: Any
    synthetic_data: bool

    def default(self, field: str) -> Any:
        """Returns the default of `field`; None if there is no such field, or no default."""
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
