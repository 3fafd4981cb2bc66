"""The configuration of our models: what config.json holds."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

__all__ = ["TorchvisionNetConfig", "UNetConfig"]


class TorchvisionNetConfig(PretrainedConfig):
    """Names a torchvision network, the options that differ from torchvision's, and the classes.

    Args:
        architecture: torchvision's name, one of :data:`adamnx_hf.models.nets.NETS`.
        options: what to change of it; see the functions in :mod:`adamnx_hf.models.nets`.
        image_size: pixels along a side of the images the network is made for.
        num_channels: always 3.
        kwargs: `id2label`, `num_labels` and whatever else every configuration takes.
    """

    model_type = "torchvision_net"

    def __init__(
        self,
        architecture: str = "efficientnet_v2_m",
        options: dict[str, Any] | None = None,
        image_size: int = 32,
        num_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        self.architecture = architecture
        self.options = dict(options or {})
        self.image_size = image_size
        self.num_channels = num_channels
        super().__init__(**kwargs)


class UNetConfig(PretrainedConfig):
    """The size of a U-Net and what its loss is made of.

    Args:
        base_width: channels at full resolution; each level below has twice as many as the one above.
        depth: how many times the resolution is halved.
        num_channels: of the images.
        dice_weight: of the Dice loss, in [0, 1]; the rest is cross-entropy's.
        semantic_loss_ignore_index: the id of pixels that do not count, as in Transformers' own models.
        kwargs: `id2label`, `num_labels` and whatever else every configuration takes.

    Raises:
        ValueError: a width, a depth or a weight that is out of range.
    """

    model_type = "unet"
    #: What makes it tiny, for smoke runs.
    tiny = {"base_width": 4, "depth": 2}  # noqa: RUF012  (a plain name: annotated, it would be a field)

    def __init__(
        self,
        base_width: int = 64,
        depth: int = 4,
        num_channels: int = 3,
        dice_weight: float = 0.5,
        semantic_loss_ignore_index: int = 255,
        **kwargs: Any,
    ) -> None:
        for name, value in (("base_width", base_width), ("depth", depth), ("num_channels", num_channels)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: {value!r} is not a whole number above 0")
        if not isinstance(dice_weight, int | float) or not 0 <= dice_weight <= 1:
            raise ValueError(f"dice_weight: {dice_weight!r} is not a share from 0 to 1")
        self.base_width = base_width
        self.depth = depth
        self.num_channels = num_channels
        self.dice_weight = dice_weight
        self.semantic_loss_ignore_index = semantic_loss_ignore_index
        super().__init__(**kwargs)
