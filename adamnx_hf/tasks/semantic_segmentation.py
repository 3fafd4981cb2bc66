"""Semantic segmentation: images and masks of class ids to a trained model, judged by its mean IoU."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.tasks import masks
from adamnx_hf.tasks.base import Metric
from adamnx_hf.tasks.data import (
    IMAGES_DISPLACE,
    ImageArguments,
    check_class_names,
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
    "SegmentationTrainer",
    "balanced_weights",
    "draw_predictions",
    "fast",
    "make_trainer",
    "scores",
    "segment",
    "smoke",
]

#: Reported best and last, in percent.
METRICS = {
    "mean_iou": Metric("max", "mean_iou", "Mean IoU"),
    "pixel_accuracy": Metric("max", "accuracy", "Pixel accuracy"),
}

UNIT = "images"

DISPLACES = IMAGES_DISPLACE

#: The task, as the Hub names it.
PIPELINE_TAG = "image-segmentation"


@dataclasses.dataclass
class Arguments(ImageArguments):
    """The fields of a recipe for semantic segmentation."""

    mask_column: str = dataclasses.field(
        default="mask",
        metadata=doc(
            "Column of the masks: images of one channel that holds class ids, or see mask_values.",
            data=True,
            neutral=True,
        ),
    )
    class_names: list[str] | None = dataclasses.field(
        default=None,
        metadata=doc(
            "Names of the classes 0, 1, ... Default: numbers, as many as mask_values has, or up to the "
            "highest id in the training split.",
            data=True,
        ),
    )
    mask_values: list[int] | None = dataclasses.field(
        default=None,
        metadata=doc(
            "The values that stand in the masks for the classes 0, 1, ..., in that order: 0 255 for masks of "
            "0 and 255. Default: the ids themselves.",
            data=True,
        ),
    )
    ignore_index: int = dataclasses.field(
        default=255,
        metadata=doc(
            "Value of pixels in the masks that count neither in training nor in evaluation. One that "
            "mask_values has is its class's.",
            data=True,
        ),
    )
    architecture: str | None = dataclasses.field(
        default=None,
        metadata=doc("A network, from scratch: `unet`, or the model_type of one that Transformers has."),
    )
    class_balance: float = dataclasses.field(
        default=0.0,
        metadata=doc(
            "In a U-Net's cross-entropy a pixel counts its class's share of the training pixels to the power "
            "of minus this: 0, all pixels alike, to 1, all classes alike."
        ),
    )
    image_size: int = dataclasses.field(
        default=384,
        metadata=doc(
            "The shorter side of images, to which they are resized, in pixels. Judged is at their own size."
        ),
    )
    scale_range: list[float] = dataclasses.field(
        default_factory=lambda: [0.5, 2.0],
        metadata=doc("For training image_size is multiplied by a number drawn from this range."),
    )
    crop_size: int = dataclasses.field(
        default=320, metadata=doc("Training takes a random square of so many pixels a side.")
    )

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
            _config(self.architecture, self.architecture_options)  # type: ignore[arg-type]

    @property
    def void_id(self) -> int:
        """The id that pixels which do not count have in all that the model sees."""
        return masks.void_id(self.ignore_index, self.mask_values)


def _check_mask_values(values: list[int] | None, names: Sequence[str]) -> None:
    """That each class has a value of its own, which a mask can hold.

    Raises:
        ValueError: they have not; names `mask_values`.
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


def fast() -> dict[str, Any]:
    """What `--fast` sets. Decoding and augmentation stay in the data loader's workers: sizes differ."""
    return {
        "bf16": True,
        "use_cpu": not torch.accelerator.is_available(),  # bf16 without a GPU has to be asked for
        "channels_last": True,
        "torch_compile": True,
    }


def smoke(arguments: Arguments) -> dict[str, Any]:
    """What `--smoke` sets: a tiny network and a few small images."""
    tiny: dict[str, Any] = {
        "max_train_samples": 64,
        "max_eval_samples": 32,
        "image_size": 48,
        "crop_size": 48,
    }
    if arguments.architecture:
        changes: Any = arguments.architecture_options or {}
        kind = type(_config(arguments.architecture, changes))
        tiny["architecture_options"] = {**changes, **getattr(kind, "tiny", {})}
    return tiny


def _config(architecture: str, options: Mapping[str, Any] | None, **more: Any) -> Any:
    """The configuration of a network by its model_type.

    Raises:
        ValueError: a name, an option or a value that does not fit.
    """
    from transformers.models.auto import configuration_auto, modeling_auto

    mapping = modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    known = {config.model_type: config for config in mapping}
    if architecture not in known:
        raise ValueError(
            f"architecture: {architecture!r} is not known{nearest(architecture, known, most=20)}"
        )
    valid = set(inspect.signature(known[architecture].__init__).parameters) - {"self", "kwargs"}
    for key in options or {}:
        if key not in valid:
            raise ValueError(f"architecture_options: {architecture} has no {key!r}{nearest(key, valid)}")
    try:
        return configuration_auto.AutoConfig.for_model(architecture, **(options or {}), **more)
    except Exception as error:
        raise ValueError(f"architecture_options: {' '.join(str(error).split())}") from error


