"""torchvision's image classifiers as Transformers models."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import can_return_tuple

from adamnx_hf.models.base import ImageModel
from adamnx_hf.models.torchvision_net import nets
from adamnx_hf.models.torchvision_net.configuration import TorchvisionNetConfig

__all__ = ["TorchvisionNetForImageClassification"]


class TorchvisionNetForImageClassification(ImageModel):
    """A network of :data:`adamnx_hf.models.torchvision_net.nets.NETS` with a classification loss.

    Args:
        config: names the network, its options and its classes.

    Examples:
        >>> config = TorchvisionNetConfig("efficientnet_v2_m", {"stem_stride": 1}, num_labels=100)
        >>> model = TorchvisionNetForImageClassification(config)
        >>> model(pixel_values=torch.zeros(1, 3, 32, 32)).logits.shape
        torch.Size([1, 100])
    """

    config_class = TorchvisionNetConfig
    base_model_prefix = "net"

    def __init__(self, config: TorchvisionNetConfig) -> None:
        super().__init__(config)
        self.net: Any = nets.build(config.architecture, int(config.num_labels or 0), config.options)
        self.post_init()

    def init_weights(self) -> None:
        """Does nothing: the paper keeps torchvision's initialisation."""

    def _init_weights(self, module: nn.Module) -> None:
        # Transformers calls this for layers that a checkpoint lacks: a new head.
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Classifies images.

        Args:
            pixel_values: (batch, channels, height, width), floating point.
            labels: (batch,), int64 class ids; with them the output has a loss, the mean cross-entropy.

        Returns:
            `logits` (batch, classes) and, where there are labels, `loss`; as a tuple `(loss,) logits`
            with `return_dict=False`, here or in the config.
        """
        logits = self.net(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return ImageClassifierOutput(loss=loss, logits=logits)
