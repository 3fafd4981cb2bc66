"""Object detection: images with boxes to a trained YOLOv7-tiny, judged by VOC's mean average precision."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adamnx_hf import metrics
from adamnx_hf.common import images
from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.common.files import save_figure
from adamnx_hf.common.splits import place
from adamnx_hf.tasks.base import Metric
from adamnx_hf.tasks.data import (
    IMAGES_DISPLACE,
    ImageArguments,
    check_class_names,
    check_columns,
    check_same_classes,
    choose_image_column,
    doc,
    load_splits,
)
from adamnx_hf.tasks.pretrained import check_pretrained
from adamnx_hf.tasks.randomness import RowRandom
from adamnx_hf.tasks.trainer import RecipeTrainer

if TYPE_CHECKING:
    from adamnx_hf.tasks.base import Recipe

__all__ = [
    "DISPLACES",
    "METRICS",
    "UNIT",
    "Arguments",
    "Augmentation",
    "DetectionDataset",
    "DetectionTrainer",
    "draw_predictions",
    "fast",
    "find_fields",
    "make_trainer",
    "smoke",
]

#: Reported best and last, in percent.
METRICS = {
    "map_50": Metric("max", "map", "mAP at IoU 0.5"),
    "map_75": Metric("max", "map", "mAP at IoU 0.75"),
}

UNIT = "images"

DISPLACES = IMAGES_DISPLACE

#: Boxes less likely than this are not judged: so few are right that they cost time alone.
LEAST_SCORE = 0.001

#: A box may reach so many pixels out of its image, as rounding has it; it is cut off there.
ROUNDING = 1.0

#: Shares of an image may leave the range from 0 to 1 by so much, as rounding has it.
SHARE_ROUNDING = 0.01

#: A box is learned if the training image has it so many pixels wide and high, and such a share of its side.
LEAST_PIXELS, LEAST_SHARE = 2.0, 0.01

#: Ids that have no names are counted from 0 to the highest, if it is not above this.
HIGHEST_ID = 100_000

#: What public data sets call the fields of objects, by the recipe's field that names them.
USUAL = {
    "box_field": ("bbox", "boxes", "box", "bboxes"),
    "category_field": (
        "category",
        "category_id",
        "categories",
        "category_ids",
        "class",
        "classes",
        "label",
        "labels",
    ),
}


@dataclasses.dataclass
class Arguments(ImageArguments):
    """The fields of a recipe for object detection."""

    objects_column: str = dataclasses.field(
        default="objects",
        metadata=doc(
            "Column of each image's objects: their boxes, classes and so on.", data=True, neutral=True
        ),
    )
    box_field: str = dataclasses.field(
        default="bbox", metadata=doc("Where among them the boxes are.", data=True, neutral=True)
    )
    box_format: Literal["xywh", "xyxy", "cxcywh", "voc"] = dataclasses.field(
        default="xywh",
        metadata=doc(
            "What the four numbers mean: left, top, width, height; or two corners; or centre x, centre y, "
            "width, height, as YOLO has them; or corners as VOC writes them, whose pixels count from 1 and "
            "belong to the box.",
            data=True,
            neutral=True,
        ),
    )
    box_unit: Literal["pixels", "shares"] = dataclasses.field(
        default="pixels",
        metadata=doc(
            "What they count: pixels, or shares of the image's width and height, from 0 to 1.",
            data=True,
            neutral=True,
        ),
    )
    category_field: str = dataclasses.field(
        default="category",
        metadata=doc(
            "Where among them the classes are: ids, or names, whose ids are in the order of the alphabet.",
            data=True,
            neutral=True,
        ),
    )
    class_names: list[str] | None = dataclasses.field(
        default=None, metadata=doc("Names of the ids 0, 1, ... Default: the data set's own.", data=True)
    )
    difficult_field: str = dataclasses.field(
        default="difficult",
        metadata=doc(
            "Where among them it is marked that one need not be found; may be missing.",
            data=True,
            neutral=True,
        ),
    )
    train_on_difficult: bool = dataclasses.field(
        default=False, metadata=doc("Train on objects that need not be found, too.")
    )
    architecture: str | None = dataclasses.field(
        default=None, metadata=doc("A network, from scratch: yolov7_tiny.")
    )
    architecture_options: dict | str | None = dataclasses.field(
        default=None,
        metadata=doc("What to change of it: fields of Yolov7TinyConfig, as JSON on the command line."),
    )
    model_name_or_path: str | None = dataclasses.field(
        default=None,
        metadata=doc("Instead of architecture: a YOLOv7-tiny of the Hub, or a saved one, to fine-tune."),
    )
    image_size: int = dataclasses.field(
        default=640,
        metadata=doc("Pixels along a side of the square that images are put into, a multiple of 32."),
    )
    scale_range: list[float] = dataclasses.field(
        default_factory=lambda: [0.5, 1.5],
        metadata=doc("A training image is scaled by a factor between these, then padded or cut at random."),
    )
    jitter_probability: float = dataclasses.field(
        default=0.5, metadata=doc("Probability of the HSV jitter of a training image.")
    )
    keep_decoded: bool = dataclasses.field(
        default=False,
        metadata=doc("Decode and letterbox every image once and keep them all in memory."),
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
            _config(self, ["a class"])


def fast() -> dict[str, Any]:
    """What `--fast` sets."""
    return {
        "bf16": True,
        "use_cpu": not torch.accelerator.is_available(),  # bf16 without a GPU has to be asked for
        "channels_last": True,
        "torch_compile": True,  # of the network; the loss, whose shapes vary, stays as it is
    }


def smoke(arguments: Arguments) -> dict[str, Any]:
    """What `--smoke` sets: a tiny network and a few small images."""
    tiny: dict[str, Any] = {"max_train_samples": 64, "max_eval_samples": 32, "image_size": 64}
    if arguments.architecture:
        options: Any = arguments.architecture_options or {}
        tiny["architecture_options"] = {**options, "width": 0.125}
    return tiny


def _third(parts: Sequence[Any]) -> Any:
    return parts[2]


class Augmentation:
    """Scales, pads or cuts, jitters and mirrors a letterboxed image, its boxes with it.

    Args:
        size: pixels along a side of the image.
        scale_range: of the scale; the image is then put at a random place of the square, or cut at one.
        jitter: probability of HSV jitter.
        flip: probability of mirroring.
    """

    def __init__(self, size: int, scale_range: Sequence[float], jitter: float, flip: float) -> None:
        from torchvision.transforms import v2

        from adamnx_hf.models.yolov7_tiny.image_processor import GREY
        from adamnx_hf.tasks.transforms import HSVJitter

        self.jitter = HSVJitter(jitter)
        self.min_size = max(LEAST_PIXELS, LEAST_SHARE * size)
        self.geometry = v2.Compose(
            [
                v2.ScaleJitter((size, size), tuple(scale_range), antialias=True),
                v2.RandomCrop(size, pad_if_needed=True, fill=GREY),
                v2.RandomHorizontalFlip(flip),
                v2.ClampBoundingBoxes(),
                # What is left of an object at a cut edge is often too little to tell what it is; nor can what
                # is as small by itself be told.
                v2.SanitizeBoundingBoxes(min_size=self.min_size, labels_getter=_third),
            ]
        )

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(3, size, size) uint8, (n, 4) xyxy in pixels and (n,); the image comes back as floats in [0, 1]."""
        from torchvision import tv_tensors

        size = (image.shape[-2], image.shape[-1])
        parts = (
            tv_tensors.Image(image),
            tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            labels,
        )
        image, boxes, labels = self.geometry(*parts)
        return self.jitter(image.as_subclass(Tensor).float() / 255), boxes.as_subclass(Tensor), labels


