"""Makes a recipe's Trainer, with its model, its data and its metrics."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from adamnx_hf.tasks.base import Recipe
from adamnx_hf.tasks.columns import choose_image_column
from adamnx_hf.tasks.image_classification.arguments import Arguments
from adamnx_hf.tasks.image_classification.classes import (
    choose_label_column,
    describe_gaps,
    number_classes,
    read_labels,
)
from adamnx_hf.tasks.image_classification.dataset import ImageDataset, keep_batch, make_up
from adamnx_hf.tasks.image_classification.evaluation import make_compute_metrics
from adamnx_hf.tasks.image_classification.model import make_model, make_processor
from adamnx_hf.tasks.loading import load_data
from adamnx_hf.tasks.randomness import RowRandom
from adamnx_hf.tasks.trainer import RecipeTrainer

__all__ = ["make_trainer"]


def make_trainer(recipe: Recipe) -> RecipeTrainer:
    """Makes a Trainer with the model, the data and the metrics of `recipe`."""
    from adamnx_hf.tasks import transforms  # imports torchvision

    arguments: Arguments = recipe.task_arguments
    args = recipe.training_arguments

    def read_classes(data: Any) -> list[Any]:
        column = choose_label_column([data], arguments, recipe.given, [])
        return list(read_labels(data, column, arguments.trained_split))

    splits, notes = load_data(recipe, make_up, labels=read_classes)
    choose_image_column(splits, arguments, recipe.given, notes)
    arguments.label_column = choose_label_column(splits, arguments, recipe.given, notes)
    train, test = splits
    classes, train_labels, test_labels = number_classes(splits, arguments, recipe.arguments.smoke)
    notes += describe_gaps(classes, train_labels, test_labels, arguments.judged_split)

    normalization: Any = {"mean": arguments.image_mean, "std": arguments.image_std}
    on_train = transforms.make_train_transform(
        jitter=arguments.jitter_probability, flip=arguments.flip_probability, **normalization
    )
    on_eval = transforms.make_eval_transform(**normalization)
    on_device = arguments.augment_on_device
    dataset: Any = functools.partial(
        ImageDataset,
        image_column=arguments.image_column,
        size=arguments.image_size,
        keep_decoded=arguments.keep_decoded,
    )
    # This may refuse the recipe's metric, so it comes before the model is made and images are decoded.
    compute_metrics = make_compute_metrics(len(np.unique(train_labels)), args.metric_for_best_model)
    trainer = RecipeTrainer(
        model=make_model(arguments, classes, recipe),
        args=args,
        train_dataset=dataset(
            train,
            labels=train_labels,
            split=arguments.trained_split,
            transform=None if on_device else on_train,
            random=RowRandom(len(train), args.seed, on_train.draws),
        ),
        eval_dataset=dataset(
            test,
            labels=test_labels,
            split=arguments.judged_split,
            transform=None if on_device else on_eval,
        ),
        data_collator=keep_batch,
        compute_metrics=compute_metrics,
        processing_class=make_processor(arguments),
        train_transform=on_train if on_device else None,
        eval_transform=on_eval if on_device else None,
    )
    trainer.notes += notes
    return trainer
