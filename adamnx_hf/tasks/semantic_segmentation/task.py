"""Makes the Trainer of a recipe, with its model, its data and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks.columns import choose_image_column
from adamnx_hf.tasks.loading import load_data
from adamnx_hf.tasks.randomness import RowRandom
from adamnx_hf.tasks.semantic_segmentation.arguments import Arguments
from adamnx_hf.tasks.semantic_segmentation.dataset import (
    SegmentationDataset,
    collate,
    eval_transform,
    train_transform,
)
from adamnx_hf.tasks.semantic_segmentation.evaluation import SegmentationTrainer, scores
from adamnx_hf.tasks.semantic_segmentation.made_up import make_up
from adamnx_hf.tasks.semantic_segmentation.masks import check_pairs
from adamnx_hf.tasks.semantic_segmentation.model import make_model, make_processor
from adamnx_hf.tasks.trainer import RecipeTrainer

if TYPE_CHECKING:
    from adamnx_hf.tasks.base import Recipe

__all__ = ["make_trainer"]


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
    on_train = train_transform(
        image_size=arguments.image_size,
        scale_range=arguments.scale_range,
        crop_size=arguments.crop_size,
        flip=arguments.flip_probability,
        **normal,
        **void,
    )
    on_eval = eval_transform(image_size=arguments.image_size, **normal)
    dataset: Any = partial(
        SegmentationDataset, form=arguments.pair_format, keep_decoded=arguments.keep_decoded, quiet=quiet
    )
    trainer = SegmentationTrainer(
        num_labels=len(names),
        **void,
        model=make_model(arguments, names, recipe, pixels),
        args=recipe.training_arguments,
        train_dataset=dataset(
            train,
            split=arguments.trained_split,
            transform=on_train,
            random=RowRandom(len(train), recipe.training_arguments.seed),
        ),
        eval_dataset=dataset(test, split=arguments.judged_split, transform=on_eval, keep_mask=True),
        data_collator=partial(collate, **void),
        processing_class=make_processor(arguments),
    )
    trainer.notes += notes
    trainer.notes += _describe_gaps(arguments, names, pixels)
    trainer.notes.append(_describe_constant(arguments, names, counts))
    return trainer


def _describe_constant(arguments: Arguments, names: Sequence[str], counts: np.ndarray) -> str:
    """Says how good the commonest class would be everywhere, which a model has to surpass."""
    commonest = int(counts.argmax())
    constant = torch.zeros(len(names), len(names), dtype=torch.float64)
    constant[:, commonest] = torch.from_numpy(counts)
    return (
        f"{names[commonest]!r} everywhere would have a mean IoU of "
        f"{scores(constant, arguments.void_id)['mean_iou']:.2f} % on {arguments.judged_split}"
    )


def _check_several(arguments: Arguments, names: Sequence[str], pixels: np.ndarray, uncounted: int) -> None:
    """Checks that there are pixels of two classes or more to train on.

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


def _describe_gaps(arguments: Arguments, names: Sequence[str], pixels: np.ndarray) -> list[str]:
    """Says in a line which classes the training split has no pixel of, if there are any."""
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
