"""Image classification: images and class ids to a trained classifier, judged by its top-k error."""

from adamnx_hf.tasks.data import IMAGES_DISPLACE as DISPLACES
from adamnx_hf.tasks.image_classification.arguments import Arguments, fast, smoke
from adamnx_hf.tasks.image_classification.evaluation import METRICS
from adamnx_hf.tasks.image_classification.task import make_trainer

__all__ = ["DISPLACES", "METRICS", "UNIT", "Arguments", "fast", "make_trainer", "smoke"]

UNIT = "images"
