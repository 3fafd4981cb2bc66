"""The fields of a recipe for object detection, and the network that they describe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from adamnx_hf.common.errors import nearest
from adamnx_hf.models.options import check_options
from adamnx_hf.models.yolov7_tiny.configuration import Yolov7TinyConfig
from adamnx_hf.tasks.base import make_field
from adamnx_hf.tasks.columns import check_class_names
from adamnx_hf.tasks.data import ImageArguments
from adamnx_hf.tasks.pretrained import label_maps

__all__ = ["Arguments", "configure", "smoke"]


@dataclasses.dataclass
class Arguments(ImageArguments):
    """The fields of a recipe for object detection."""

    objects_column: str = make_field(
        "objects", "Column of each image's objects: their boxes, classes and so on.", data=True, neutral=True
    )
    box_field: str = make_field(
        "bbox", "Field of the objects that holds their boxes.", data=True, neutral=True
    )
    box_format: Literal["xywh", "xyxy", "cxcywh", "voc"] = make_field(
        "xywh",
        "Meaning of a box's four numbers: left, top, width, height; or two corners; or centre x, centre y, "
        "width, height, as YOLO has them; or corners as VOC writes them, whose pixels count from 1 and "
        "belong to the box.",
        data=True,
        neutral=True,
    )
    box_unit: Literal["pixels", "shares"] = make_field(
        "pixels",
        "Unit of these numbers: pixels, or shares of the image's width and height, from 0 to 1.",
        data=True,
        neutral=True,
    )
    category_field: str = make_field(
        "category",
        "Field of the objects that holds their classes: ids, or names, which are numbered alphabetically.",
        data=True,
        neutral=True,
    )
    class_names: list[str] | None = make_field(
        None, "Names of the ids 0, 1, ... Default: the data set's own.", data=True
    )
    difficult_field: str = make_field(
        "difficult",
        "Field of the objects that marks those that need not be found; may be missing.",
        data=True,
        neutral=True,
    )
    train_on_difficult: bool = make_field(False, "Train on objects that need not be found, too.")
    architecture: str | None = make_field(None, "A network, from scratch: yolov7_tiny.")
    architecture_options: dict | str | None = make_field(
        None, "What to change of the network: fields of Yolov7TinyConfig, as JSON on the command line."
    )
    model_name_or_path: str | None = make_field(
        None, "Instead of architecture: a YOLOv7-tiny of the Hub, or a saved one, to fine-tune."
    )
    image_size: int = make_field(
        640, "Pixels along a side of the square that images are put into, a multiple of 32."
    )
    scale_range: list[float] = make_field(
        [0.5, 1.5], "A training image is scaled by a factor between these, then padded or cut at random."
    )
    jitter_probability: float = make_field(0.5, "Probability of the HSV jitter of a training image.")
    keep_decoded: bool = make_field(
        False, "Decode and letterbox every image once and keep them all in memory."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 32 or self.image_size % 32:
            raise ValueError(f"image_size: {self.image_size} is not a multiple of 32 pixels")
        if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale_range: needs two factors above 0, the smaller first: {self.scale_range}")
        if self.box_unit == "shares" and self.box_format == "voc":
            raise ValueError(
                "box_unit: VOC's corners count pixels and are no shares; pass --box_format xyxy for corners, "
                "xywh or cxcywh"
            )
        check_class_names(self.class_names or [])
        if self.architecture:
            configure(self, ["a class"])


def smoke(arguments: Arguments) -> dict[str, Any]:
    """Returns what `--smoke` sets: a tiny network and a few small images."""
    tiny: dict[str, Any] = {"max_train_samples": 64, "max_eval_samples": 32, "image_size": 64}
    if arguments.architecture:
        options: Any = arguments.architecture_options or {}
        tiny["architecture_options"] = {**options, "width": 0.125}
    return tiny


def configure(arguments: Arguments, classes: Sequence[str]) -> Any:
    """Makes the configuration of the network.

    Raises:
        ValueError: the architecture, an option or the value of an option does not fit.
    """
    name, known = str(arguments.architecture), Yolov7TinyConfig.model_type
    if name != known:
        raise ValueError(f"architecture: {name!r} is not known{nearest(name, [known])}")
    options: Any = arguments.architecture_options or {}
    check_options(name, options, Yolov7TinyConfig.__init__, ("image_size", "num_channels"))
    try:
        return Yolov7TinyConfig(image_size=arguments.image_size, **options, **label_maps(classes))
    except (TypeError, ValueError) as error:
        raise ValueError(f"architecture_options: {error}") from error
