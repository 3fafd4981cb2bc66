"""The network of a recipe, and what prepares images for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks.object_detection.arguments import Arguments, configure
from adamnx_hf.tasks.pretrained import check_pretrained, label_maps

if TYPE_CHECKING:
    from adamnx_hf.tasks.base import Recipe

__all__ = ["make_model", "make_processor"]


def make_model(arguments: Arguments, classes: Sequence[str], recipe: Recipe) -> Any:
    """Makes the network, or loads one to fine-tune.

    Raises:
        RecipeError: the model to load is no YOLOv7-tiny, or one for images of another size, or see
            :func:`adamnx_hf.tasks.pretrained.check_pretrained`.
    """
    from transformers import AutoConfig, set_seed

    from adamnx_hf.models import Yolov7TinyConfig, Yolov7TinyForObjectDetection

    set_seed(recipe.training_arguments.seed)  # the same weights for every optimizer
    name = arguments.model_name_or_path
    if name is None:
        return Yolov7TinyForObjectDetection(configure(arguments, classes))
    check_pretrained(name)
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if not isinstance(config, Yolov7TinyConfig):
        raise RecipeError(f"model_name_or_path: {name} is a {config.model_type}, not a yolov7_tiny")
    if config.image_size != arguments.image_size:
        raise RecipeError(
            f"model_name_or_path: {name} has anchors for {config.image_size} pixels; set --image_size to that"
        )
    return Yolov7TinyForObjectDetection.from_pretrained(
        name, ignore_mismatched_sizes=True, dtype=torch.float32, **label_maps(classes)
    )


def make_processor(arguments: Arguments) -> Any:
    """Makes the processor that prepares images for the saved model as evaluation does here."""
    from adamnx_hf.models import Yolov7TinyImageProcessor

    return Yolov7TinyImageProcessor(
        arguments.image_size, image_mean=arguments.image_mean, image_std=arguments.image_std
    )