class DetectionDataset(torch.utils.data.Dataset):
    """A split of a `datasets` data set as letterboxed images with their objects.

    Args:
        data: the split.
        arguments: name its columns and fields.
        split: its name, for messages.
        classes: their names, in the order of their ids.
        augment: changes image and boxes. None: they stay as they are.
        with_difficult: whether objects that need not be found are among those to learn.
        quiet: no progress bars.
        random: what `augment` draws, by row. None: what torch's global generator gives.

    Raises:
        RecipeError: a row whose objects do not fit their image or the classes; or an image that cannot be
            read, when it is.

    Examples are `{"pixel_values": (3, size, size) float, "labels": {...}}`. Labels have, as DETR's,
    `class_labels` (n,), `boxes` (n, 4) centre x, centre y, width and height as shares of the square's side,
    and `orig_size` (2,), the image's own height and width; and of all objects, in pixels of the image itself,
    `objects` (m, 6): class id, difficult or not, and two corners.
    """

    def __init__(
        self,
        data: Any,
        arguments: Arguments,
        split: str,
        classes: Sequence[str],
        augment: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None,
        with_difficult: bool = False,
        quiet: bool = False,
        random: RowRandom | None = None,
    ) -> None:
        self.random = random
        self.images = data.select_columns([arguments.image_column])
        self.image_column, self.split, self.size = arguments.image_column, split, arguments.image_size
        self.mean, self.std = arguments.image_mean, arguments.image_std
        self.augment, self.with_difficult = augment, with_difficult
        self.objects, self.sizes = _objects(data, arguments, split, classes, quiet)
        self.decoded: Tensor | None = None
        if arguments.keep_decoded:
            self.decoded = torch.empty(len(data), 3, self.size, self.size, dtype=torch.uint8)
            for i in tqdm(range(len(data)), desc="decoding", unit=" images", leave=False, disable=quiet):
                self.decoded[i] = self._decode(i)

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from torchvision.ops import box_convert
        from torchvision.transforms.v2 import functional

        labels, boxes = self.learned(index)
        image = self._decode(index) if self.decoded is None else self.decoded[index]
        if self.augment is not None:
            with nullcontext() if self.random is None else self.random.seed_row(index):
                image, boxes, labels = self.augment(image, boxes * self.size, labels)
            boxes = boxes / self.size
        else:
            image = image.float() / 255
        return {
            "pixel_values": functional.normalize(image, self.mean, self.std),
            "labels": {
                "class_labels": labels,
                "boxes": box_convert(boxes, "xyxy", "cxcywh"),
                "orig_size": torch.tensor(self.sizes[index]),
                "objects": self.objects[index],
            },
        }

    def learned(self, index: int) -> tuple[Tensor, Tensor]:
        """A row's objects that are to learn, before augmentation.

        Returns:
            Class ids, (n,) int64, and corners, (n, 4) float32, as shares of the letterbox's side.
        """
        from adamnx_hf.models.yolov7_tiny.image_processor import letterbox_boxes

        objects, (height, width) = self.objects[index], self.sizes[index]
        if not self.with_difficult:
            objects = objects[objects[:, 1] == 0]
        return objects[:, 0].long(), letterbox_boxes(objects[:, 2:], height, width, self.size)

    def picture(self, index: int) -> Any:
        """The image itself, PIL's."""
        return images.picture(self.images, self.image_column, index, self.split)

    def _decode(self, index: int) -> Tensor:
        from torchvision.transforms.v2 import functional

        from adamnx_hf.models.yolov7_tiny.image_processor import letterbox

        return letterbox(functional.pil_to_tensor(self.picture(index)), self.size)


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Images as one tensor, labels as a list."""
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": [example["labels"] for example in examples],
    }


class DetectionTrainer(RecipeTrainer):
    """A RecipeTrainer whose evaluation hands on boxes, not what the network gives for every anchor.

    Predictions are (images, most, 6): class id, likelihood, two corners in pixels of the image itself. Labels
    are :class:`DetectionDataset`'s `objects`. Both are filled up with rows of -100.
    """

    smooths_labels = False

    def sampled_loss(self, inputs: dict[str, Any]) -> tuple[Tensor, int]:
        """See :func:`adamnx_hf.models.yolov7_tiny.loss.sampled_loss`, whose terms are weighted."""
        from adamnx_hf.models.yolov7_tiny.loss import STRIDES, Priors, sampled_loss

        pixels = inputs["pixel_values"]
        height, width = pixels.shape[-2:]
        model: Any = self.model
        with self.compute_loss_context_manager():
            outputs = self.model_wrapped(pixel_values=pixels)
        priors = Priors.of([(height // s, width // s) for s in STRIDES], model.config.anchors)
        weights = model.loss_weights(height, width)
        return sampled_loss(outputs.objectness_logits, outputs.logits, priors, weights), 1

    @torch.no_grad()
    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss, the boxes found, and the objects."""
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            outputs = model(**inputs)
        loss = outputs.loss.mean().detach()
        if prediction_loss_only:
            return loss, None, None
        processor: Any = self.processing_class
        labels = inputs["labels"]
        found = processor.post_process_object_detection(
            outputs, threshold=LEAST_SCORE, target_sizes=[label["orig_size"].tolist() for label in labels]
        )
        rows = [torch.cat([f["labels"][:, None], f["scores"][:, None], f["boxes"]], 1) for f in found]
        return loss, _filled(rows), _filled([label["objects"] for label in labels])


