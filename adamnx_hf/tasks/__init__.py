"""What a recipe can train. A task is a module of this package and a line in :data:`TASKS`.

A task's module has:

- `Arguments`: a dataclass of the recipe's fields that are the task's own.
- `METRICS`: a :class:`adamnx_hf.tasks.base.Metric` for each metric that is reported best and last, by name.
- `UNIT`: what is counted for throughput (`"images"`).
- `PIPELINE_TAG`, if the task's name with hyphens is not one of the Hub's tasks: the one that is, or None.
- `fast()`: values of `--fast`, by field name.
- `smoke(arguments)`: values of `--smoke`, by field name.
- `make_trainer(recipe)`: a :class:`adamnx_hf.tasks.trainer.RecipeTrainer` with model, data and metrics. What
  a training set draws comes from its `random`, a :class:`adamnx_hf.tasks.randomness.RowRandom`.

And it may have:

- `DISPLACES`: fields that leave others without meaning. Where a flag gives one, the recipe's others are
  dropped: `{"model_name_or_path": ("architecture", ...)}`.
- `TrainingArguments`: a subclass of :class:`adamnx_hf.tasks.trainer.RecipeTrainingArguments`.
- `draw_predictions(recipe, trainer, path)`: after training, draws what the model makes of some of the
  evaluation split, as a PNG.
"""

from __future__ import annotations

import importlib
from typing import Any

from adamnx_hf.common.errors import RecipeError, nearest

__all__ = ["TASKS", "load_task"]

#: A recipe's `task`, and the module.
TASKS = {
    "image_classification": "adamnx_hf.tasks.image_classification",
    "semantic_segmentation": "adamnx_hf.tasks.semantic_segmentation",
    "language_modeling": "adamnx_hf.tasks.language_modeling",
    "object_detection": "adamnx_hf.tasks.object_detection",
}


def load_task(name: str) -> Any:
    """The module of the task `name`; imports it.

    Raises:
        RecipeError: there is no such task.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise RecipeError(f"task: {name!r} is not known{nearest(str(name), TASKS)}")
    return importlib.import_module(TASKS[name])
