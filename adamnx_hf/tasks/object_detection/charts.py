"""A picture of what the trained model finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from adamnx_hf.common.drawing import canvas
from adamnx_hf.tasks.object_detection.dataset import collate
from adamnx_hf.tasks.trainer import RecipeTrainer

if TYPE_CHECKING:
    from adamnx_hf.tasks.base import Recipe

__all__ = ["draw_predictions"]

#: A class id, a note behind the class's name, and two corners in pixels.
Box: TypeAlias = tuple[int, str, list[float]]


def draw_predictions(recipe: Recipe, trainer: RecipeTrainer, path: Path) -> None:
    """Draws the first evaluation images with the objects they have, and with those the model finds.

    Args:
        recipe: as it was run.
        trainer: after training.
        path: of the PNG.
    """
    data: Any = trainer.eval_dataset
    model: Any = trainer.model
    count = min(4, len(data))
    names = model.config.id2label
    found = _find_objects(trainer, count)
    title = f"{recipe.name}: the first images of the split {recipe.task_arguments.judged_split!r}"
    if any(objects[:, 1].any() for objects in data.objects[:count]):
        title += "; ? marks what need not be found"
    with canvas(path, 2, count, size=(4 * count, 6.6), dpi=110, style={}, squeeze=False) as (figure, axes):
        for i in range(count):
            picture = data.picture(i)
            known = [(int(o[0]), "?" if o[1] else "", o[2:].tolist()) for o in data.objects[i]]
            for axis, boxes in zip(axes[:, i], (known, found[i]), strict=True):
                axis.imshow(picture)
                axis.set_xticks([])
                axis.set_yticks([])
                _draw_boxes(axis, boxes, names, picture.height)
        axes[0, 0].set_ylabel("in the data")
        axes[1, 0].set_ylabel("found (likelihood above 0.3)")
        figure.suptitle(title, fontsize=11)


def _find_objects(trainer: RecipeTrainer, count: int) -> list[list[Box]]:
    """Returns what the model finds in the first `count` evaluation images, with the likelihoods as notes."""
    data: Any = trainer.eval_dataset
    model: Any = trainer.model
    processor: Any = trainer.processing_class
    batch = collate([data[i] for i in range(count)])
    was_training = model.training
    model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        outputs = model(pixel_values=batch["pixel_values"].to(model.device))
    model.train(was_training)
    images = processor.post_process_object_detection(outputs, threshold=0.3, target_sizes=data.sizes[:count])
    columns = [[one[key].cpu() for key in ("labels", "scores", "boxes")] for one in images]
    return [
        [(int(label), f" {score:.2f}", box.tolist()) for label, score, box in zip(*one, strict=True)]
        for one in columns
    ]


def _draw_boxes(axis: Any, boxes: Sequence[Box], names: Mapping[int, str], height: int) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    colours = plt.get_cmap("tab10" if len(names) <= 10 else "tab20")
    for label, note, (x0, y0, x1, y1) in boxes:
        colour = colours(label % colours.N)
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=1.6))
        axis.text(
            max(x0, 0), y0, f"{names[label]}{note}", fontsize=6, color="white", clip_on=True,
            va="bottom" if y0 > height / 20 else "top",  # else above the picture
            bbox={"facecolor": colour, "pad": 0.8, "lw": 0},
        )  # fmt: skip