def _filled(rows: Sequence[Tensor]) -> Tensor:
    """(n, 6) of each image as (images, at least 1, 6)."""
    none = rows[0].new_full((1, rows[0].shape[1]), -100)
    padded = torch.nn.utils.rnn.pad_sequence([none, *rows], batch_first=True, padding_value=-100)
    return padded[1:].contiguous()


@functools.cache
def _metric() -> Any:
    return metrics.load("voc_map")


def compute_metrics(prediction: Any) -> dict[str, float]:
    """VOC's mean average precision of what :class:`DetectionTrainer` hands on."""
    found, true = (
        [rows[rows[:, 0] >= 0] for rows in images]
        for images in (prediction.predictions, prediction.label_ids)
    )
    scores: dict[str, float] = _metric().compute(
        predictions=[
            {"boxes": rows[:, 2:], "scores": rows[:, 1], "labels": rows[:, 0].astype(np.int64)}
            for rows in found
        ],
        references=[
            {"boxes": rows[:, 2:], "labels": rows[:, 0].astype(np.int64), "difficult": rows[:, 1] > 0}
            for rows in true
        ],
        iou_thresholds=[int(name.removeprefix("map_")) / 100 for name in METRICS],
    )
    return scores


def make_trainer(recipe: Recipe) -> DetectionTrainer:
    """The model, the data and the metrics of `recipe` in a Trainer."""
    arguments: Arguments = recipe.task_arguments
    if (gpus := recipe.training_arguments.n_gpu) > 1:
        raise RecipeError(
            f"one process has {gpus} GPUs, and the objects of a batch cannot be shared out among them: start "
            f"one process for each, by accelerate launch --num_processes {gpus} -m adamnx_hf.cli run ..., or "
            "show it one of them alone, by CUDA_VISIBLE_DEVICES=0"
        )
    notes: list[str] = []
    with recipe.training_arguments.main_process_first(desc="loading the data"):
        if recipe.synthetic_data:
            train, test = _synthetic(arguments)
        else:
            train, test = load_splits(arguments, spread=recipe.arguments.smoke, notes=notes)
    notes += find_fields(train, arguments, recipe.given)
    choose_image_column((train, test), arguments, recipe.given, notes)
    for data in (train, test):
        check_columns(data, {"objects_column": arguments.objects_column})
        _check_features(data, arguments)
    classes = _class_names(train, arguments)
    _check_same_classes(train, test, classes, arguments)
    augment = Augmentation(
        arguments.image_size, arguments.scale_range, arguments.jitter_probability, arguments.flip_probability
    )
    dataset: Any = functools.partial(DetectionDataset, classes=classes, quiet=recipe.training_arguments.quiet)
    learned = dataset(
        train,
        arguments,
        arguments.trained_split,
        augment=augment,
        with_difficult=arguments.train_on_difficult,
        random=RowRandom(len(train), recipe.training_arguments.seed),
    )
    notes += _check_learned(learned, augment, classes, arguments)
    judged = dataset(test, arguments, arguments.judged_split)
    if all((objects[:, 1] > 0).all() for objects in judged.objects):
        raise RecipeError("eval_split: there is no object in it that has to be found")
    trainer = DetectionTrainer(
        model=_model(arguments, classes, recipe),
        args=recipe.training_arguments,
        train_dataset=learned,
        eval_dataset=judged,
        data_collator=collate,
        compute_metrics=compute_metrics,
        processing_class=_processor(arguments),
    )
    pairs = zip(classes, _own_names(train, arguments), strict=False)
    if renamed := [f"{name!r} for {own!r}" for name, own in pairs if name != own]:
        notes.append(
            f"class_names: {len(renamed)} classes have other names than in the data set, such as {renamed[0]}"
        )
    if arguments.difficult_field not in _fields(test, arguments.objects_column):
        notes.append(
            f"objects have no field {arguments.difficult_field!r}: every one of them has to be found"
        )
    trainer.notes += notes
    return trainer


