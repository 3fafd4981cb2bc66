"""Object detection: images with boxes to a trained YOLOv7-tiny, judged by VOC's mean average precision."""

from adamnx_hf.tasks.data import IMAGES_DISPLACE as DISPLACES
from adamnx_hf.tasks.data import train_images_fast as fast
from adamnx_hf.tasks.object_detection.arguments import Arguments, smoke
from adamnx_hf.tasks.object_detection.charts import draw_predictions
from adamnx_hf.tasks.object_detection.evaluation import METRICS
from adamnx_hf.tasks.object_detection.task import make_trainer

__all__ = ["DISPLACES", "METRICS", "UNIT", "Arguments", "draw_predictions", "fast", "make_trainer", "smoke"]

UNIT = "images"