def scores(confusion: Tensor, ignore_index: int | None = None) -> dict[str, float]:
    """What a confusion matrix over all pixels of all images comes to, in percent.

    Args:
        confusion: (classes, classes), pixels that count by true class (rows) and predicted one.
        ignore_index: the id of the others. None, or one outside of the matrix: every id is a class.

    Returns:
        `mean_iou`: the mean over the classes of true positives / (true positives + false positives + false
        negatives), without `ignore_index` and those that are neither there nor predicted. As torchmetrics'
        `multiclass_jaccard_index` has it. And `pixel_accuracy`. Both are 0 where there is no pixel.
    """
    confusion = confusion.double()
    right = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - right
    counted = union > 0
    if ignore_index is not None and 0 <= ignore_index < len(counted):
        counted[ignore_index] = False  # predicted of a pixel that counts, it is that class's error, no class
    return {
        "mean_iou": 100 * (right[counted] / union[counted]).sum().item() / max(int(counted.sum()), 1),
        "pixel_accuracy": 100 * right.sum().item() / max(confusion.sum().item(), 1),
    }


class _Scores:
    """The Trainer's `compute_metrics`, batch by batch: keeps a confusion matrix and losses, no image."""

    def __init__(self, ignore_index: int) -> None:
        self.ignore_index = ignore_index
        self.total: Tensor | None = None
        self.losses: list[float] = []

    def __call__(self, prediction: Any, compute_result: bool) -> dict[str, float]:
        batch = prediction.predictions.sum(0)
        self.total = batch if self.total is None else self.total + batch
        self.losses += prediction.label_ids.tolist()
        if not compute_result:
            return {}
        total, self.total = self.total, None
        losses, self.losses = self.losses, []
        # The Trainer's own loss is a mean of batches' means. On several processes the last one has images in
        # it that only fill it up.
        return {**scores(total, self.ignore_index), "loss": math.fsum(losses) / len(losses)}


