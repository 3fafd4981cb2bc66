"""The fields of a recipe for image classification."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import torch

from adamnx_hf.tasks.data import ImageArguments, doc, train_images_fast

__all__ = ["Arguments", "fast", "smoke"]


@dataclasses.dataclass
class Arguments(ImageArguments):
    """The fields of a recipe for image classification."""

    label_column: str = dataclasses.field(
        default="label", metadata=doc("Column of the classes: ids from 0, or names.", data=True, neutral=True)
    )
    architecture: str | None = dataclasses.field(
        default=None,
        metadata=doc(
            "A torchvision network, from scratch, one of adamnx_hf.models.torchvision_net.nets.NETS."
        ),
    )
    image_size: int = dataclasses.field(
        default=32, metadata=doc("Images of another size are resized to it, in pixels.")
    )
    jitter_probability: float = dataclasses.field(
        default=0.5, metadata=doc("Probability of the HSV jitter of a training image.")
    )
    augment_on_device: bool = dataclasses.field(
        default=False,
        metadata=doc("Augment whole batches on the training device, not in the data loader."),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 1:
            raise ValueError(f"image_size: {self.image_size} is not a size in pixels")
        if self.architecture:
            _check_network(self.architecture, json.dumps(self.architecture_options))


@functools.cache
def _check_network(architecture: str, options: str) -> None:
    from adamnx_hf.models.torchvision_net import nets

    changes = json.loads(options)
    nets.change_options(architecture, changes)
    try:
        with torch.device("meta"):  # costs no memory, and shows what does not fit
            nets.build(architecture, 2, changes)
    except ModuleNotFoundError:
        pass  # without torchvision: making the model says what to install
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"architecture_options: do not make a network ({reason})") from error


def fast() -> dict[str, Any]:
    """Returns what `--fast` sets."""
    return {
        **train_images_fast(),
        "keep_decoded": True,
        "augment_on_device": True,
        "dataloader_num_workers": 0,  # picking decoded images out of memory is too little work to share
    }


def smoke(arguments: Arguments) -> dict[str, Any]:
    """Returns what `--smoke` sets: a tiny network and a few images."""
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
