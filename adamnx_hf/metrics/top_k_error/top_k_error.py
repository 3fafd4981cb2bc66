"""Top-k error of classifiers, in percent."""

from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
The share, in percent, of examples whose class is not among the k with the highest scores.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: scores (logits or probabilities) of each example, one for each class.
    references: the class of each example, from 0.
    k: how many of the highest scores count; a list for several at once. Default: [1, 5].
Returns:
    top<k>_error for each k: from 0 (best) to 100. Equal scores rank in the order of the classes.
Examples:
    >>> metric = evaluate.load("top_k_error")
    >>> metric.compute(predictions=[[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]], references=[1, 2], k=[1, 2])
    {'top1_error': 50.0, 'top2_error': 0.0}
"""

_CITATION = ""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class TopKError(evaluate.Metric):
    """Top-k error of classifiers, in percent."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any, k: Any = (1, 5)) -> dict[str, float]:
        scores, classes = np.asarray(predictions, dtype=np.float32), np.asarray(references)
        if not np.isfinite(scores).all():  # a model that has diverged knows nothing
            scores = np.where(np.isfinite(scores).all(axis=1, keepdims=True), scores, 0.0)
        if classes.min() < 0 or classes.max() >= scores.shape[1]:
            raise ValueError(
                f"references must be class ids from 0 to {scores.shape[1] - 1}, "
                f"got {classes.min()} to {classes.max()}"
            )
        own = scores[np.arange(len(classes)), classes][:, None]
        before = np.arange(scores.shape[1])[None] < classes[:, None]
        # How many classes come before the right one, those with the same score in the classes' order.
        rank = ((scores > own) | ((scores == own) & before)).sum(axis=1)
        ks = [k] if isinstance(k, int) else list(k)
        return {f"top{n}_error": float((rank >= n).mean() * 100) for n in ks}
