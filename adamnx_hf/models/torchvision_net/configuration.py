"""The configuration of a torchvision network, as config.json holds it."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

__all__ = ["TorchvisionNetConfig"]


class TorchvisionNetConfig(PretrainedConfig):
    """Names a torchvision network, the options that differ from torchvision's, and the classes.

    Args:
        architecture: torchvision's name, one of :data:`adamnx_hf.models.torchvision_net.nets.NETS`.
        options: options that differ from torchvision's; see :mod:`adamnx_hf.models.torchvision_net.nets`.
        image_size: pixels along a side of the images that the network is made for.
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
