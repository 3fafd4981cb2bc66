"""Makes the Trainer of a recipe, with its model, its data and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForSemanticSegmentation, MobileNetV2ImageProcessor, set_seed

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks.columns import choose_image_column
from adamnx_hf.tasks.loading import load_data
from adamnx_hf.tasks.pretrained import label_maps, load_pretrained
from adamnx_hf.tasks.randomness import RowRandom
from adamnx_hf.tasks.semantic_segmentation.arguments import Arguments, configure
from adamnx_hf.tasks.semantic_segmentation.dataset import (
    SegmentationDataset,
    collate,
    make_eval_transform,
    make_train_transform,
)
from adamnx_hf.tasks.semantic_segmentation.evaluation import SegmentationTrainer, compute_scores
from adamnx_hf.tasks.semantic_segmentation.made_up import make_up
from adamnx_hf.tasks.semantic_segmentation.masks import check_pairs
from adamnx_hf.tasks.trainer import RecipeTrainer

if TYPE_CHECKING:
    from adamnx_hf.tasks.base import Recipe

__all__ = ["balance_weights", "make_trainer"]


def make_trainer(recipe: Recipe) -> RecipeTrainer:
    """Makes a Trainer with the model, the data and the metrics of `recipe`."""
    arguments: Arguments = recipe.task_arguments
    (train, test), notes = load_data(recipe, make_up)
    for field, other in (("mask_column", "image_column"), ("image_column", "mask_column")):
        choose_image_column((train, test), arguments, recipe.given, notes, field, other)
    void: Any = {"ignore_index": arguments.void_id}
    quiet = recipe.training_arguments.quiet
    check: Any = partial(
        check_pairs, form=arguments.pair_format, ignore_index=arguments.ignore_index, quiet=quiet
    )
    known = len(arguments.class_names or ()) or None
    pixels, uncounted = check(train, split=arguments.trained_split, classes=known)
    names = arguments.class_names or [str(i) for i in range(len(pixels))]
    _check_several(arguments, names, pixels, uncounted)
    counts, _ = check(test, split=arguments.judged_split, classes=len(names))

    normal: Any = {"mean": arguments.image_mean, "std": arguments.image_std}
    on_train = make_train_transform(
        image_size=arguments.image_size,
        scale_range=arguments.scale_range,
        crop_size=arguments.crop_size,
        flip=arguments.flip_probability,
        **normal,
        **void,
    )
    on_eval = make_eval_transform(image_size=arguments.image_size, **normal)
    dataset: Any = partial(
        SegmentationDataset, form=arguments.pair_format, keep_decoded=arguments.keep_decoded, quiet=quiet
    )
    trainer = SegmentationTrainer(
        num_labels=len(names),
        **void,
        model=_make_model(arguments, names, recipe, pixels),
        args=recipe.training_arguments,
        train_dataset=dataset(
            train,
            split=arguments.trained_split,
            transform=on_train,
            random=RowRandom(len(train), recipe.training_arguments.seed),
        ),
        eval_dataset=dataset(test, split=arguments.judged_split, transform=on_eval, keep_mask=True),
        data_collator=partial(collate, **void),
        # MobileNetV2's resizes by the shorter side, and turns logits into masks.
        processing_class=MobileNetV2ImageProcessor(
            size={"shortest_edge": arguments.image_size},
            do_center_crop=False,
            image_mean=arguments.image_mean,
            image_std=arguments.image_std,
        ),
    )
    trainer.notes += notes
    trainer.notes += _describe_gaps(arguments, names, pixels)
    trainer.notes.append(_describe_constant(arguments, names, counts))
    return trainer


def balance_weights(pixels: np.ndarray, balance: float) -> list[float]:
    """Computes the weight of a pixel of each class, such that the pixels' mean weight is 1.

    Args:
        pixels: (classes,), the number of pixels of each class.
        balance: from 0, all pixels count alike, to 1, all classes do.

    Returns:
        The share of each class in all pixels to the power of -balance, times a constant. A class without
        pixels has the weight of the rarest.
    """
    shares = pixels.clip(min=pixels[pixels > 0].min()) / pixels.sum()
    weights = shares**-balance
    result: list[float] = (weights / (weights * pixels / pixels.sum()).sum()).tolist()
    return result


def _make_model(arguments: Arguments, names: list[str], recipe: Recipe, pixels: np.ndarray) -> Any:
    """Makes the network, or loads one to fine-tune.

    Args:
        arguments: the task's fields.
        names: the classes' names.
        recipe: has the seed.
        pixels: (classes,), the number of training pixels of each class.

    Raises:
        RecipeError: the recipe weighs classes, and the network cannot; or see
            :func:`adamnx_hf.tasks.pretrained.check_pretrained`.
    """
    options = label_maps(names) | {"semantic_loss_ignore_index": arguments.void_id}
    set_seed(recipe.training_arguments.seed)  # the same weights for every optimizer
    if arguments.model_name_or_path:
        model = load_pretrained(AutoModelForSemanticSegmentation, arguments.model_name_or_path, **options)
    else:
        changes: Any = arguments.architecture_options
        model = AutoModelForSemanticSegmentation.from_config(
            configure(str(arguments.architecture), changes, **options)
        )
    if arguments.class_balance:
        if not hasattr(model.config, "class_weights"):
            raise RecipeError(
                f"class_balance: {model.config.model_type} has a loss of its own that weighs no classes; "
                "leave it out"
            )
        model.config.class_weights = balance_weights(pixels, arguments.class_balance)
    elif arguments.model_name_or_path and hasattr(model.config, "class_weights"):
        model.config.class_weights = None  # the saved weights are of other data
    return model


def _describe_constant(arguments: Arguments, names: Sequence[str], counts: np.ndarray) -> str:
    """Says how well predicting the commonest class everywhere would do, which a model has to surpass."""
    commonest = int(counts.argmax())
    constant = torch.zeros(len(names), len(names), dtype=torch.float64)
    constant[:, commonest] = torch.from_numpy(counts)
    return (
        f"{names[commonest]!r} everywhere would have a mean IoU of "
        f"{compute_scores(constant, arguments.void_id)['mean_iou']:.2f} % on {arguments.judged_split}"
    )


def _check_several(arguments: Arguments, names: Sequence[str], pixels: np.ndarray, uncounted: int) -> None:
    """Checks that training pixels are of two classes or more.

    Raises:
        RecipeError: all pixels that count are of one class.
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


def _describe_gaps(arguments: Arguments, names: Sequence[str], pixels: np.ndarray) -> list[str]:
    """Describes in a line the classes of which the training split has no pixel, if there are any."""
    absent = [i for i in np.flatnonzero(pixels == 0).tolist() if i != arguments.void_id]
    if not absent:
        return []
    if arguments.class_names or arguments.mask_values:
        listed = ", ".join(repr(names[i]) for i in absent)
        return [f"{arguments.trained_split} has no pixel of {listed}: such classes are not learned"]
    present = np.flatnonzero(pixels).tolist()
    shown = " ".join(map(str, present)) if len(present) <= 20 else "VALUE VALUE ..."
    return [
        f"{len(absent)} of the ids 0 to {len(names) - 1} have no pixel in {arguments.trained_split}; to have "
        f"classes of the others alone: --mask_values {shown}"
    ]
