"""Semantic segmentation: images and masks of class ids to a trained model, judged by its mean IoU."""

from adamnx_hf.tasks.data import IMAGES_DISPLACE as DISPLACES
from adamnx_hf.tasks.semantic_segmentation.arguments import Arguments, fast, smoke
from adamnx_hf.tasks.semantic_segmentation.charts import draw_predictions
from adamnx_hf.tasks.semantic_segmentation.evaluation import METRICS
from adamnx_hf.tasks.semantic_segmentation.task import make_trainer

__all__ = [
    "DISPLACES",
    "METRICS",
    "PIPELINE_TAG",
    "UNIT",
    "Arguments",
    "draw_predictions",
    "fast",
    "make_trainer",
    "smoke",
]

UNIT = "images"

#: The task, as the Hub names it.
PIPELINE_TAG = "image-segmentation"
