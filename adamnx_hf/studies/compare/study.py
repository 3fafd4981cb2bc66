"""The settings of a comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.studies.compare.contenders import Contender
from adamnx_hf.studies.compare.plan_file import PlanFile

__all__ = ["LOSS", "Study", "hide_folders"]

#: The metric that every task has.
LOSS = "eval_loss"


@dataclasses.dataclass(frozen=True)
class Study:
    """A comparison of optimizers on one recipe.

    Raises:
        RecipeError: `hold_out` leaves too little to train on.
    """

    recipe: str
    """The recipe's name or file."""
    contenders: tuple[Contender, ...]
    """The optimizers."""
    family: tuple[tuple[Contender, Contender], ...]
    """The pairs that are compared. Their verdicts are corrected for being several."""
    flags: Sequence[str] = ()
    """Fields of the recipe for all runs, as flags."""
    sweeps: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Values to choose from for each optimizer, by field."""
    seeds: int = 8
    """The number of seeds that judge."""
    sweep_seeds: int = 3
    """The number of seeds of each value of a sweep. None of them judges."""
    sweep_budget: int = 9
    """How many values each optimizer may try where a sweep finds its own, as `learning_rate=auto`."""
    validation_split: str | None = None
    """The split that a sweep is judged on; None for a part of the training split."""
    hold_out: int = 10
    """The size of that part in percent."""
    metric: str | None = None
    """The metric that a sweep chooses by, and that verdicts are about; None for the task's first."""
    smallest_effect: float | None = None
    """The smallest difference in that metric that matters; None for any."""
    output_dir: Path | None = None
    """The folder to write into; None for `runs/RECIPE/compare`."""
    keep_models: bool = False
    """Whether the models of the runs that judge are written, too."""
    overwrite: bool = False
    """Whether runs with other settings, in the same folder, are run again."""
    plan: PlanFile | None = None
    """The plan that settled all this beforehand."""
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The options that were given beside the plan, by its keys."""
    command: str = ""
    """The command as it was typed, without this machine's folders and tokens."""

    def __post_init__(self) -> None:
        if self.hold_out > 50:
            raise RecipeError(
                f"--hold-out: {self.hold_out} percent leaves too little to train on; 50 at most"
            )

    @property
    def held_out_for_sweep(self) -> int:
        """The percentage of the training rows that the sweep is judged on."""
        return self.hold_out if self.sweeps and not self.validation_split else 0


def hide_folders(value: Any) -> Any:
    """Returns `value` with absolute paths cut to their last part, also in lists and dictionaries."""
    if isinstance(value, dict):
        return {key: hide_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hide_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
