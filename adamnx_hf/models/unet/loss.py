"""The two parts of the U-Net's loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["cross_entropy_loss", "dice_loss"]


def cross_entropy_loss(
    logits: Tensor, labels: Tensor, ignore_index: int = 255, weight: Tensor | None = None
) -> Tensor:
    """Returns the (weighted) mean cross-entropy over the pixels that count; 0, not NaN, where none does.

    Args:
        logits: (batch, classes, height, width), floating point.
        labels: (batch, height, width), int64 class ids.
        ignore_index: the id of pixels that do not count.
        weight: (classes,), the weight of a pixel of each class. Default: 1.
    """
    total = nn.functional.cross_entropy(logits, labels, weight, ignore_index=ignore_index, reduction="sum")
    counts = labels != ignore_index
    if weight is None:
        return total / counts.sum().clamp(min=1)
    return total / (weight[labels.where(counts, 0)] * counts).sum().clamp(min=torch.finfo(weight.dtype).tiny)


def dice_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Returns 1 less the soft Dice coefficient 2 Σpg / (Σp² + Σg²), averaged over the classes that occur.

    The coefficient is V-Net's (arXiv:1606.04797, Sec. 3), with sums over the whole batch. A class that no
    pixel has is left out: its coefficient is 0 whatever is predicted. So are pixels that do not count.

    Args:
        logits: (batch, classes, height, width), floating point.
        labels: (batch, height, width), int64 class ids.
        ignore_index: the id of pixels that do not count.

    Returns:
        A number in [0, 1]; 0 where no pixel counts.
    """
    counts = labels != ignore_index
    predicted = logits.softmax(1) * counts.unsqueeze(1)
    true = nn.functional.one_hot(labels.where(counts, 0), logits.shape[1]).movedim(-1, 1)
    true = true * counts.unsqueeze(1)
    dims = (0, 2, 3)
    sizes = true.sum(dims)
    present = sizes > 0
    # Σg² is Σg, for ones and zeros.
    coefficients = 2 * (predicted * true).sum(dims) / (predicted.square().sum(dims) + sizes).clamp(min=1e-6)
    return ((1 - coefficients) * present).sum() / present.sum().clamp(min=1)
