"""The authors' augmentation, as torchvision v2 transforms of one image or of a batch on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

__all__ = [
    "Chain",
    "FlipEach",
    "HSVJitter",
    "hsv_to_rgb",
    "make_eval_transform",
    "make_train_transform",
    "rgb_to_hsv",
]


def rgb_to_hsv(image: Tensor) -> Tensor:
    """Converts RGB in [0, 1], (..., 3, height, width), to hue, saturation and value, as colorsys does."""
    red, green, blue = image.unbind(-3)
    value, low = image.amax(-3), image.amin(-3)
    spread = value - low
    safe = torch.where(spread == 0, 1.0, spread)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    saturation = spread / torch.where(value == 0, 1.0, value)
    return torch.stack([(hue / 6).remainder(1.0), saturation, value], -3)


def hsv_to_rgb(image: Tensor) -> Tensor:
    """Inverts :func:`rgb_to_hsv`."""
    hue, saturation, value = image.unsqueeze(-4).unbind(-3)
    shift = torch.tensor([5.0, 3.0, 1.0], dtype=image.dtype, device=image.device)[:, None, None]
    place = (shift + 6 * hue).remainder(6.0)
    return value - value * saturation * torch.minimum(place, 4 - place).clamp(0, 1)


class _PerImage(v2.Transform):
    """Changes each image of a batch in its own way, where torchvision's transforms draw once for all.

    `draws` numbers are drawn for an image. A caller may draw them and give them to :meth:`compute_params`.
    """

    draws = 1

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws numbers for :meth:`compute_params` from the global generator of the image's device."""
        image = flat_inputs[0]
        return self.compute_params(
            torch.rand(*image.shape[:-3], self.draws, dtype=image.dtype, device=image.device)
        )

    def compute_params(self, uniform: Tensor) -> dict[str, Tensor]:
        """Computes how to change images, (..., 1, 1, 1) each, from uniform numbers in [0, 1), (..., draws).

        `chosen` says which images to change.
        """
        return {"chosen": _split_numbers(uniform)[0] < self.p}


def _split_numbers(uniform: Tensor) -> list[Tensor]:
    """Splits (..., draws) into tensors of (..., 1, 1, 1)."""
    return list(uniform[..., None, None, None].unbind(-4))


class HSVJitter(_PerImage):
    """Shifts the hue and scales saturation and value, as the authors' code does.

    Takes floating-point RGB in [0, 1], (..., 3, height, width).

    Args:
        p: probability for each image.
        hue: the shift is uniform in ±hue, in turns of the colour circle.
        saturation: multiplied or divided, with equal chance, by a factor uniform in [1, saturation].
        value: like saturation.
    """

    draws = 6

    def __init__(self, p: float = 0.5, hue: float = 0.1, saturation: float = 1.5, value: float = 1.5) -> None:
        super().__init__(p)
        self.hue, self.saturation, self.value = hue, saturation, value

    def compute_params(self, uniform: Tensor) -> dict[str, Tensor]:
        """Computes `chosen` and `hue`, `saturation`, `value` of each image."""
        chosen, hue, *factors = _split_numbers(uniform)

        def make_factor(most: float, size: Tensor, direction: Tensor) -> Tensor:
            size = 1 + (most - 1) * size
            return torch.where(direction < 0.5, size, 1 / size)

        return {
            "chosen": chosen < self.p,
            "hue": (2 * hue - 1) * self.hue,
            "saturation": make_factor(self.saturation, *factors[:2]),
            "value": make_factor(self.value, *factors[2:]),
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Jitters the chosen images."""
        hue, saturation, value = rgb_to_hsv(inpt).split(1, -3)
        jittered = torch.cat(
            [
                (hue + params["hue"]).remainder(1.0),
                (saturation * params["saturation"]).clamp(0, 1),
                (value * params["value"]).clamp(0, 1),
            ],
            -3,
        )
        return torch.where(params["chosen"], hsv_to_rgb(jittered), inpt)


class FlipEach(_PerImage):
    """Mirrors each image from left to right with probability `p`."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Mirrors the chosen images."""
        return torch.where(params["chosen"], inpt.flip(-1), inpt)


class Chain(v2.Compose):
    """Transforms one after the other. A caller may give their random numbers, `draws` for an image."""

    def __init__(self, transforms: Sequence[Any]) -> None:
        super().__init__(transforms)
        self.draws = sum(one.draws for one in transforms if isinstance(one, _PerImage))

    def forward(self, image: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Changes images, (..., 3, height, width), by numbers in [0, 1), (..., draws).

        Without numbers, each transform draws its own.
        """
        for transform in self.transforms:
            if uniform is not None and isinstance(transform, _PerImage):
                own, uniform = uniform[..., : transform.draws], uniform[..., transform.draws :]
                image = transform.transform(image, transform.compute_params(own))
            else:
                image = transform(image)
        return image


def make_train_transform(
    *, mean: Sequence[float], std: Sequence[float], jitter: float = 0.5, flip: float = 0.5
) -> Chain:
    """Makes a transform from uint8 RGB to the model's input, augmented as by the authors.

    Args:
        mean, std: mean and standard deviation that normalise values in [0, 1].
        jitter: probability of :class:`HSVJitter`.
        flip: probability of :class:`FlipEach`.
    """
    changes = [HSVJitter(jitter)] if jitter else []  # it changes all images, then keeps some of them
    return Chain([v2.ToDtype(torch.float32, scale=True), *changes, FlipEach(flip), v2.Normalize(mean, std)])


def make_eval_transform(*, mean: Sequence[float], std: Sequence[float]) -> v2.Compose:
    """Makes a transform from uint8 RGB to the model's input."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
