"""Makes the Trainer of a recipe, with its model, its data and its metrics."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, set_seed

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.models import Yolov7TinyConfig, Yolov7TinyForObjectDetection, Yolov7TinyImageProcessor
from adamnx_hf.tasks.columns import choose_image_column
from adamnx_hf.tasks.loading import load_data
from adamnx_hf.tasks.object_detection.arguments import Arguments, configure
from adamnx_hf.tasks.object_detection.dataset import LEAST_SHARE, Augmentation, DetectionDataset, collate
from adamnx_hf.tasks.object_detection.evaluation import DetectionTrainer, compute_metrics
from adamnx_hf.tasks.object_detection.made_up import make_up
from adamnx_hf.tasks.object_detection.schema import (
    check_classes,
    check_features,
    find_fields,
    find_own_names,
    list_fields,
    name_classes,
)
from adamnx_hf.tasks.pretrained import check_pretrained, label_maps
from adamnx_hf.tasks.randomness import RowRandom

if TYPE_CHECKING:
    from adamnx_hf.tasks.base import Recipe

__all__ = ["make_trainer"]


def make_trainer(recipe: Recipe) -> DetectionTrainer:
    """Makes a Trainer with the model, the data and the metrics of `recipe`."""
    arguments: Arguments = recipe.task_arguments
    if (gpus := recipe.training_arguments.n_gpu) > 1:
        raise RecipeError(
            f"one process has {gpus} GPUs, and the objects of a batch cannot be shared out among them: start "
            f"one process for each, by accelerate launch --num_processes {gpus} -m adamnx_hf.cli run ..., or "
            "show it one of them alone, by CUDA_VISIBLE_DEVICES=0"
        )
    (train, test), notes = load_data(recipe, make_up)
    notes += find_fields(train, arguments, recipe.given)
    choose_image_column((train, test), arguments, recipe.given, notes)
    for data in (train, test):
        check_features(data, arguments)
    classes = name_classes(train, arguments)
    check_classes(train, test, classes, arguments)
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
        model=_make_model(arguments, classes, recipe),
        args=recipe.training_arguments,
        train_dataset=learned,
        eval_dataset=judged,
        data_collator=collate,
        compute_metrics=compute_metrics,
        processing_class=Yolov7TinyImageProcessor(
            arguments.image_size, image_mean=arguments.image_mean, image_std=arguments.image_std
        ),
    )
    pairs = zip(classes, find_own_names(train, arguments), strict=False)
    if renamed := [f"{name!r} for {own!r}" for name, own in pairs if name != own]:
        notes.append(
            f"class_names: {len(renamed)} classes have other names than in the data set, such as {renamed[0]}"
        )
    if arguments.difficult_field not in list_fields(test, arguments.objects_column):
        notes.append(
            f"objects have no field {arguments.difficult_field!r}: every one of them has to be found"
        )
    trainer.notes += notes
    return trainer


def _make_model(arguments: Arguments, classes: Sequence[str], recipe: Recipe) -> Any:
    """Makes the network, or loads one to fine-tune.

    Raises:
        RecipeError: the model to load is no YOLOv7-tiny or is for images of another size, or see
            :func:`adamnx_hf.tasks.pretrained.check_pretrained`.
    """
    set_seed(recipe.training_arguments.seed)  # the same weights for every optimizer
    name = arguments.model_name_or_path
    if name is None:
        return Yolov7TinyForObjectDetection(configure(arguments, classes))
    check_pretrained(name)
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if not isinstance(config, Yolov7TinyConfig):
        raise RecipeError(f"model_name_or_path: {name} is a {config.model_type}, not a yolov7_tiny")
    if config.image_size != arguments.image_size:
        raise RecipeError(
            f"model_name_or_path: {name} has anchors for {config.image_size} pixels; set --image_size to that"
        )
    return Yolov7TinyForObjectDetection.from_pretrained(
        name, ignore_mismatched_sizes=True, dtype=torch.float32, **label_maps(classes)
    )


def _check_learned(
    data: DetectionDataset, augment: Augmentation, classes: Sequence[str], arguments: Arguments
) -> list[str]:
    """Checks that there are boxes to learn.

    Returns:
        Notes on boxes that are too small to be learned, and on classes without a box.

    Raises:
        RecipeError: there is no box, or every box is too small.
    """
    split = f"the split {data.split!r}"
    rows = [data.select_learned(i) for i in range(len(data)) if len(data.objects[i])]
    learned = sum(len(labels) for labels, _ in rows)
    if not learned:
        why = "all of them are marked difficult; pass --train_on_difficult" if rows else "no row has one"
        raise RecipeError(f"train_split: there is no object to learn in {split}: {why}")
    labels, boxes = (torch.cat(parts) for parts in zip(*rows, strict=True))
    corners, largest = boxes * data.size, arguments.scale_range[1]
    scale = min(1.0, largest)
    sides = scale * (corners[:, 2:] - corners[:, :2]).amin(1)  # the shorter side of each box
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
