"""The network of a recipe, and what prepares images for it."""

from __future__ import annotations

from typing import Any

import torch

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks.base import Recipe
from adamnx_hf.tasks.image_classification.arguments import Arguments
from adamnx_hf.tasks.pretrained import label_maps, load_pretrained

__all__ = ["make_model", "make_processor"]


def make_model(arguments: Arguments, classes: list[str], recipe: Recipe) -> Any:
    """Makes the network, or loads one to fine-tune.

    Raises:
        RecipeError: the model does not take images of the recipe's size, or see
            :func:`adamnx_hf.tasks.pretrained.check_pretrained`.
    """
    from transformers import AutoModelForImageClassification, set_seed

    from adamnx_hf.models import TorchvisionNetConfig, TorchvisionNetForImageClassification

    labels = label_maps(classes)
    set_seed(recipe.training_arguments.seed)  # every optimizer starts from the same weights
    if arguments.model_name_or_path:
        model = load_pretrained(AutoModelForImageClassification, arguments.model_name_or_path, **labels)
        _check_size(model, arguments.image_size)
        return model
    config = TorchvisionNetConfig(
        arguments.architecture, arguments.architecture_options, image_size=arguments.image_size, **labels
    )
    return TorchvisionNetForImageClassification(config)


@torch.no_grad()
def _check_size(model: Any, size: int) -> None:
    """Checks that a model takes images of `size` pixels a side.

    Raises:
        RecipeError: the model does not.
    """
    try:
        model.eval()(pixel_values=torch.zeros(1, 3, size, size))
    except (ValueError, RuntimeError) as error:
        own = getattr(model.config, "image_size", None)
        remedy = f"pass --image_size {own}" if isinstance(own, int) and own != size else "choose another size"
        raise RecipeError(
            f"image_size: the model does not take images of {size} x {size} pixels; {remedy} ({error})"
        ) from error
    finally:
        model.train()


def make_processor(arguments: Arguments) -> Any:
    """Makes the processor that prepares images for the saved model as evaluation does here."""
    from transformers import ViTImageProcessor

    return ViTImageProcessor(
        size={"height": arguments.image_size, "width": arguments.image_size},
        image_mean=arguments.image_mean,
        image_std=arguments.image_std,
    )
