"""Finished runs, loaded again with the network as training ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adamnx_hf.common.errors import RecipeError

__all__ = ["check_model", "load_trainer"]


def check_model(folder: Path) -> None:
    """Checks that a folder holds a run and its whole model.

    Raises:
        RecipeError: the folder does not.
    """
    if (folder / "adapter_config.json").is_file():
        raise RecipeError(f"{folder}: holds an adapter; only whole models can be measured")
    for name, remedy in (
        ("recipe.yaml", "give the folder of a run, or of a comparison"),
        ("config.json", "compare with --keep-models"),
    ):
        if not (folder / name).is_file():
            raise RecipeError(f"{folder}: holds no {name}; {remedy}")


def load_trainer(folder: Path, dataset_name: str | None = None) -> Any:
    """Makes the Trainer of a finished run, with the run's network.

    Args:
        folder: the run's, with its model.
        dataset_name: where the data set is now, if not where the run had it.

    Raises:
        RecipeError: the folder holds no whole model, or the data set is not there.
    """
    from adamnx_hf import recipes

    check_model(folder)
    words = ["--output_dir", str(folder), "--report_to=none", "--disable_tqdm=true"]
    words += ["--dataset_name", dataset_name] if dataset_name else []
    recipe = recipes.resolve(str(folder / "recipe.yaml"), words)
    try:
        trainer = recipe.task.make_trainer(recipe)
    except (ValueError, TypeError, OSError) as error:
        raise RecipeError(f"{folder}: {' '.join(str(error).split())}") from error
    model: Any = type(trainer.model).from_pretrained(str(folder))
    trainer.model = trainer.model_wrapped = model.to(trainer.args.device)
    return trainer
