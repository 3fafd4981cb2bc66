"""Semantic segmentation: images and masks of class ids to a trained model, judged by its mean IoU."""

from adamnx_hf.tasks.data import IMAGES_DISPLACE as DISPLACES

# Decoding and augmentation stay with the loader's workers: images differ in size.
from adamnx_hf.tasks.data import train_images_fast as fast
from adamnx_hf.tasks.semantic_segmentation.arguments import Arguments, smoke
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

#: The Hub's name of the task.
PIPELINE_TAG = "image-segmentation"
