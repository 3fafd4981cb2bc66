"""Recipes of a comparison's runs, resolved in a process that stays as it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.studies.compare.contenders import Contender
from adamnx_hf.studies.compare.study import Study

if TYPE_CHECKING:
    from adamnx_hf.tasks.base import Recipe

__all__ = ["resolve_for", "try_optimizer_of", "undo_changes"]


@contextlib.contextmanager
def undo_changes() -> Iterator[None]:
    """Undoes what a run changes in this process.

    Transformers sets `ACCELERATE_*` variables, Accelerate keeps a global state.
    """
    from accelerate.state import AcceleratorState

    kept = {key: value for key, value in os.environ.items() if key.startswith("ACCELERATE_")}
    try:
        yield
    finally:
        for key in [key for key in os.environ if key.startswith("ACCELERATE_")]:
            del os.environ[key]
        os.environ.update(kept)
        AcceleratorState._reset_state()


@contextlib.contextmanager
def _name_in_errors(contender: Contender) -> Iterator[None]:
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{contender.label}: {error}") from error


def resolve_for(study: Study, contender: Contender, flags: Sequence[str]) -> Recipe:
    """Resolves the study's recipe with a contender's flags.

    Raises:
        RecipeError: something does not fit; the message names the contender.
    """
    from adamnx_hf import recipes

    with undo_changes(), _name_in_errors(contender):
        return recipes.resolve(study.recipe, flags)


def try_optimizer_of(recipe: Recipe, contender: Contender) -> None:
    """Makes the optimizer of a resolved recipe; see :func:`adamnx_hf.runs.trial.try_optimizer`.

    Raises:
        RecipeError: the optimizer does not take its settings; the message names the contender.
    """
    from adamnx_hf.runs.trial import try_optimizer

    with undo_changes(), _name_in_errors(contender):
        try_optimizer(recipe.training_arguments)
