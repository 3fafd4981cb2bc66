"""Boxes that the model finds, judged by VOC's mean average precision."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamnx_hf import metrics
from adamnx_hf.models.yolov7_tiny.loss import STRIDES, Priors, sampled_loss
from adamnx_hf.tasks.base import Metric
from adamnx_hf.tasks.trainer import RecipeTrainer

__all__ = ["METRICS", "DetectionTrainer", "compute_metrics"]


#: The metrics that are reported best and last, in percent.
METRICS = {
    "map_50": Metric("max", "map", "mAP at IoU 0.5"),
    "map_75": Metric("max", "map", "mAP at IoU 0.75"),
}

#: Boxes less likely than this are not judged: hardly any is right, and all cost time.
LEAST_SCORE = 0.001


class DetectionTrainer(RecipeTrainer):
    """A RecipeTrainer whose evaluation hands on boxes, not the network's output for every anchor.

    Predictions are (images, most, 6): class id, likelihood, two corners in pixels of the image itself. Labels
    are :class:`DetectionDataset`'s `objects`. Rows of -100 fill up both.
    """

    smooths_labels = False

    def sampled_loss(self, inputs: dict[str, Any]) -> tuple[Tensor, int]:
        """Returns :func:`adamnx_hf.models.yolov7_tiny.loss.sampled_loss`, and 1: the sum counts once."""
        pixels = inputs["pixel_values"]
        height, width = pixels.shape[-2:]
        model: Any = self.model
        with self.compute_loss_context_manager():
            outputs = self.model_wrapped(pixel_values=pixels)
        priors = Priors.of([(height // s, width // s) for s in STRIDES], model.config.anchors)
        weights = model.loss_weights(height, width)
        return sampled_loss(outputs.objectness_logits, outputs.logits, priors, weights), 1

    @torch.no_grad()
    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns the loss, the boxes that are found, and the objects."""
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            outputs = model(**inputs)
        loss = outputs.loss.mean().detach()
        if prediction_loss_only:
            return loss, None, None
        processor: Any = self.processing_class
        labels = inputs["labels"]
        found = processor.post_process_object_detection(
            outputs, threshold=LEAST_SCORE, target_sizes=[label["orig_size"].tolist() for label in labels]
        )
        rows = [torch.cat([f["labels"][:, None], f["scores"][:, None], f["boxes"]], 1) for f in found]
        return loss, _fill_up(rows), _fill_up([label["objects"] for label in labels])


def _fill_up(rows: Sequence[Tensor]) -> Tensor:
    """Pads each image's (n, 6) into one tensor (images, at least 1, 6)."""
    none = rows[0].new_full((1, rows[0].shape[1]), -100)
    padded = torch.nn.utils.rnn.pad_sequence([none, *rows], batch_first=True, padding_value=-100)
    return padded[1:].contiguous()


_load_metric = functools.cache(metrics.load)


def compute_metrics(prediction: Any) -> dict[str, float]:
    """Computes VOC's mean average precision of a :class:`DetectionTrainer`'s predictions."""
    found, true = (
        [rows[rows[:, 0] >= 0] for rows in images]
        for images in (prediction.predictions, prediction.label_ids)
    )
    scores: dict[str, float] = _load_metric("voc_map").compute(
        predictions=[
            {"boxes": rows[:, 2:], "scores": rows[:, 1], "labels": rows[:, 0].astype(np.int64)}
            for rows in found
        ],
        references=[
            {"boxes": rows[:, 2:], "labels": rows[:, 0].astype(np.int64), "difficult": rows[:, 1] > 0}
            for rows in true
        ],
        iou_thresholds=[int(name.removeprefix("map_")) / 100 for name in METRICS],
    )
    return scores
