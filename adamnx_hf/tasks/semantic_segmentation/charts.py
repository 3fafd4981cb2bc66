"""A picture of masks in the data and of those that the trained model makes."""

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

__all__ = ["colours", "draw", "draw_predictions"]


@torch.no_grad()
def draw_predictions(recipe: Recipe, trainer: RecipeTrainer, path: Path, count: int = 6) -> None:
    """Draws images of the evaluation split, their masks and what the model makes of them.

    Args:
        recipe: for the title.
        trainer: after training.
        path: of the PNG.
        count: images, taken evenly from the split.
    """
    data: Any = trainer.eval_dataset
    model: Any = trainer.model
    void = recipe.task_arguments.void_id
    model.eval()
    columns = {}
    for row in dict.fromkeys(
        np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int).tolist()
    ):
        batch = collate([data[row]], ignore_index=void)
        (mask,) = batch["masks"]
        pixels = trainer._prepare_input(batch["pixel_values"])
        logits = model(pixel_values=pixels).logits
        (predicted,) = segment(logits, pixels.shape[-2:], mask.shape)
        columns[f"row {row}"] = (np.asarray(data.picture(row)), mask.numpy(), predicted.cpu().numpy())
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
        path: of the PNG.
        title: of the picture.
        names: the classes'.
        columns: by label, an image (height, width, 3), its mask and the prediction, both (height, width).
        ignore_index: the id of pixels that do not count.
    """
    from matplotlib.patches import Patch

    tints = np.concatenate([colours(len(names)), [[224, 224, 192]]])  # void as VOC draws it
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


def colours(count: int) -> np.ndarray:
    """Returns PASCAL VOC's colours, (count, 3) uint8: an id's bits, spread over the channels' high bits."""
    ids = np.arange(count)
    result = np.zeros((count, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            result[:, channel] |= ((ids >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return result
