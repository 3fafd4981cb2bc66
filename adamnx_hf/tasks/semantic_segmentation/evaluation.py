"""Confusion matrices of whole images, and their mean IoU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from adamnx_hf.tasks.base import Metric
from adamnx_hf.tasks.trainer import RecipeTrainer

__all__ = ["METRICS", "SegmentationTrainer", "compute_scores", "segment"]


#: The metrics that are reported best and last, in percent.
METRICS = {
    "mean_iou": Metric("max", "mean_iou", "Mean IoU"),
    "pixel_accuracy": Metric("max", "accuracy", "Pixel accuracy"),
}


def compute_scores(confusion: Tensor, ignore_index: int | None = None) -> dict[str, float]:
    """Computes the scores of a confusion matrix over all pixels of all images, in percent.

    Args:
        confusion: (classes, classes), the number of pixels that count, by true (rows) and predicted class.
        ignore_index: the id of pixels that do not count. None, or not in the matrix: every id is a class.

    Returns:
        `mean_iou`, as torchmetrics' `multiclass_jaccard_index` has it: the mean over the classes of true
        positives / (true positives + false positives + false negatives). `ignore_index` and classes that are
        neither there nor predicted are left out. And `pixel_accuracy`. Both are 0 where there is no pixel.
    """
    confusion = confusion.double()
    right = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - right
    counted = union > 0
    if ignore_index is not None and 0 <= ignore_index < len(counted):
        counted[ignore_index] = False  # its predictions are errors of other classes
    return {
        "mean_iou": 100 * (right[counted] / union[counted]).sum().item() / max(int(counted.sum()), 1),
        "pixel_accuracy": 100 * right.sum().item() / max(confusion.sum().item(), 1),
    }


class _Scores:
    """The Trainer's `compute_metrics`, batch by batch. It keeps a confusion matrix and losses, no image."""

    def __init__(self, ignore_index: int) -> None:
        self.ignore_index = ignore_index
        self.total: Tensor | None = None
        self.losses: list[float] = []

    def __call__(self, prediction: Any, compute_result: bool) -> dict[str, float]:
        batch = prediction.predictions.sum(0)
        self.total = batch if self.total is None else self.total + batch
        self.losses += prediction.label_ids.tolist()
        if not compute_result:
            return {}
        total, self.total = self.total, None
        losses, self.losses = self.losses, []
        # The Trainer's own loss is a mean of batches' means. On several processes the last batch also has
        # images that only fill it up.
        return {**compute_scores(total, self.ignore_index), "loss": math.fsum(losses) / len(losses)}


class SegmentationTrainer(RecipeTrainer):
    """A RecipeTrainer that judges whole images, each at its own size and by itself.

    In evaluation each image of a batch goes through the model alone and without padding, which convolutions
    would see. All figures are therefore the same for every `per_device_eval_batch_size` and number of
    processes. `eval_loss` is the mean of the images' losses. An image without a pixel that counts has loss 0.

    Args:
        num_labels: number of classes.
        ignore_index: the id of pixels that do not count.
        kwargs: RecipeTrainer's arguments. Evaluation needs batches with masks, see
            :func:`adamnx_hf.tasks.semantic_segmentation.dataset.collate`.
    """

    smooths_labels = False

    def __init__(self, *, num_labels: int, ignore_index: int, args: Any, **kwargs: Any) -> None:
        self.num_labels, self.ignore_index = num_labels, ignore_index
        args.batch_eval_metrics = True
        super().__init__(args=args, compute_metrics=_Scores(ignore_index), **kwargs)
        # Transformers' segmentation models take any keyword, and average over the batch all the same.
        self.model_accepts_loss_kwargs = False

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns the mean loss, each image's confusion matrix (n, classes, classes) and loss (n,)."""
        batch: Any = self._prepare_input(dict(inputs))
        truth, sizes = batch.pop("masks"), batch.pop("sizes")
        losses, confusions = [], []
        for i, (mask, (height, width)) in enumerate(zip(truth, sizes.tolist(), strict=True)):
            alone = {key: value[i : i + 1, ..., :height, :width].contiguous() for key, value in batch.items()}
            counts = (alone["labels"] != self.ignore_index).any()
            loss: Any
            loss, logits, _ = super().prediction_step(model, alone, prediction_loss_only, ignore_keys)
            losses.append(loss.where(counts, 0))  # Transformers' own losses are NaN where nothing counts
            if logits is not None:
                confusions.append(
                    multiclass_confusion_matrix(
                        segment(logits, (height, width), mask.shape)[0],
                        mask,
                        self.num_labels,
                        ignore_index=self.ignore_index,
                        validate_args=False,
                    )
                )
        each = torch.stack(losses)
        return (each.mean(), torch.stack(confusions), each) if confusions else (each.mean(), None, None)

    def select_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the logits of the pixels that count, (count, classes) float32."""
        return _resize(logits.float(), labels.shape[-2:]).movedim(1, -1)[labels != self.ignore_index]


def _resize(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes logits to a height and width, unless they have them."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return nn.functional.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def segment(logits: Tensor, size: Sequence[int], original: Sequence[int]) -> Tensor:
    """Returns the likeliest class of each pixel, as `post_process_semantic_segmentation` does.

    Args:
        logits: (n, classes, ., .), at the resolution of the images or a lower one.
        size: the height and width of the images that the model has seen.
        original: the height and width to answer in.

    Returns:
        Ids, (n, *original) int64.
    """
    # max, as argmax is several times slower on the CPU
    return _resize(_resize(logits.float(), size), original).max(1).indices