def _check_learned(
    data: DetectionDataset, augment: Augmentation, classes: Sequence[str], arguments: Arguments
) -> list[str]:
    """Checks that there are boxes to learn.

    Returns:
        What is to be said of boxes that are too small to be learned, and of classes without a box.

    Raises:
        RecipeError: there is no box, or all are too small.
    """
    split = f"the split {data.split!r}"
    rows = [data.learned(i) for i in range(len(data)) if len(data.objects[i])]
    learned = sum(len(labels) for labels, _ in rows)
    if not learned:
        why = "all of them are marked difficult; pass --train_on_difficult" if rows else "no row has one"
        raise RecipeError(f"train_split: there is no object to learn in {split}: {why}")
    labels, boxes = (torch.cat(parts) for parts in zip(*rows, strict=True))
    corners, largest = boxes * data.size, arguments.scale_range[1]
    scale = min(1.0, largest)
    sides = scale * (corners[:, 2:] - corners[:, :2]).amin(1)  # the shorter one of each box
    notes = []
    if small := int((sides < augment.min_size).sum()):
        tiny = int((sides < LEAST_SHARE * data.size).sum())
        so_small = (
            f"boxes of {split} too small to be learned, under {augment.min_size:g} pixels wide or high in "
            f"images of {data.size} x {data.size} at scale {scale:g}: {small} of {learned}"
        )
        if small > tiny:
            so_small += f"; a larger --image_size helps {small - tiny}"
        if tiny:
            share = f"{100 * LEAST_SHARE:g} % of the longer side"
            so_small += f"; under {share}, which only images cut in parts help: {tiny}"
        if (sides / scale * largest < augment.min_size).all():
            raise RecipeError(f"image_size: nothing can be learned: {so_small}")
        notes.append(so_small)
    if missing := sorted(set(range(len(classes))).difference(labels.tolist())):
        shown = ", ".join([*(classes[i] for i in missing[:5]), *(["..."] if len(missing) > 5 else [])])
        notes.append(f"{len(missing)} of {len(classes)} classes have no box to learn in {split}: {shown}")
    return notes


