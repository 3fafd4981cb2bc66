"""A trial of the optimizer, before model and data are loaded."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from transformers import Trainer

from adamnx_hf.common.errors import in_one_line
from adamnx_hf.common.plain_values import plain_value
from trainer_patches import registered_optimizers

__all__ = ["make_optimizer", "try_optimizer"]

# Transformers' optimizers that do not ask for the model.
_PLAIN = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")


def make_optimizer(args: Any, params: list[Any]) -> Any:
    """Makes the optimizer that `args` ask for, before the length of the run is known.

    Args:
        args: TrainingArguments, which stay as they are.
        params: parameters, or groups of them.
    """
    lasting = copy.copy(args)
    lasting.max_steps = max(args.max_steps, 1000)  # for what depends on the length of the run
    factory, options = Trainer.get_optimizer_cls_and_kwargs(lasting)
    return factory(params, **options)


def try_optimizer(args: Any) -> None:
    """Makes the optimizer that `args` ask for, of a small parameter, to see whether that goes well.

    Transformers makes it when training begins, with model and data loaded. Those of its optimizers that may
    ask for the model are not tried.

    Args:
        args: TrainingArguments, which stay as they are.

    Raises:
        RecipeError: the optimizer does not take its settings.
    """
    if plain_value(args.optim) not in (*registered_optimizers(), *_PLAIN):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run will say it
        try:
            param = torch.nn.Parameter(torch.zeros(2, 2, device=args.device))
            make_optimizer(args, [{"params": [param], "weight_decay": args.weight_decay}])
        except (ValueError, TypeError) as error:
            raise in_one_line(error) from error
