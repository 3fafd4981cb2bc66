"""The fields of a recipe for image classification."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import torch

from adamnx_hf.tasks.base import make_field
from adamnx_hf.tasks.data import ImageArguments, train_images_fast

__all__ = ["Arguments", "fast", "smoke"]


@dataclasses.dataclass
class Arguments(ImageArguments):
    """The fields of a recipe for image classification."""

    label_column: str = make_field(
        "label", "Column of the classes: ids from 0, or names.", data=True, neutral=True
    )
    architecture: str | None = make_field(
        None, "A torchvision network, from scratch, one of adamnx_hf.models.torchvision_net.nets.NETS."
    )
    image_size: int = make_field(32, "Side of the images, in pixels. Images of another size are resized.")
    jitter_probability: float = make_field(0.5, "Probability of the HSV jitter of a training image.")
    augment_on_device: bool = make_field(
        False, "Augment whole batches on the training device, not in the data loader."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 1:
            raise ValueError(f"image_size: {self.image_size} is not a size in pixels")
        if self.architecture:
            _check_network(self.architecture, json.dumps(self.architecture_options))


@functools.cache
def _check_network(architecture: str, options: str) -> None:
    """Checks that the options, as JSON, make a network.

    Raises:
        ValueError: the architecture or an option is not known, or the network cannot be made.
    """
    from adamnx_hf.models.torchvision_net import nets

    changes = json.loads(options)
    nets.change_options(architecture, changes)
    try:
        with torch.device("meta"):  # costs no memory, and shows what does not fit
            nets.build(architecture, 2, changes)
    except ModuleNotFoundError:
        pass  # torchvision is not installed: make_model will say what to install
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"architecture_options: do not make a network ({reason})") from error


def fast() -> dict[str, Any]:
    """Returns the values of `--fast`."""
    return {
        **train_images_fast(),
        "keep_decoded": True,
        "augment_on_device": True,
        "dataloader_num_workers": 0,  # taking decoded images from memory is too little work to share
    }


def smoke(arguments: Arguments) -> dict[str, Any]:
    """Returns the values of `--smoke`: a tiny network and a few images."""
    from adamnx_hf.models.torchvision_net import nets

    tiny: dict[str, Any] = {
        "max_train_samples": 64,
        "max_eval_samples": 32,
        "image_size": min(arguments.image_size, 64),
    }
    if arguments.architecture:
        changes: Any = arguments.architecture_options or {}
        tiny["architecture_options"] = nets.shrink_options(arguments.architecture, changes)
    return tiny
