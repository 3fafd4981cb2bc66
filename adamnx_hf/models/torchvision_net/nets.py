"""torchvision's networks by name, with the options the paper changes.

A network is added by a line in :data:`NETS`; a family by a function beside the ones below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from adamnx_hf.common.errors import nearest
from adamnx_hf.models.options import check_options

__all__ = [
    "NETS",
    "Net",
    "build",
    "change_options",
    "convnext",
    "efficientnet_v2",
    "shrink_options",
    "swin_v2",
]


def efficientnet_v2(
    num_classes: int,
    *,
    depths: Sequence[int],
    widths: Sequence[int],
    expand_ratios: Sequence[int],
    strides: Sequence[int],
    stem_stride: int = 2,
    fused_stages: int = 3,
    head_width: int = 1280,
    dropout: float = 0.2,
    stochastic_depth: float = 0.2,
) -> nn.Module:
    """Makes torchvision's EfficientNetV2 (arXiv:2104.00298).

    Args:
        num_classes: number of outputs.
        depths: blocks of each stage.
        widths: channels of the stem, then of each stage.
        expand_ratios: expansion in each stage's blocks.
        strides: stride of each stage's first block. torchvision has 1, 2, 2, 2, 1, 2, 1.
        stem_stride: stride of the first convolution. torchvision has 2.
        fused_stages: number of stages, from the first on, that have Fused-MBConv blocks.
        head_width: channels of the last convolution.
        dropout: probability before the last layer.
        stochastic_depth: probability in the last block, rising linearly from 0 in the first.

    Raises:
        ValueError: the lists differ in length.
    """
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    if not len(depths) == len(widths) - 1 == len(expand_ratios) == len(strides):
        raise ValueError(
            f"depths, expand_ratios and strides need one number a stage and widths one more, got "
            f"{len(depths)}, {len(expand_ratios)}, {len(strides)} and {len(widths)}"
        )
    if not isinstance(stem_stride, int) or stem_stride < 1:
        raise ValueError(f"stem_stride: {stem_stride!r} is not a whole number above 0")
    stages = []
    for i, (depth, ratio, stride) in enumerate(zip(depths, expand_ratios, strides, strict=True)):
        make = FusedMBConvConfig if i < fused_stages else MBConvConfig
        stages.append(make(ratio, 3, stride, widths[i], widths[i + 1], depth))
    net = EfficientNet(
        stages,
        dropout,
        stochastic_depth,
        num_classes=num_classes,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3),
        last_channel=head_width,
    )
    net.features[0][0].stride = (stem_stride, stem_stride)
    return net


def swin_v2(
    num_classes: int,
    *,
    depths: Sequence[int],
    width: int,
    heads: Sequence[int],
    patch_size: int = 4,
    window_size: int = 8,
    stochastic_depth: float = 0.2,
) -> nn.Module:
    """Makes torchvision's Swin Transformer V2 (arXiv:2111.09883).

    Args:
        num_classes: number of outputs.
        depths: blocks of each stage.
        width: channels of the first stage; each stage has twice as many as the last.
        heads: attention heads of each stage.
        patch_size: pixels along a side of a patch.
        window_size: patches along a side of an attention window.
        stochastic_depth: probability in the last block, rising linearly from 0 in the first.
    """
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    return SwinTransformer(
        patch_size=[patch_size] * 2,
        embed_dim=width,
        depths=list(depths),
        num_heads=list(heads),
        window_size=[window_size] * 2,
        stochastic_depth_prob=stochastic_depth,
        num_classes=num_classes,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )


def convnext(
    num_classes: int,
    *,
    depths: Sequence[int],
    widths: Sequence[int],
    stem_kernel: int = 4,
    stem_stride: int = 4,
    stem_padding: int = 0,
    block_kernel: int = 7,
    downsample_kernel: int = 2,
    downsample_padding: int = 0,
    stochastic_depth: float = 0.1,
    layer_scale: float = 1e-6,
) -> nn.Module:
    """Makes torchvision's ConvNeXt (arXiv:2201.03545).

    Args:
        num_classes: number of outputs.
        depths: blocks of each stage.
        widths: channels of each stage.
        stem_kernel, stem_stride, stem_padding: geometry of the first convolution.
        block_kernel: odd kernel size of the depthwise convolutions, which are padded to keep the size.
        downsample_kernel, downsample_padding: geometry of the convolutions of stride 2 between stages.
        stochastic_depth: probability in the last block, rising linearly from 0 in the first.
        layer_scale: initial value of the layer scale.
    """
    from torchvision.models.convnext import CNBlock, CNBlockConfig, ConvNeXt

    stages = [
        CNBlockConfig(width, following, depth)
        for width, following, depth in zip(widths, [*widths[1:], None], depths, strict=True)
    ]
    net = ConvNeXt(stages, stochastic_depth, layer_scale, num_classes)

    def replace(conv: nn.Conv2d, kernel: int, stride: int, padding: int) -> nn.Conv2d:
        new = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, padding, groups=conv.groups)
        nn.init.trunc_normal_(new.weight, std=0.02)  # as torchvision initialises them
        nn.init.zeros_(new.bias)  # type: ignore[arg-type]
        return new

    net.features[0][0] = replace(net.features[0][0], stem_kernel, stem_stride, stem_padding)
    for stage in net.features[1:]:
        if isinstance(stage[0], CNBlock):
            for block in stage:
                block.block[0] = replace(block.block[0], block_kernel, 1, block_kernel // 2)
        else:
            stage[1] = replace(stage[1], downsample_kernel, 2, downsample_padding)
    return net


@dataclasses.dataclass(frozen=True)
class Net:
    """A network: its family's function, its options, and those that make it tiny."""

    family: Callable[..., nn.Module]
    options: Mapping[str, Any]
    tiny: Mapping[str, Any]
    """Options of a network of the same shape that trains in no time, for smoke runs."""


