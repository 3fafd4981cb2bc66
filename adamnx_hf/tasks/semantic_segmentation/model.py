"""The network of a recipe, what its loss counts, and what prepares images for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks.pretrained import label_maps, load_pretrained
from adamnx_hf.tasks.semantic_segmentation.arguments import Arguments, configure

if TYPE_CHECKING:
    from adamnx_hf.tasks.base import Recipe

__all__ = ["balanced_weights", "make_model", "make_processor"]


def balanced_weights(pixels: np.ndarray, balance: float) -> list[float]:
    """Returns the weight of a pixel of each class; the pixels' mean weight is 1.

    Args:
        pixels: (classes,), how many of each there are.
        balance: 0, all count alike, to 1, every class has the same sum.

    Returns:
        Of each class its share of all pixels to the power of -balance, times a constant. A class without
        pixels has the weight of the rarest.
    """
    shares = pixels.clip(min=pixels[pixels > 0].min()) / pixels.sum()
    weights = shares**-balance
    result: list[float] = (weights / (weights * pixels / pixels.sum()).sum()).tolist()
    return result


def make_model(arguments: Arguments, names: list[str], recipe: Recipe, pixels: np.ndarray) -> Any:
    """Makes the network, or loads one to fine-tune.

    Args:
        arguments: the task's.
        names: of the classes.
        recipe: has the seed.
        pixels: (classes,), how many of each there are to train on.

    Raises:
        RecipeError: the network weighs no classes, though the recipe asks for that, or see
            :func:`adamnx_hf.tasks.pretrained.check_pretrained`.
    """
    from transformers import AutoModelForSemanticSegmentation, set_seed

    options = label_maps(names) | {"semantic_loss_ignore_index": arguments.void_id}
    set_seed(recipe.training_arguments.seed)  # the same weights for every optimizer
    if arguments.model_name_or_path:
        model = load_pretrained(AutoModelForSemanticSegmentation, arguments.model_name_or_path, **options)
    else:
        changes: Any = arguments.architecture_options
        model = AutoModelForSemanticSegmentation.from_config(
            configure(str(arguments.architecture), changes, **options)
        )
    if arguments.class_balance:
        if not hasattr(model.config, "class_weights"):
            raise RecipeError(
                f"class_balance: {model.config.model_type} has a loss of its own that weighs no classes; "
                "leave it out"
            )
        model.config.class_weights = balanced_weights(pixels, arguments.class_balance)
    elif arguments.model_name_or_path and hasattr(model.config, "class_weights"):
        model.config.class_weights = None  # those of the data it has learned from
    return model


def make_processor(arguments: Arguments) -> Any:
    """Makes the processor that prepares images for the saved model as evaluation does here."""
    from transformers import MobileNetV2ImageProcessor  # resizes by the shorter side, and has the masks' part

    return MobileNetV2ImageProcessor(
        size={"shortest_edge": arguments.image_size},
        do_center_crop=False,
        image_mean=arguments.image_mean,
        image_std=arguments.image_std,
    )
