"""A picture of masks in the data and of the trained model's masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adamnx_hf.common.drawing import canvas
from adamnx_hf.common.plain_values import plain_value
from adamnx_hf.tasks.semantic_segmentation.dataset import collate
from adamnx_hf.tasks.semantic_segmentation.evaluation import segment
from adamnx_hf.tasks.trainer import RecipeTrainer

if TYPE_CHECKING:
    from adamnx_hf.tasks.base import Recipe

__all__ = ["draw", "draw_predictions", "make_colours"]


@torch.no_grad()
def draw_predictions(recipe: Recipe, trainer: RecipeTrainer, path: Path) -> None:
    """Draws six images, taken evenly from the evaluation split, their masks and the predicted masks.

    Args:
        recipe: the recipe of the run.
        trainer: its Trainer, after training.
        path: the PNG to write.
    """
    data: Any = trainer.eval_dataset
    model: Any = trainer.model
    void = recipe.task_arguments.void_id
    model.eval()
    columns = {}
    for row in np.linspace(0, len(data) - 1, min(6, len(data))).round().astype(int).tolist():
        batch = collate([data[row]], ignore_index=void)
        (mask,) = batch["masks"]
        pixels = trainer._prepare_input(batch["pixel_values"])
        logits = model(pixel_values=pixels).logits
        (predicted,) = segment(logits, pixels.shape[-2:], mask.shape)
        columns[f"row {row}"] = (np.asarray(data.read_picture(row)), mask.numpy(), predicted.cpu().numpy())
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    optim = plain_value(recipe.training_arguments.optim)
    draw(path, f"{recipe.name} · {optim} · {recipe.task_arguments.eval_split}", names, columns, void)


def draw(
    path: Path,
    title: str,
    names: Sequence[str],
    columns: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    ignore_index: int,
) -> None:
    """Draws images, their masks and predictions below each other, with a legend.

    Args:
        path: the PNG to write.
        title: the title of the picture.
        names: the classes' names.
        columns: by label, an image (height, width, 3), its mask and the prediction, both (height, width).
        ignore_index: the id of pixels that do not count.
    """
    from matplotlib.patches import Patch

    tints = np.concatenate([make_colours(len(names)), [[224, 224, 192]]])  # void as VOC draws it
    size = (2.3 * len(columns), 6.4)
    shown: set[int] = set()
    with canvas(path, 3, len(columns), size=size, style={}, squeeze=False) as (figure, axes):
        for column, (label, (image, truth, predicted)) in enumerate(columns.items()):
            truth = np.where(truth == ignore_index, len(names), truth)
            shown |= set(np.unique(truth).tolist()) | set(np.unique(predicted).tolist())
            for axis, content in zip(axes[:, column], (image, tints[truth], tints[predicted]), strict=True):
                axis.imshow(content.astype(np.uint8))
                axis.set(xticks=[], yticks=[])
            axes[0, column].set_title(label, fontsize=9)
        for axis, name in zip(axes[:, 0], ("image", "truth", "prediction"), strict=True):
            axis.set_ylabel(name)
        labels = [*names, "does not count"]
        patches = [
            Patch(facecolor=tints[i] / 255, edgecolor="#888888", label=labels[i]) for i in sorted(shown)
        ]
        figure.legend(
            handles=patches,
            loc="outside lower center",
            ncols=min(len(patches), max(2 * len(columns), 1)),
            frameon=False,
            fontsize=8,
        )
        figure.suptitle(title, fontsize=11)


def make_colours(count: int) -> np.ndarray:
    """Makes PASCAL VOC's colours, (count, 3) uint8: spreads an id's bits over the channels' high bits."""
    ids = np.arange(count)
    result = np.zeros((count, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            result[:, channel] |= ((ids >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return result