def _config(arguments: Arguments, classes: Sequence[str]) -> Any:
    """The configuration of the network, its options checked."""
    import inspect

    from adamnx_hf.models import Yolov7TinyConfig

    if arguments.architecture != Yolov7TinyConfig.model_type:
        near = nearest(str(arguments.architecture), [Yolov7TinyConfig.model_type])
        raise ValueError(f"architecture: {arguments.architecture!r} is not known{near}")
    options: Any = arguments.architecture_options or {}
    known = set(inspect.signature(Yolov7TinyConfig.__init__).parameters)
    valid = sorted(known - {"self", "kwargs", "image_size", "num_channels"})
    for key in options:
        if key not in valid:
            raise ValueError(f"architecture_options: yolov7_tiny has no {key!r}{nearest(key, valid)}")
    try:
        return Yolov7TinyConfig(image_size=arguments.image_size, **options, **_labels(classes))
    except (TypeError, ValueError) as error:
        raise ValueError(f"architecture_options: {error}") from error


def _labels(classes: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}


def _model(arguments: Arguments, classes: Sequence[str], recipe: Recipe) -> Any:
    from transformers import AutoConfig, set_seed

    from adamnx_hf.models import Yolov7TinyConfig, Yolov7TinyForObjectDetection

    set_seed(recipe.training_arguments.seed)  # the same weights for every optimizer
    name = arguments.model_name_or_path
    if name is None:
        return Yolov7TinyForObjectDetection(_config(arguments, classes))
    check_pretrained(name)
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if not isinstance(config, Yolov7TinyConfig):
        raise RecipeError(f"model_name_or_path: {name} is a {config.model_type}, not a yolov7_tiny")
    if config.image_size != arguments.image_size:
        raise RecipeError(
            f"model_name_or_path: {name} has anchors for {config.image_size} pixels; set --image_size to that"
        )
    return Yolov7TinyForObjectDetection.from_pretrained(
        name, ignore_mismatched_sizes=True, dtype=torch.float32, **_labels(classes)
    )


def _processor(arguments: Arguments) -> Any:
    """What prepares images for the saved model, in `pipeline` and elsewhere, as evaluation does here."""
    from adamnx_hf.models import Yolov7TinyImageProcessor

    return Yolov7TinyImageProcessor(
        arguments.image_size, image_mean=arguments.image_mean, image_std=arguments.image_std
    )


def _fields(data: Any, column: str) -> dict[str, Any]:
    """The features of one object, whether the column is a list of objects or a dictionary of lists."""
    feature = data.features[column]
    if hasattr(feature, "feature"):  # List of dictionaries
        return feature.feature if isinstance(feature.feature, dict) else {}
    if isinstance(feature, dict):
        return {name: getattr(inner, "feature", inner) for name, inner in feature.items()}
    return {}


def _kind(data: Any, arguments: Arguments) -> Any:
    """The feature of the classes."""
    return _fields(data, arguments.objects_column)[arguments.category_field]


def _own_names(data: Any, arguments: Arguments) -> list[str]:
    """The data set's own names of its class ids; none where it has none."""
    return list(getattr(_kind(data, arguments), "names", None) or [])


def _is_text(data: Any, arguments: Arguments) -> bool:
    """Returns whether classes stand there by name, as text without ids."""
    return getattr(_kind(data, arguments), "dtype", None) in ("string", "large_string")


def find_fields(data: Any, arguments: Arguments, given: Collection[str]) -> list[str]:
    """Replaces the recipe's names for a column and fields, those that the data lack, by usual ones.

    `objects_column` becomes the one column that holds objects with boxes, if there is one only. `box_field`
    and `category_field` become the one of :data:`USUAL` that the objects have, if they have one only.

    Args:
        data: the training split.
        arguments: the recipe's, which are changed.
        given: fields that flags have set, which stay as they are.

    Returns:
        A note for each name that was replaced.
    """
    notes = []

    def replace(name: str, there: Collection[str], candidates: Sequence[str]) -> None:
        wanted = getattr(arguments, name)
        if wanted not in there and name not in given and len(candidates) == 1:
            setattr(arguments, name, candidates[0])
            note = f"{name}: {candidates[0]!r} is used, as there is no {wanted!r}"
            if name == "box_field":
                note += f"; its boxes are read as {arguments.box_format} in {arguments.box_unit}"
            notes.append(note)

    columns = data.column_names
    replace("objects_column", columns, [name for name in columns if _holds_boxes(data, name, arguments)])
    if arguments.objects_column in columns:
        fields = _fields(data, arguments.objects_column)
        for name, usual in USUAL.items():
            replace(name, fields, [field for field in usual if field in fields])
    return notes


