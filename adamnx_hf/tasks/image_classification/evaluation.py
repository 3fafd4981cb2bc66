"""The top-k error of a classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adamnx_hf import metrics
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks.base import Metric, as_rest

__all__ = ["METRICS", "make_compute_metrics"]

#: Reported best and last; the best is the lowest.
METRICS = {
    "top1_error": Metric("min", "accuracy", "Accuracy", as_rest),
    "top5_error": Metric("min", "accuracy", "Top-5 accuracy", as_rest),
}


def make_compute_metrics(learned: int, best_by: str | None) -> Callable[[Any], dict[str, float]]:
    """Returns the Trainer's `compute_metrics`: those of :data:`METRICS` that can be wrong at all.

    Args:
        learned: how many classes have rows to train on. Among the k likeliest of k classes is always the
            right one.
        best_by: the recipe's `metric_for_best_model`.

    Raises:
        RecipeError: the best model is to be chosen by a metric that is always 0.
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

    def compute_metrics(prediction: Any) -> dict[str, float]:
        scores: dict[str, float] = metric.compute(
            predictions=prediction.predictions, references=prediction.label_ids, k=k
        )
        return scores

    return compute_metrics
