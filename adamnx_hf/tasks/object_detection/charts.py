"""A picture of the objects that the trained model finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adamnx_hf.common.drawing import canvas
from adamnx_hf.tasks.object_detection.dataset import collate
from adamnx_hf.tasks.object_detection.evaluation import DetectionTrainer

if TYPE_CHECKING:
    from adamnx_hf.tasks.base import Recipe

__all__ = ["draw_predictions"]

#: Boxes less likely than this are not drawn.
LEAST_SCORE = 0.3


def draw_predictions(recipe: Recipe, trainer: DetectionTrainer, path: Path) -> None:
    """Draws the first evaluation images with the objects they have, and with those the model finds.

    Args:
        recipe: the recipe of the run.
        trainer: its Trainer, after training.
        path: the PNG to write.
    """
    data: Any = trainer.eval_dataset
    model: Any = trainer.model
    count = min(4, len(data))
    model.eval()
    batch = collate([data[i] for i in range(count)])
    predicted: Any = trainer.prediction_step(model, batch, prediction_loss_only=False)[1]
    title = f"{recipe.name}: the first images of the split {recipe.task_arguments.judged_split!r}"
    if any(objects[:, 1].any() for objects in data.objects[:count]):
        title += "; ? marks what need not be found"
    with canvas(path, 2, count, size=(4 * count, 6.6), dpi=110, style={}, squeeze=False) as (figure, axes):
        for i in range(count):
            picture = data.read_picture(i)
            known = [(row, "?" if row[1] else "") for row in data.objects[i]]
            found = [(row, f" {row[1]:.2f}") for row in predicted[i].cpu() if row[1] > LEAST_SCORE]
            for axis, boxes in zip(axes[:, i], (known, found), strict=True):
                axis.imshow(picture)
                axis.set(xticks=[], yticks=[])
                _draw_boxes(axis, boxes, model.config.id2label, picture.height)
        axes[0, 0].set_ylabel("in the data")
        axes[1, 0].set_ylabel(f"found (likelihood above {LEAST_SCORE})")
        figure.suptitle(title, fontsize=11)


def _draw_boxes(
    axis: Any, boxes: Iterable[tuple[Tensor, str]], names: Mapping[int, str], height: int
) -> None:
    """Draws boxes with their classes' names.

    Args:
        axis: shows the image.
        boxes: pairs of a row, (6,), whose first number is a class id and whose last four are corners, and a
            note that is written behind the class's name.
        names: the classes' names by id.
        height: the height of the image.
    """
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    colours = plt.get_cmap("tab10" if len(names) <= 10 else "tab20")
    for row, note in boxes:
        label, _, x0, y0, x1, y1 = row.tolist()
        colour = colours(int(label) % colours.N)
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=1.6))
        axis.text(
            max(x0, 0), y0, f"{names[int(label)]}{note}", fontsize=6, color="white", clip_on=True,
            va="bottom" if y0 > height / 20 else "top",  # else above the picture
            bbox={"facecolor": colour, "pad": 0.8, "lw": 0},
        )  # fmt: skip