def _make_net(family: Callable[..., nn.Module], tiny: Mapping[str, Any], **options: Any) -> Net:
    """Makes the record of a network from its options as keywords."""
    return Net(family, options, tiny)


def _efficientnet(*, tiny_stages: int = 7, **options: Any) -> Net:
    """Makes the record of an EfficientNetV2."""
    ratios, strides = (1, 4, 4, 4, 6, 6, 6)[:tiny_stages], (1, 2, 2, 2, 1, 2, 1)[:tiny_stages]
    tiny = {"depths": (1,) * tiny_stages, "widths": (8,) * (tiny_stages + 1), "head_width": 16}
    return Net(efficientnet_v2, {"expand_ratios": ratios, "strides": strides, **options}, tiny)


_swin = partial(_make_net, swin_v2, {"depths": (1, 1, 2, 1), "width": 8, "heads": (1, 1, 2, 2)})
_convnext = partial(_make_net, convnext, {"depths": (1, 1, 2, 1), "widths": (8, 8, 16, 16)})

#: The networks by torchvision's names. A test holds each to torchvision's own.
NETS: dict[str, Net] = {
    "efficientnet_v2_s": _efficientnet(
        tiny_stages=6, depths=(2, 4, 4, 6, 9, 15), widths=(24, 24, 48, 64, 128, 160, 256), dropout=0.2
    ),
    "efficientnet_v2_m": _efficientnet(
        depths=(3, 5, 5, 7, 14, 18, 5), widths=(24, 24, 48, 80, 160, 176, 304, 512), dropout=0.3
    ),
    "efficientnet_v2_l": _efficientnet(
        depths=(4, 7, 7, 10, 19, 25, 7), widths=(32, 32, 64, 96, 192, 224, 384, 640), dropout=0.4
    ),
    "swin_v2_t": _swin(depths=(2, 2, 6, 2), width=96, heads=(3, 6, 12, 24), stochastic_depth=0.2),
    "swin_v2_s": _swin(depths=(2, 2, 18, 2), width=96, heads=(3, 6, 12, 24), stochastic_depth=0.3),
    "swin_v2_b": _swin(depths=(2, 2, 18, 2), width=128, heads=(4, 8, 16, 32), stochastic_depth=0.5),
    "convnext_tiny": _convnext(depths=(3, 3, 9, 3), widths=(96, 192, 384, 768), stochastic_depth=0.1),
    "convnext_small": _convnext(depths=(3, 3, 27, 3), widths=(96, 192, 384, 768), stochastic_depth=0.4),
    "convnext_base": _convnext(depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024), stochastic_depth=0.5),
}


def change_options(name: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the options of the network `name`, changed by `changes`.

    Raises:
        ValueError: the name or an option is not known; the message names the nearest.
    """
    if name not in NETS:
        raise ValueError(f"architecture: {name!r} is not known{nearest(name, NETS)}")
    check_options(name, changes or {}, NETS[name].family, ("num_classes",))
    return {**NETS[name].options, **(changes or {})}


def shrink_options(name: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns `changes` and the options that make the network `name` tiny, for the same number of stages.

    A network of more stages than the tiny one stays as it is.
    """
    options, tiny = change_options(name, changes), NETS[name].tiny
    fitted = {
        key: value[: len(options[key])] if isinstance(value, tuple) else value for key, value in tiny.items()
    }
    fits = all(len(fitted[key]) == len(options[key]) for key in tiny if isinstance(tiny[key], tuple))
    return {**(changes or {}), **(fitted if fits else {})}


def build(name: str, num_classes: int, changes: Mapping[str, Any] | None = None) -> nn.Module:
    """Builds the network `name`, freshly initialised as torchvision does.

    Args:
        name: of :data:`NETS`.
        num_classes: number of outputs.
        changes: options that differ from the network's own; see the family's function.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        ValueError: see :func:`change_options`.
    """
    options = change_options(name, changes)
    try:
        return NETS[name].family(num_classes, **options)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} is torchvision's: pip install 'adamnx-hf[recipes]' ({error})", name=error.name
        ) from error
