"""U-Net (arXiv:1505.04597) as a Transformers model for semantic segmentation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import can_return_tuple

from adamnx_hf.models.base import ImageModel
from adamnx_hf.models.unet.configuration import UNetConfig
from adamnx_hf.models.unet.loss import cross_entropy_loss, dice_loss

__all__ = ["UNetForSemanticSegmentation"]


class ConvBlock(nn.Sequential):
    """Two 3 × 3 convolutions, each with batch norm and ReLU; the size stays the same."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNetForSemanticSegmentation(ImageModel):
    """A U-Net with padded convolutions and batch norm; the loss is cross-entropy and Dice.

    Takes images of any size: repeats their border up to a multiple of 2^depth, and cuts the logits back to
    the images' size. Weights start as RegNet's do (arXiv:2003.13678, pycls and torchvision).

    Args:
        config: the size of the network, its classes and the weights of its loss.

    Examples:
        >>> model = UNetForSemanticSegmentation(UNetConfig(base_width=16, depth=3, num_labels=21))
        >>> model(pixel_values=torch.zeros(1, 3, 75, 100)).logits.shape
        torch.Size([1, 21, 75, 100])
    """

    config_class = UNetConfig
    base_model_prefix = ""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths = [config.base_width * 2**level for level in range(config.depth + 1)]
        self.encoder = nn.ModuleList(
            ConvBlock(*pair) for pair in zip([config.num_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths[:-1])
        )
        self.decoder = nn.ModuleList(ConvBlock(2 * width, width) for width in reversed(widths[:-1]))
        self.classifier = nn.Conv2d(config.base_width, int(config.num_labels or 0), 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialises as RegNet does: He's normal by fan-out for convolutions, near 0 for the classifier."""
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels
            std = 0.01 if module is self.classifier else math.sqrt(2 / fan_out)
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> SemanticSegmenterOutput:
        """Classifies pixels.

        Args:
            pixel_values: (batch, channels, height, width), floating point.
            labels: (batch, height, width), int64 class ids; with them the output has a loss, the average of
                cross-entropy and Dice by `config.dice_weight`.

        Returns:
            `logits` (batch, classes, height, width) and, where there are labels, `loss`; as a tuple
            `(loss,) logits` with `return_dict=False`, here or in the config.
        """
        height, width = pixel_values.shape[-2:]
        step = 2**self.config.depth
        x = nn.functional.pad(pixel_values, (0, -width % step, 0, -height % step), mode="replicate")
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(self.pool(x) if level else x)
            skips.append(x)
        skips.pop()
        for upsample, block in zip(self.upsample, self.decoder, strict=True):
            x = block(torch.cat([skips.pop(), upsample(x)], 1))
        logits = self.classifier(x)[..., :height, :width]

        loss = None
        if labels is not None:
            dice, ignore = self.config.dice_weight, self.config.semantic_loss_ignore_index
            full, weight = logits.float(), self.config.class_weights
            weight = None if weight is None else torch.tensor(weight, device=full.device)
            cross_entropy = cross_entropy_loss(full, labels, ignore, weight)
            loss = (1 - dice) * cross_entropy + dice * dice_loss(full, labels, ignore)
        return SemanticSegmenterOutput(loss=loss, logits=logits)
