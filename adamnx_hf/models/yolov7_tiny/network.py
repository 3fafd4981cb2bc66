"""YOLOv7-tiny (arXiv:2207.02696) as a Transformers model for object detection."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput, can_return_tuple

from adamnx_hf.models.base import ImageModel
from adamnx_hf.models.yolov7_tiny.configuration import Yolov7TinyConfig
from adamnx_hf.models.yolov7_tiny.loss import Priors, decode, yolov7_loss

__all__ = ["Yolov7TinyForObjectDetection", "Yolov7TinyNet", "Yolov7TinyOutput"]


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm and leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03),
            nn.LeakyReLU(0.1, inplace=True),
        )


class ElanTiny(nn.Module):
    """ELAN with one chain of two 3x3 convolutions: the input, the chain's steps and a second path, joined."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.side = ConvNormAct(inputs, hidden)
        self.first = ConvNormAct(inputs, hidden)
        self.second = ConvNormAct(hidden, hidden, 3)
        self.third = ConvNormAct(hidden, hidden, 3)
        self.join = ConvNormAct(4 * hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(first)
        return self.join(torch.cat([self.third(second), second, first, self.side(x)], 1))


class SppCspcTiny(nn.Module):
    """Spatial pyramid pooling (windows of 5, 9 and 13) in a cross-stage partial block."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.side = ConvNormAct(inputs, hidden)
        self.first = ConvNormAct(inputs, hidden)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.pooled = ConvNormAct(4 * hidden, hidden)
        self.join = ConvNormAct(2 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        five = self.pool(first)
        nine = self.pool(five)  # two windows of 5 reach as far as one of 9
        pooled = self.pooled(torch.cat([self.pool(nine), nine, five, first], 1))
        return self.join(torch.cat([pooled, self.side(x)], 1))


class Prediction(nn.Conv2d):
    """The last layer of one scale: for each of three anchors a box, an objectness and the classes."""

    def __init__(self, inputs: int, classes: int, stride: int) -> None:
        super().__init__(inputs, 3 * (5 + classes), 1)
        self.classes, self.stride_of_level = classes, stride

    def make_starting_bias(self) -> Tensor:
        """Makes the bias at which 8 objects are expected in 640 x 640 pixels, of each class equally many."""
        bias = torch.zeros(3, 5 + self.classes)
        bias[:, 4] = math.log(8 / (640 / self.stride_of_level) ** 2)
        bias[:, 5:] = math.log(0.6 / (max(self.classes, 2) - 0.99))
        return bias.flatten()


class Yolov7TinyNet(nn.Module):
    """Backbone, pyramid and predictions.

    Args:
        classes: number of classes.
        width: share of YOLOv7-tiny's channels.
        channels: channels of the images.

    Takes (batch, channels, height, width), both sides multiples of 32; gives for the strides 8, 16 and 32
    (batch, 3 · (5 + classes), height / stride, width / stride).
    """

    def __init__(self, classes: int, width: float = 1.0, channels: int = 3) -> None:
        super().__init__()

        def scale_width(count: int) -> int:
            return max(8, round(count * width / 8) * 8)

        w32, w64, w128, w256, w512 = (scale_width(count) for count in (32, 64, 128, 256, 512))
        self.stem = nn.Sequential(
            ConvNormAct(channels, w32, 3, 2), ConvNormAct(w32, w64, 3, 2), ElanTiny(w64, w32, w64)
        )
        pool = nn.MaxPool2d(2, 2)
        self.stage3 = nn.Sequential(pool, ElanTiny(w64, w64, w128))
        self.stage4 = nn.Sequential(pool, ElanTiny(w128, w128, w256))
        self.stage5 = nn.Sequential(pool, ElanTiny(w256, w256, w512))
        self.pyramid5 = SppCspcTiny(w512, w256)

        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.reduce5, self.lateral4 = ConvNormAct(w256, w128), ConvNormAct(w256, w128)
        self.top_down4 = ElanTiny(2 * w128, w64, w128)
        self.reduce4, self.lateral3 = ConvNormAct(w128, w64), ConvNormAct(w128, w64)
        self.top_down3 = ElanTiny(2 * w64, w32, w64)

        self.down3 = ConvNormAct(w64, w128, 3, 2)
        self.bottom_up4 = ElanTiny(2 * w128, w64, w128)
        self.down4 = ConvNormAct(w128, w256, 3, 2)
        self.bottom_up5 = ElanTiny(2 * w256, w128, w256)

        self.heads = nn.ModuleList(
            nn.Sequential(ConvNormAct(inputs, outputs, 3), Prediction(outputs, classes, stride))
            for inputs, outputs, stride in zip(
                (w64, w128, w256), (w128, w256, w512), Yolov7TinyConfig.strides, strict=True
            )
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the three scales' raw predictions."""
        c3 = self.stage3(self.stem(x))
        c4 = self.stage4(c3)
        p5 = self.pyramid5(self.stage5(c4))
        p4 = self.top_down4(torch.cat([self.up(self.reduce5(p5)), self.lateral4(c4)], 1))
        p3 = self.top_down3(torch.cat([self.up(self.reduce4(p4)), self.lateral3(c3)], 1))
        n4 = self.bottom_up4(torch.cat([self.down3(p3), p4], 1))
        n5 = self.bottom_up5(torch.cat([self.down4(n4), p5], 1))
        return [head(level) for head, level in zip(self.heads, (p3, n4, n5), strict=True)]


@dataclasses.dataclass
class Yolov7TinyOutput(ModelOutput):
    """The model's output, for every anchor of every cell of the three scales."""

    loss: Tensor | None = None
    """The weighted sum of `loss_dict`, where there are labels."""
    loss_dict: dict[str, Tensor] | None = None
    """`loss_box`, `loss_objectness` and `loss_class`, without their weights."""
    logits: Tensor | None = None
    """(batch, anchors, classes): each class's logit, given that there is an object."""
    objectness_logits: Tensor | None = None
    """(batch, anchors): the logit that there is an object."""
    pred_boxes: Tensor | None = None
    """(batch, anchors, 4): centre x, centre y, width and height as shares of the input's sides."""


class Yolov7TinyForObjectDetection(ImageModel):
    """YOLOv7-tiny with the v7 loss, initialised as RegNet is (arXiv:2003.13678).

    The paper's implicit knowledge (1,661 parameters that deployment folds into the last layers) is left out.

    Args:
        config: the network's sizes, anchors and classes, and its loss.

    Examples:
        >>> model = Yolov7TinyForObjectDetection(Yolov7TinyConfig(image_size=64, num_labels=3)).eval()
        >>> model(pixel_values=torch.zeros(1, 3, 64, 64)).pred_boxes.shape
        torch.Size([1, 252, 4])
    """

    config_class = Yolov7TinyConfig
    base_model_prefix = "net"

    def __init__(self, config: Yolov7TinyConfig) -> None:
        super().__init__(config)
        self.net = Yolov7TinyNet(int(config.num_labels or 0), config.width, config.num_channels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Prediction):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None and not getattr(module.bias, "_is_hf_initialized", False):
                module.bias.copy_(module.make_starting_bias())
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    @can_return_tuple
    # torch.compile sees the network alone: it would compile the loss again for every number of objects.
    @torch.compiler.disable(recursive=False)
    def forward(
        self, pixel_values: Tensor, labels: list[dict[str, Tensor]] | None = None
    ) -> Yolov7TinyOutput:
        """Detects objects.

        Args:
            pixel_values: (batch, channels, height, width), floating point, both sides multiples of 32.
            labels: for each image `class_labels` (objects,), int64, and `boxes` (objects, 4): centre x,
                centre y, width and height as shares of the sides of `pixel_values`, as DETR takes them. With
                them the output has a loss, in float32 under autocast, too.

        Returns:
            A tuple with `return_dict=False`, here or in the config.

        Raises:
            ValueError: a side is not a multiple of 32.
        """
        height, width = pixel_values.shape[-2:]
        if height % 32 or width % 32:
            raise ValueError(f"pixel_values: {height} x {width} pixels; both sides must be multiples of 32")
        levels = self.net(pixel_values)
        priors = Priors.of(
            [(level.shape[-2], level.shape[-1]) for level in levels], self.config.anchors, levels[0].device
        )
        raw = torch.cat([_flatten(level) for level in levels], 1).float()
        boxes = decode(raw[..., :4], priors)
        scale = boxes.new_tensor([width, height, width, height])
        loss, parts = None, None
        if labels is not None:
            parts = yolov7_loss(
                boxes,
                raw[..., 4],
                raw[..., 5:],
                [label["boxes"].float() * scale for label in labels],
                [label["class_labels"] for label in labels],
                priors,
                anchor_ratio=self.config.anchor_ratio,
            )
            loss = sum(weight * parts[name] for name, weight in self.loss_weights(height, width).items())
        return Yolov7TinyOutput(
            loss=loss,
            loss_dict=parts,
            logits=raw[..., 5:],
            objectness_logits=raw[..., 4],
            pred_boxes=boxes / scale,
        )

    def loss_weights(self, height: int, width: int) -> dict[str, float]:
        """Returns the weight of each part of `loss_dict` for an input of `height` and `width` pixels."""
        return {
            "loss_box": self.config.box_loss_coefficient,
            "loss_objectness": self.config.objectness_loss_coefficient * (height * width / 640**2),
            "loss_class": self.config.class_loss_coefficient * int(self.config.num_labels or 0) / 80,
        }


def _flatten(level: Tensor) -> Tensor:
    """Turns (batch, 3 · values, height, width) into (batch, 3 · height · width, values)."""
    batch, _, height, width = level.shape
    return level.view(batch, 3, -1, height, width).permute(0, 1, 3, 4, 2).flatten(1, 3)