class SegmentationTrainer(RecipeTrainer):
    """A RecipeTrainer that judges whole images, each at its own size and by itself.

    In evaluation each image of a batch goes through the model alone, without what makes it as large as the
    others, which convolutions would see. All figures are therefore the same for every
    `per_device_eval_batch_size` and number of processes. `eval_loss` is the mean over the images of their own
    losses; that of an image without a pixel that counts is 0.

    Args:
        num_labels: classes.
        ignore_index: the id of pixels that do not count.
        kwargs: RecipeTrainer's. Evaluation needs batches of :func:`adamnx_hf.tasks.masks.collate` with masks.
    """

    smooths_labels = False

    def __init__(self, *, num_labels: int, ignore_index: int, args: Any, **kwargs: Any) -> None:
        self.num_labels, self.ignore_index = num_labels, ignore_index
        args.batch_eval_metrics = True
        super().__init__(args=args, compute_metrics=_Scores(ignore_index), **kwargs)
        # Transformers' segmentation models take any keyword, and average over the batch all the same.
        self.model_accepts_loss_kwargs = False

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The mean loss, a confusion matrix of each image (n, classes, classes), and each one's loss (n,)."""
        batch: Any = self._prepare_input(dict(inputs))
        truth, sizes = batch.pop("masks"), batch.pop("sizes")
        losses, confusions = [], []
        for i, (mask, (height, width)) in enumerate(zip(truth, sizes.tolist(), strict=True)):
            alone = {key: value[i : i + 1, ..., :height, :width].contiguous() for key, value in batch.items()}
            counts = (alone["labels"] != self.ignore_index).any()
            loss: Any
            loss, logits, _ = super().prediction_step(model, alone, prediction_loss_only, ignore_keys)
            losses.append(loss.where(counts, 0))  # Transformers' own losses are NaN where nothing counts
            if logits is not None:
                confusions.append(
                    multiclass_confusion_matrix(
                        segment(logits, (height, width), mask.shape)[0],
                        mask,
                        self.num_labels,
                        ignore_index=self.ignore_index,
                        validate_args=False,
                    )
                )
        each = torch.stack(losses)
        return (each.mean(), torch.stack(confusions), each) if confusions else (each.mean(), None, None)

    def counted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The logits of the pixels that count, (count, classes)."""
        return _resized(logits, labels.shape[-2:]).movedim(1, -1)[labels != self.ignore_index]


def _resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    if logits.shape[-2:] == tuple(size):
        return logits
    return nn.functional.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def segment(logits: Tensor, size: Sequence[int], original: Sequence[int]) -> Tensor:
    """The likeliest class of each pixel, as `post_process_semantic_segmentation` has it.

    Args:
        logits: (n, classes, ., .), at the resolution of the images or a lower one.
        size: the height and width of the images that the model has seen.
        original: the height and width to answer in.

    Returns:
        Ids, (n, *original) int64.
    """
    full = _resized(_resized(logits.float(), size), original)
    return full.max(1).indices  # max, as argmax is several times slower on the CPU


def make_trainer(recipe: Recipe) -> RecipeTrainer:
    """The model, the data and the metrics of `recipe` in a Trainer."""
    arguments: Arguments = recipe.task_arguments
    notes: list[str] = []
    with recipe.training_arguments.main_process_first(desc="loading the data"):
        if recipe.synthetic_data:
            train, test = _synthetic(arguments)
        else:
            train, test = load_splits(arguments, spread=recipe.arguments.smoke, notes=notes)
    for field, other in (("mask_column", "image_column"), ("image_column", "mask_column")):
        choose_image_column((train, test), arguments, recipe.given, notes, field, other)
    columns: Any = {"image_column": arguments.image_column, "mask_column": arguments.mask_column}
    void: Any = {"ignore_index": arguments.void_id}
    quiet = recipe.training_arguments.quiet
    values: Any = {"mask_values": arguments.mask_values}
    check: Any = partial(
        masks.check_pairs, **columns, **values, ignore_index=arguments.ignore_index, quiet=quiet
    )
    known = len(arguments.class_names or ()) or None
    pixels, uncounted = check(train, split=arguments.trained_split, classes=known)
    names = arguments.class_names or [str(i) for i in range(len(pixels))]
    _check_several(arguments, names, pixels, uncounted)
    counts, _ = check(test, split=arguments.judged_split, classes=len(names))

    normal: Any = {"mean": arguments.image_mean, "std": arguments.image_std}
    on_train = masks.train_transform(
        image_size=arguments.image_size,
        scale_range=arguments.scale_range,
        crop_size=arguments.crop_size,
        flip=arguments.flip_probability,
        **normal,
        **void,
    )
    on_eval = masks.eval_transform(image_size=arguments.image_size, **normal)
    dataset: Any = partial(
        masks.SegmentationDataset, **columns, **values, keep_decoded=arguments.keep_decoded, quiet=quiet
    )
    trainer = SegmentationTrainer(
        num_labels=len(names),
        **void,
        model=_model(arguments, names, recipe, pixels),
        args=recipe.training_arguments,
        train_dataset=dataset(
            train,
            split=arguments.trained_split,
            transform=on_train,
            random=RowRandom(len(train), recipe.training_arguments.seed),
        ),
        eval_dataset=dataset(test, split=arguments.judged_split, transform=on_eval, keep_mask=True),
        data_collator=partial(masks.collate, **void),
        processing_class=_processor(arguments),
    )
    trainer.notes += notes
    if note := _without_pixels(arguments, names, pixels):
        trainer.notes.append(note)
    commonest = int(counts.argmax())
    constant = torch.zeros(len(names), len(names), dtype=torch.float64)
    constant[:, commonest] = torch.from_numpy(counts)
    trainer.notes.append(
        f"{names[commonest]!r} everywhere would have a mean IoU of "
        f"{scores(constant, arguments.void_id)['mean_iou']:.2f} % on {arguments.judged_split}"
    )
    return trainer


def _check_several(arguments: Arguments, names: Sequence[str], pixels: np.ndarray, uncounted: int) -> None:
    """That there are pixels of two classes or more to train on.

    Raises:
        RecipeError: all that count are of one class.
    """
    present = np.flatnonzero(pixels).tolist()
    if len(present) > 1:
        return
    (only,) = present
    value = arguments.mask_values[only] if arguments.mask_values else only
    found = (
        f"mask_values: the masks of {arguments.trained_split} have pixels of one class only, {names[only]!r} "
        f"(their value is {value})"
    )
    if not uncounted:
        raise RecipeError(f"{found}; there has to be another to tell it from: take other masks, or more")
    values = " ".join(map(str, sorted((value, arguments.ignore_index))))
    if arguments.class_names and len(names) > 2:
        values = " ".join(["VALUE"] * len(names))
    raise RecipeError(
        f"{found}; all others are {arguments.ignore_index}, ignore_index, which does not count; if that is a "
        f"class, too: --mask_values {values}"
    )


def _without_pixels(arguments: Arguments, names: Sequence[str], pixels: np.ndarray) -> str | None:
    """Says which classes the training split has no pixel of; None if it has of each."""
    absent = [i for i in np.flatnonzero(pixels == 0).tolist() if i != arguments.void_id]
    if not absent:
        return None
    if arguments.class_names or arguments.mask_values:
        listed = ", ".join(repr(names[i]) for i in absent)
        return f"{arguments.trained_split} has no pixel of {listed}: such classes are not learned"
    present = np.flatnonzero(pixels).tolist()
    shown = " ".join(map(str, present)) if len(present) <= 20 else "VALUE VALUE ..."
    return (
        f"{len(absent)} of the ids 0 to {len(names) - 1} have no pixel in {arguments.trained_split}; to have "
        f"classes of the others alone: --mask_values {shown}"
    )


def _synthetic(arguments: Arguments) -> tuple[Any, Any]:
    """Made-up images of the recipe's columns, for smoke runs."""
    make = partial(
        masks.synthetic,
        image_column=arguments.image_column,
        mask_column=arguments.mask_column,
        classes=len(arguments.class_names or arguments.mask_values or ()) or 3,
        ignore_index=arguments.ignore_index,
        mask_values=arguments.mask_values,
    )
    return make(arguments.max_train_samples or 64), make(arguments.max_eval_samples or 32, seed=1)