def _holds_boxes(data: Any, column: str, arguments: Arguments) -> bool:
    fields = _fields(data, column)
    return any(hasattr(fields.get(name), "feature") for name in (arguments.box_field, *USUAL["box_field"]))


def _check_features(data: Any, arguments: Arguments) -> None:
    fields = _fields(data, arguments.objects_column)
    if not fields:
        raise RecipeError(
            f"objects_column: {arguments.objects_column!r} does not hold objects with boxes and classes, "
            f"but {data.features[arguments.objects_column]}"
        )
    for name in ("box_field", "category_field"):
        if getattr(arguments, name) not in fields:
            raise RecipeError(
                f"{name}: the objects of {arguments.objects_column!r} have no {getattr(arguments, name)!r}"
                f"{nearest(getattr(arguments, name), fields)}"
            )
    kind = _kind(data, arguments)
    is_id = hasattr(kind, "names") or str(getattr(kind, "dtype", "")).startswith(("int", "uint"))
    if not is_id and not _is_text(data, arguments):
        raise RecipeError(
            f"category_field: {arguments.category_field!r} does not hold class ids or names but {kind}"
        )


def _class_names(data: Any, arguments: Arguments) -> list[str]:
    """The classes' names in the order of their ids: given, the data set's own, those found, or numbers."""
    names = _own_names(data, arguments)
    if arguments.class_names:
        for i, name in enumerate(arguments.class_names):
            if name in names and names.index(name) != i:
                raise RecipeError(
                    f"class_names: {name!r} is class {i} there, and {names.index(name)} in the data set; "
                    "list them in its order, or leave them out"
                )
        return arguments.class_names
    if names:
        return names
    found: set[Any] = set()
    for objects in data.select_columns([arguments.objects_column])[arguments.objects_column]:
        found.update(_columns(objects, arguments)[arguments.category_field])
    found.discard(None)
    if _is_text(data, arguments):
        return sorted(found)
    most = int(max(found, default=-1))
    if most > HIGHEST_ID:
        raise RecipeError(
            f"category_field: {arguments.category_field!r} goes up to {most}, and class ids are counted from "
            "0; count them anew, or is it another field: --category_field NAME?"
        )
    return [str(i) for i in range(most + 1)]


def _check_same_classes(train: Any, test: Any, classes: Sequence[str], arguments: Arguments) -> None:
    """Checks that an id is the same class in both splits, also where `class_names` has other names for them.

    One of them may have more names. A row with an id that the training split has no name for is refused when
    it is read.

    Raises:
        RecipeError: an id is another class in the evaluation split.
    """
    pairs = [(_own_names(train, arguments), _own_names(test, arguments))]
    if not _is_text(test, arguments):  # text has no ids of its own
        pairs.append((list(classes), _class_names(test, arguments)))
    for names, others in pairs:
        check_same_classes(names, others)


def _columns(objects: Any, arguments: Arguments) -> dict[str, list[Any]]:
    """One image's objects as lists by field, empty where it has none."""
    names = (arguments.box_field, arguments.category_field, arguments.difficult_field)
    if not isinstance(objects, dict):
        objects = {name: [one[name] for one in objects if one and name in one] for name in names if objects}
    return {name: objects.get(name) or [] for name in names}


