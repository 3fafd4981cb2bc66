"""The fields of a recipe for semantic segmentation, and the network that they describe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING, AutoConfig

from adamnx_hf.common.errors import nearest
from adamnx_hf.models.options import check_options
from adamnx_hf.tasks.base import make_field
from adamnx_hf.tasks.columns import check_class_names
from adamnx_hf.tasks.data import ImageArguments
from adamnx_hf.tasks.semantic_segmentation import masks

__all__ = ["Arguments", "configure", "smoke"]


@dataclasses.dataclass
class Arguments(ImageArguments):
    """The fields of a recipe for semantic segmentation."""

    mask_column: str = make_field(
        "mask",
        "Column of the masks: images of one channel that holds class ids, or see mask_values.",
        data=True,
        neutral=True,
    )
    class_names: list[str] | None = make_field(
        None,
        "Names of the classes 0, 1, ... Default: numbers, as many as mask_values has, or up to the highest "
        "id in the training split.",
        data=True,
    )
    mask_values: list[int] | None = make_field(
        None,
        "Values in the masks that stand for the classes 0, 1, ..., in that order: 0 255 for masks of 0 and "
        "255. Default: the ids themselves.",
        data=True,
    )
    ignore_index: int = make_field(
        255,
        "Value in the masks of pixels that count neither in training nor in evaluation. A value that "
        "mask_values has stands for its class.",
        data=True,
    )
    architecture: str | None = make_field(
        None, "A network, from scratch: `unet`, or the model_type of one that Transformers has."
    )
    class_balance: float = make_field(
        0.0,
        "From 0, all pixels count alike in a U-Net's cross-entropy, to 1, all classes do: the weight of a "
        "pixel is its class's share of the training pixels to the power of minus this.",
    )
    image_size: int = make_field(
        384, "The shorter side of resized images, in pixels. Evaluation judges them at their own size."
    )
    scale_range: list[float] = make_field(
        [0.5, 2.0], "In training, image_size is multiplied by a number that is drawn from this range."
    )
    crop_size: int = make_field(320, "Side of the random square that training cuts out, in pixels.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "crop_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not a size in pixels")
        if not 0 <= self.class_balance <= 1:
            raise ValueError(f"class_balance: {self.class_balance} is not a number from 0 to 1")
        if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(
                f"scale_range: needs two numbers above 0, the lower first, got {self.scale_range}"
            )
        names = self.class_names or []
        check_class_names(names)
        if len(names) == 1:
            raise ValueError(
                f"class_names: {names[0]!r} is the only one, and one class cannot be told from another; name "
                "what is around it, too"
            )
        _check_mask_values(self.mask_values, names)
        if self.mask_values is None and 0 <= self.ignore_index < len(names):
            raise ValueError(
                f"ignore_index: {self.ignore_index} is the id of {names[self.ignore_index]!r} in class_names"
            )
        if self.architecture:
            configure(self.architecture, self.architecture_options)  # type: ignore[arg-type]

    @property
    def pair_format(self) -> masks.PairFormat:
        """The columns of images and masks, and the values in masks."""
        return masks.PairFormat(self.image_column, self.mask_column, self.mask_values)

    @property
    def void_id(self) -> int:
        """The id of pixels that do not count, as the model sees it."""
        return masks.find_void_id(self.ignore_index, self.mask_values)


def _check_mask_values(values: list[int] | None, names: Sequence[str]) -> None:
    """Checks that each class has a value of its own, which a mask can hold.

    Raises:
        ValueError: a value is given twice or no mask can hold it, or there are too few or too many.
    """
    if values is None:
        return
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31:
            raise ValueError(f"mask_values: {value!r} is not a whole number of 32 bits, as masks hold them")
        if values.count(value) > 1:
            raise ValueError(f"mask_values: {value} is given twice; each class has a value of its own")
    if len(values) < 2:
        raise ValueError(f"mask_values: {values} is not two classes or more; give each class its value")
    if names and len(values) != len(names):
        raise ValueError(
            f"mask_values: {len(values)} of them for {len(names)} class_names; give each class its value"
        )


def smoke(arguments: Arguments) -> dict[str, Any]:
    """Returns what `--smoke` sets: a tiny network and a few small images."""
    tiny: dict[str, Any] = {
        "max_train_samples": 64,
        "max_eval_samples": 32,
        "image_size": 48,
        "crop_size": 48,
    }
    if arguments.architecture:
        changes: Any = arguments.architecture_options or {}
        kind = type(configure(arguments.architecture, changes))
        tiny["architecture_options"] = {**changes, **getattr(kind, "tiny", {})}
    return tiny


def configure(architecture: str, options: Mapping[str, Any] | None, **more: Any) -> Any:
    """Makes the configuration of a network by its model_type.

    Raises:
        ValueError: the name, an option or a value does not fit.
    """
    known = {config.model_type: config for config in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING}
    if architecture not in known:
        raise ValueError(
            f"architecture: {architecture!r} is not known{nearest(architecture, known, most=20)}"
        )
    check_options(architecture, options or {}, known[architecture].__init__)
    try:
        return AutoConfig.for_model(architecture, **(options or {}), **more)
    except Exception as error:
        raise ValueError(f"architecture_options: {' '.join(str(error).split())}") from error
