"""The top-k error of a classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adamnx_hf import metrics
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks.base import Metric, convert_error

__all__ = ["METRICS", "make_compute_metrics"]

#: The metrics that are reported best and last.
METRICS = {
    "top1_error": Metric("min", "accuracy", "Accuracy", convert_error),
    "top5_error": Metric("min", "accuracy", "Top-5 accuracy", convert_error),
}


def make_compute_metrics(learned: int, best_by: str | None) -> Callable[[Any], dict[str, float]]:
    """Makes the Trainer's `compute_metrics`: those of :data:`METRICS` that are not always 0.

    Args:
        learned: the number of classes that have training rows. The right one is always among the k likeliest
            of k classes.
        best_by: the recipe's `metric_for_best_model`.

    Raises:
        RecipeError: `best_by` is a metric that is always 0.
    """
    metric = metrics.load("top_k_error")
    k = [int(name.removeprefix("top").removesuffix("_error")) for name in METRICS]
    k = [most for most in k if most < learned]
    by = (best_by or "").removeprefix("eval_")
    if by in METRICS and by not in [f"top{most}_error" for most in k]:
        raise RecipeError(
            f"metric_for_best_model: {by} is always 0 with {learned} classes; pass "
            "--metric_for_best_model top1_error"
        )
    return lambda prediction: metric.compute(
        predictions=prediction.predictions, references=prediction.label_ids, k=k
    )