def _objects(
    data: Any, arguments: Arguments, split: str, classes: Sequence[str], quiet: bool
) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Each row's objects, (n, 6), and each image's height and width; see :class:`DetectionDataset`.

    Reads the images' headers alone.

    Raises:
        RecipeError: an image that is not there or that RGB does not hold, objects that are no numbers, boxes
            in another unit, a box without area or reaching out of its image, or an unknown class; names the
            row.
    """
    from datasets import Image

    column = arguments.image_column
    headers = data.select_columns([column, arguments.objects_column]).cast_column(column, Image(decode=False))
    numbers, sizes = [], []
    for i, row in enumerate(
        tqdm(headers, desc=f"checking {split}", unit=" images", leave=False, disable=quiet)
    ):
        width, height = images.size(images.opened(row[column], column, i, split, as_rgb=True))
        numbers.append(_numbers(row[arguments.objects_column], arguments, classes, _where(split, i)))
        sizes.append((height, width))
    if arguments.box_unit == "pixels":
        _check_pixels([boxes for boxes, _, _ in numbers], sizes, split)
    objects = []
    for i, ((boxes, labels, difficult), (height, width)) in enumerate(zip(numbers, sizes, strict=True)):
        corners = _corners(boxes, arguments, width, height, _where(split, i))
        rows = np.concatenate([labels[:, None], difficult[:, None], corners], 1)
        objects.append(torch.as_tensor(rows, dtype=torch.float32))
    return objects, sizes


def _check_pixels(boxes: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], split: str) -> None:
    """Checks that boxes in pixels are no shares of their images, as all of them together show.

    Args:
        boxes: (n, 4) of each image, as they are in the data.
        sizes: each image's height and width. A single pixel says nothing: its boxes are from 0 to 1.
        split: their split.

    Raises:
        RecipeError: all numbers are from 0 to 1.
    """
    large = [own for own, size in zip(boxes, sizes, strict=True) if len(own) and max(size) > 1]
    if large and all((np.abs(own - 0.5) <= 0.5 + SHARE_ROUNDING).all() for own in large):
        raise RecipeError(
            f"box_unit: these look like shares of the image, not pixels: the {sum(map(len, large))} boxes of "
            f"the split {split!r} have numbers from 0 to 1 alone; pass --box_unit shares, and --box_format "
            "cxcywh if they are YOLO's"
        )


def _corners(boxes: np.ndarray, arguments: Arguments, width: int, height: int, where: str) -> np.ndarray:
    """An image's boxes (n, 4), as they are in the data, as corners in pixels within it.

    Raises:
        RecipeError: a box without area, reaching out of the image, or in pixels instead of shares.
    """
    from torchvision.ops import box_convert

    shares = arguments.box_unit == "shares"
    corners = boxes * np.array([width, height] * 2 if shares else [1] * 4)
    if arguments.box_format == "voc":
        corners[:, :2] -= 1
    else:
        corners = box_convert(torch.from_numpy(corners), arguments.box_format, "xyxy").numpy()
    inside = corners.clip(0, np.array([width, height] * 2))
    for box, corner, cut in zip(boxes, corners, inside, strict=True):
        shown = f"{arguments.box_format} box {[round(value, 4) for value in box.tolist()]}"
        if shares and np.abs(box).max() > 2:
            raise RecipeError(
                f"{where}: the {shown} has numbers far above 1, and is no share of its image; correct it, or "
                "are they pixels: --box_unit pixels?"
            )
        if not (corner[2:] > corner[:2]).all():
            raise RecipeError(f"{where}: the {shown} has no area; leave it out, or is --box_format another?")
        if np.abs(corner - cut).max() > ROUNDING or not (cut[2:] > cut[:2]).all():
            raise RecipeError(
                f"{where}: the {shown} reaches out of its image of {width} x {height} pixels; correct it, or "
                "is --box_format another?"
            )
    return inside


def _where(split: str, row: int) -> str:
    """How messages name a row's objects; see :func:`adamnx_hf.common.splits.place`."""
    name, number = place(split, row)
    return f"{name}, row {number}"


