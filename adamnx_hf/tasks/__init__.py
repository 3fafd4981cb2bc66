"""The tasks that a recipe can train.

To add a task, write a module or a folder that has the names of :class:`adamnx_hf.tasks.base.Task`, and add a
line to :data:`TASKS`.
"""

from __future__ import annotations

import importlib

from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.tasks.base import Task

__all__ = ["TASKS", "load_task"]

#: The module of each task, by the name that a recipe's `task` has.
TASKS = {
    "image_classification": "adamnx_hf.tasks.image_classification",
    "semantic_segmentation": "adamnx_hf.tasks.semantic_segmentation",
    "language_modeling": "adamnx_hf.tasks.language_modeling",
    "object_detection": "adamnx_hf.tasks.object_detection",
}


def load_task(name: str) -> Task:
    """Imports the module of the task `name`.

    Raises:
        RecipeError: there is no such task.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise RecipeError(f"task: {name!r} is not known{nearest(str(name), TASKS)}")
    task: Task = importlib.import_module(TASKS[name])
    return task