def balanced_weights(pixels: np.ndarray, balance: float) -> list[float]:
    """What a pixel of each class counts, so that the pixels' mean is 1.

    Args:
        pixels: (classes,), how many of each there are.
        balance: 0, all count alike, to 1, every class has the same sum.

    Returns:
        Of each class its share of all pixels to the power of -balance, times a constant. A class without
        pixels has the weight of the rarest.
    """
    shares = pixels.clip(min=pixels[pixels > 0].min()) / pixels.sum()
    weights = shares**-balance
    result: list[float] = (weights / (weights * pixels / pixels.sum()).sum()).tolist()
    return result


def _model(arguments: Arguments, names: list[str], recipe: Recipe, pixels: np.ndarray) -> Any:
    from transformers import AutoModelForSemanticSegmentation, set_seed

    options = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "semantic_loss_ignore_index": arguments.void_id,
    }
    set_seed(recipe.training_arguments.seed)  # the same weights for every optimizer
    if arguments.model_name_or_path:
        check_pretrained(arguments.model_name_or_path)
        model = AutoModelForSemanticSegmentation.from_pretrained(
            arguments.model_name_or_path,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            trust_remote_code=False,  # None would ask whoever sits at the terminal
            **options,
        )
    else:
        changes: Any = arguments.architecture_options
        model = AutoModelForSemanticSegmentation.from_config(
            _config(str(arguments.architecture), changes, **options)
        )
    if arguments.class_balance:
        if not hasattr(model.config, "class_weights"):
            raise RecipeError(
                f"class_balance: {model.config.model_type} has a loss of its own that weighs no classes; "
                "leave it out"
            )
        model.config.class_weights = balanced_weights(pixels, arguments.class_balance)
    elif arguments.model_name_or_path and hasattr(model.config, "class_weights"):
        model.config.class_weights = None  # those of the data it has learned from
    return model


def _processor(arguments: Arguments) -> Any:
    """What prepares images for the saved model, in `pipeline` and elsewhere, as evaluation does here."""
    from transformers import MobileNetV2ImageProcessor  # resizes by the shorter side, and has the masks' part

    return MobileNetV2ImageProcessor(
        size={"shortest_edge": arguments.image_size},
        do_center_crop=False,
        image_mean=arguments.image_mean,
        image_std=arguments.image_std,
    )


@torch.no_grad()
def draw_predictions(recipe: Recipe, trainer: RecipeTrainer, path: Path, count: int = 6) -> None:
    """Draws images of the evaluation split, their masks and what the model makes of them.

    Args:
        recipe: for the title.
        trainer: after training.
        path: of the PNG.
        count: images, taken evenly from the split.
    """
    data: Any = trainer.eval_dataset
    model: Any = trainer.model
    void = recipe.task_arguments.void_id
    model.eval()
    columns = {}
    for row in dict.fromkeys(
        np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int).tolist()
    ):
        batch = masks.collate([data[row]], ignore_index=void)
        (mask,) = batch["masks"]
        pixels = trainer._prepare_input(batch["pixel_values"])
        logits = model(pixel_values=pixels).logits
        (predicted,) = segment(logits, pixels.shape[-2:], mask.shape)
        columns[f"row {row}"] = (np.asarray(data.picture(row)), mask.numpy(), predicted.cpu().numpy())
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    optim = getattr(recipe.training_arguments.optim, "value", recipe.training_arguments.optim)
    masks.draw(path, f"{recipe.name} · {optim} · {recipe.task_arguments.eval_split}", names, columns, void)