def _numbers(
    objects: Any, arguments: Arguments, classes: Sequence[str], where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row's boxes (n, 4), class ids (n,) and marks of difficult objects (n,); none of what it has none of.

    Raises:
        RecipeError: they are no numbers, do not match each other, or a class is not known.
    """
    fields = _columns(objects, arguments)
    kinds: dict[str, type] = {
        arguments.box_field: np.float64,
        arguments.category_field: np.int64,
        arguments.difficult_field: np.bool_,
    }
    if any(isinstance(label, str) for label in fields[arguments.category_field]):
        fields[arguments.category_field] = _ids(fields[arguments.category_field], classes, where)
    arrays: list[np.ndarray] = []
    for name, kind in kinds.items():
        try:
            arrays.append(np.asarray(fields[name], dtype=kind))
        except (TypeError, ValueError) as error:
            raise RecipeError(
                f"{where}: {name} of its objects: {str(fields[name])[:60]} ({error}); correct it, or leave "
                "the row out"
            ) from error
    boxes, labels, difficult = arrays
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if not len(difficult):
        difficult = np.zeros(len(labels), dtype=bool)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) == len(labels) == len(difficult):
        raise RecipeError(
            f"{where}: boxes of four numbers, class ids and marks of difficult ones do not match: "
            f"{boxes.shape}, {labels.shape}, {difficult.shape}"
        )
    for label in labels.tolist():
        if label < 0:
            raise RecipeError(
                f"{where}: {label} is not a class id; they are counted from 0; correct it, or leave the row "
                "out"
            )
        if label >= len(classes):
            raise RecipeError(
                f"{where}: {label} is not a class id; there are {len(classes)}, from 0 to "
                f"{len(classes) - 1}; correct it, leave the row out, or name every class: --class_names"
            )
    return boxes, labels, difficult


def _ids(labels: Sequence[str], classes: Sequence[str], where: str) -> list[int]:
    """The ids of classes that stand there by name.

    Raises:
        RecipeError: a name that is not among `classes`.
    """
    ids = {name: i for i, name in enumerate(classes)}
    for label in labels:
        if label not in ids:
            raise RecipeError(
                f"{where}: {label!r} is not a class{nearest(str(label), classes)}; correct it, leave the row "
                "out, or name every class: --class_names"
            )
    return [ids[label] for label in labels]


def draw_predictions(recipe: Recipe, trainer: RecipeTrainer, path: Path) -> None:
    """The first evaluation images with the objects they have, and with those the model finds.

    Args:
        recipe: as it was run.
        trainer: after training.
        path: of the PNG.
    """
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    data: Any = trainer.eval_dataset
    model: Any = trainer.model
    processor: Any = trainer.processing_class
    count = min(4, len(data))
    names = model.config.id2label
    batch = collate([data[i] for i in range(count)])
    was_training = model.training
    model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        outputs = model(pixel_values=batch["pixel_values"].to(model.device))
    model.train(was_training)
    found = processor.post_process_object_detection(outputs, threshold=0.3, target_sizes=data.sizes[:count])
    colours = plt.get_cmap("tab10" if len(names) <= 10 else "tab20")
    plt.switch_backend("agg")
    figure, axes = plt.subplots(
        2, count, figsize=(4 * count, 6.6), dpi=110, layout="constrained", squeeze=False
    )
    for i in range(count):
        picture = data.picture(i)
        rows = [
            [(int(o[0]), "?" if o[1] else "", o[2:].tolist()) for o in data.objects[i]],
            [
                (int(label), f" {score:.2f}", box.tolist())
                for label, score, box in zip(
                    *(found[i][k].cpu() for k in ("labels", "scores", "boxes")), strict=True
                )
            ],
        ]
        for axis, boxes in zip(axes[:, i], rows, strict=True):
            axis.imshow(picture)
            axis.set_xticks([])
            axis.set_yticks([])
            for label, note, (x0, y0, x1, y1) in boxes:
                colour = colours(label % colours.N)
                axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=1.6))
                axis.text(
                    max(x0, 0), y0, f"{names[label]}{note}", fontsize=6, color="white", clip_on=True,
                    va="bottom" if y0 > picture.height / 20 else "top",  # else above the picture
                    bbox={"facecolor": colour, "pad": 0.8, "lw": 0},
                )  # fmt: skip
    axes[0, 0].set_ylabel("in the data")
    axes[1, 0].set_ylabel("found (likelihood above 0.3)")
    title = f"{recipe.name}: the first images of the split {recipe.task_arguments.judged_split!r}"
    if any(objects[:, 1].any() for objects in data.objects[:count]):
        title += "; ? marks what need not be found"
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def _synthetic(arguments: Arguments, classes: int = 20) -> tuple[Any, Any]:
    """Coloured rectangles on noise in the recipe's columns, for smoke runs."""
    from datasets import ClassLabel, Dataset, Features, Image, List, Value

    names = arguments.class_names or [f"class {i}" for i in range(classes)]
    features = Features(
        {
            arguments.image_column: Image(),
            arguments.objects_column: {
                arguments.box_field: List(List(Value("float32"), length=4)),
                arguments.category_field: List(ClassLabel(names=names)),
                arguments.difficult_field: List(Value("bool")),
            },
        }
    )

    def split(count: int, seed: int) -> Dataset:
        random = np.random.default_rng(seed)
        side = arguments.image_size
        images, objects = [], []
        for _ in range(count):
            height, width = random.integers(side // 2, side + 1, 2)
            image = random.integers(0, 100, (height, width, 3), dtype=np.uint8)
            boxes, labels = [], []
            for label in random.integers(0, len(names), random.integers(1, 4)):
                w, h = (int(random.integers(s // 4, s // 2)) for s in (width, height))
                x, y = int(random.integers(0, width - w)), int(random.integers(0, height - h))
                image[y : y + h, x : x + w] = [
                    100 + 50 * (label % 3),
                    100 + 40 * (label // 3 % 3),
                    100 + label,
                ]
                box = {
                    "xywh": [x, y, w, h],
                    "xyxy": [x, y, x + w, y + h],
                    "cxcywh": [x + w / 2, y + h / 2, w, h],
                    "voc": [x + 1, y + 1, x + w, y + h],
                }
                unit = [width, height] * 2 if arguments.box_unit == "shares" else [1] * 4
                boxes.append(np.array(box[arguments.box_format]) / unit)
                labels.append(int(label))
            images.append(image)
            fields = (arguments.box_field, arguments.category_field, arguments.difficult_field)
            objects.append(dict(zip(fields, (boxes, labels, [False] * len(boxes)), strict=True)))
        columns = {arguments.image_column: images, arguments.objects_column: objects}
        return Dataset.from_dict(columns, features=features)

    return split(arguments.max_train_samples or 64, 0), split(arguments.max_eval_samples or 32, 1)
