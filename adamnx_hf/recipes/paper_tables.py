"""The tables of the paper, as `recipes/paper.yaml` has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from adamnx_hf.recipes.files import find_folder, read_recipe

__all__ = ["Table", "tables"]


@dataclasses.dataclass(frozen=True)
class Table:
    """One of the paper's tables."""

    number: int
    title: str
    recipe: str | None = None
    """None: there is no recipe for it yet."""
    metrics: Sequence[str] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    """Each has a `label`, the `published` metrics by name, and the `optim`, `beta2_schedule` and `betas` of
    the runs that belong there."""
    note: str = ""
    examples: Sequence[Mapping[str, int]] = ({},)
    """How many `train_examples` and `eval_examples` a run must have had, for each data set that will do. The
    first that there are runs of fills the table."""


def tables() -> dict[int, Table]:
    """Returns the paper's tables by number."""
    entries = read_recipe(find_folder() / "paper.yaml")["tables"]
    return {number: Table(number, **entry) for number, entry in entries.items()}
