"""Bytes of parameters, gradients and optimizer states: reckoned before anything runs, and as they are.

Activations are not among them: they depend on the batch, its length and gradient checkpointing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from adamnx_hf.common.errors import RecipeError, in_one_line
from adamnx_hf.recipes.resolution import resolve
from trainer_patches import unwrap_optimizer

__all__ = ["Memory", "as_it_is", "count_parameters", "expected", "of_recipe", "plain_tensors"]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a model in training, on one device that holds all of it."""

    parameters: int
    gradients: int
    """The gradients are as large as the trained parameters. They exist from the first backward pass to
    `zero_grad`."""
    states: int
    """The optimizer's states."""

    @property
    def total(self) -> int:
        """All three, in bytes."""
        return self.parameters + self.gradients + self.states


def expected(
    model: nn.Module,
    optimizer: Callable[[list[Any]], Optimizer],
    packed: Mapping[int, int] | None = None,
) -> Memory:
    """Reckons the bytes that training `model` will take.

    Args:
        model: the model, on any device, the meta device included. Parameters with `requires_grad` off get
            no gradient and no state; tied ones count once.
        optimizer: makes the optimizer of a list of parameters. One step on small parameters of each dtype
            shows what state it keeps. So any optimizer will do whose state grows as the parameters.
        packed: bytes of the parameters that are stored in another form than in `model` (quantized), by
            their `id`. Default: none are.

    Returns:
        Bytes.
    """
    parameters = gradients = 0
    states = 0.0
    probe = functools.cache(functools.partial(_measure_states, optimizer))
    for param in model.parameters():
        size = param.numel() * param.element_size()
        parameters += size if packed is None else packed.get(id(param), size)
        if param.requires_grad:
            gradients += size
            per_element, per_tensor = probe(param.dtype)
            states += per_element * param.numel() + per_tensor
    return Memory(parameters, gradients, round(states))


def _measure_states(optimizer: Callable[[list[Any]], Optimizer], dtype: torch.dtype) -> tuple[float, float]:
    """Measures the bytes of state for each element, and for each tensor besides (a step count, a table).

    Two tensors of different sizes tell the two apart.
    """
    held = []
    for size in (64, 128):
        param = nn.Parameter(torch.zeros(size, size, dtype=dtype))
        param.grad = torch.ones_like(param)
        made = optimizer([param])
        made.step()
        held.append(_count_bytes(made.state[param].values()))
    per_element = (held[1] - held[0]) / (128**2 - 64**2)
    return per_element, held[0] - per_element * 64**2


def as_it_is(model: nn.Module, optimizer: Any) -> Memory:
    """Measures the bytes that a model and its optimizer hold now, in this process.

    Args:
        model: the model, before `zero_grad`, which drops the gradients.
        optimizer: its optimizer, which may be wrapped by Accelerate.
    """
    parameters = gradients = 0
    for param in model.parameters():
        parameters += param.numel() * param.element_size()
        # bitsandbytes needs these to read a quantized weight.
        for state in _quantization_states(param):
            parameters += _count_bytes(vars(state).values())
        if param.grad is not None:
            gradients += param.grad.numel() * param.grad.element_size()
    for module in model.modules():  # in 8 bits bitsandbytes keeps the scales with the layer
        parameters += _count_bytes([getattr(getattr(module, "state", None), "SCB", None)])
    states = unwrap_optimizer(optimizer).state.values()
    held = _count_bytes(value for state in states for value in state.values())
    return Memory(parameters, gradients, held)


def _quantization_states(param: Any) -> list[Any]:
    """Returns a bitsandbytes parameter's scales and, if those are quantized in turn, theirs."""
    first = getattr(param, "quant_state", None)
    return [state for state in (first, getattr(first, "state2", None)) if state is not None]


def _count_bytes(values: Iterable[Any]) -> int:
    """Returns the bytes of the tensors among `values`."""
    return sum(tensor.nbytes for tensor in plain_tensors(values))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Returns how many parameters a model has, and how many of them are trained."""
    params = list(model.parameters())
    return sum(p.numel() for p in params), sum(p.numel() for p in params if p.requires_grad)


def plain_tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yields the tensors among `values`; for one that wraps others (torchao's, a DTensor), those others."""
    for value in values:
        if hasattr(value, "__tensor_flatten__"):
            yield from plain_tensors(getattr(value, name) for name in value.__tensor_flatten__()[0])
        elif isinstance(value, torch.Tensor):
            yield value


def of_recipe(name: str, flags: Sequence[str] = ()) -> tuple[Memory, int, int]:
    """Reckons the bytes that training a recipe will take.

    Args:
        name: of one of the package's recipes, a path, or `hf://me/name[@revision]`.
        flags: as for `adamnx-hf run`.

    Returns:
        The bytes, the number of parameters, and the number of those that are trained.

    Raises:
        RecipeError: a flag does not fit, or the recipe's task or fields do not tell the model's sizes, or
            make no model or optimizer.
    """
    from adamnx_hf.runs.trial import make_optimizer  # imports the Trainer, which is slow

    recipe = resolve(name, [*flags, "--use_cpu=true"])  # it asks for no device
    if not hasattr(recipe.task, "make_meta_model"):
        raise RecipeError(f"{name}: its task {recipe.arguments.task} does not tell a model's size beforehand")
    try:
        model, packed = recipe.task.make_meta_model(recipe.task_arguments)
        optimizer = functools.partial(make_optimizer, recipe.training_arguments)
        return expected(model, optimizer, packed), *count_parameters(model)
    except Exception as error:  # of Transformers', PEFT's and optimizers' kinds
        raise in_one_line(error) from error
