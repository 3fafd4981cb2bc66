"""A run's metrics at the places of it that the card tells of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["BEST", "Figures", "list_figures"]

#: The head of a column that the card's table has only where it adds something to those before it.
BEST = "best epoch"


@dataclasses.dataclass(frozen=True)
class Figures:
    """A run's metrics at one place of it."""

    column: str
    """The head of their column in the card's table."""
    place: str
    """The place, in words."""
    values: Mapping[str, float]
    """The metrics by name."""


def list_figures(results: Mapping[str, Any]) -> list[Figures]:
    """Returns a run's figures, first those of the weights that are there; nothing twice.

    The results of older runs do not say which weights those are.

    Args:
        results: the content of results.json.
    """
    metrics, weights = results["metrics"], results.get("weights") or {}
    last = {name: value["last"] for name, value in metrics.items()}
    kept = [Figures("last epoch", "last epoch", last)]
    if weights.get("step", results["steps"]) != results["steps"]:
        step = f"step {weights['step']:,}"
        place = f"{step}, the best by {weights['chosen_by']} on the evaluation split itself"
        kept.insert(0, Figures(f"these weights, {step}", place, weights["metrics"]))
    best = {
        name: value["best"]
        for name, value in metrics.items()
        if value["best"] not in [figure.values.get(name) for figure in kept]
    }
    place = "best epoch, chosen on the evaluation split itself"
    return [*kept, Figures(BEST, place, best)] if best else kept
