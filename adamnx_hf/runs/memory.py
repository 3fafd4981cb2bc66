"""`adamnx-hf memory [RECIPE ...]`: bytes of parameters, gradients and optimizer states, before anything runs.

Activations are not among them: they depend on the batch, its length and gradient checkpointing.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adamnx_hf.common.errors import RecipeError, in_one_line

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

__all__ = ["EXTRA", "Memory", "add_arguments", "as_it_is", "expected", "of_recipe", "plain_tensors", "run"]

#: The extra of this package that has what this command needs.
EXTRA = "recipes"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a model in training, on one device that holds all of it."""

    parameters: int
    gradients: int
    """As large as the parameters that are trained; from the first backward pass to `zero_grad`."""
    states: int
    """The optimizer's."""

    @property
    def total(self) -> int:
        """All three, in bytes."""
        return self.parameters + self.gradients + self.states


def expected(
    model: nn.Module,
    optimizer: Callable[[list[Any]], Optimizer],
    packed: Mapping[int, int] | None = None,
) -> Memory:
    """What training `model` will take; it may be on the meta device.

    Args:
        model: parameters with `requires_grad` off get no gradient and no state; tied ones count once.
        optimizer: makes the optimizer of a list of parameters. One step on small parameters of each dtype
            shows what state it keeps, so any will do whose state grows as the parameters.
        packed: bytes of parameters that are stored in another form than here (quantized), by `id`.

    Returns:
        Bytes.
    """
    parameters = gradients = 0
    states = 0.0
    probes: dict[torch.dtype, tuple[float, float]] = {}
    for param in model.parameters():
        size = param.numel() * param.element_size()
        parameters += size if packed is None else packed.get(id(param), size)
        if param.requires_grad:
            gradients += size
            if param.dtype not in probes:
                probes[param.dtype] = _probe(optimizer, param.dtype)
            per_element, per_tensor = probes[param.dtype]
            states += per_element * param.numel() + per_tensor
    return Memory(parameters, gradients, round(states))


def _probe(optimizer: Callable[[list[Any]], Optimizer], dtype: torch.dtype) -> tuple[float, float]:
    """Bytes of state an element, and a tensor besides (a step count, a table): from tensors of two sizes."""
    import torch

    sizes, held = (64, 128), []
    for size in sizes:
        param = torch.nn.Parameter(torch.zeros(size, size, dtype=dtype))
        param.grad = torch.ones_like(param)
        made = optimizer([param])
        made.step()
        held.append(_bytes(made.state[param].values()))
    small, large = (size**2 for size in sizes)
    per_element = (held[1] - held[0]) / (large - small)
    return per_element, held[0] - per_element * small


def as_it_is(model: nn.Module, optimizer: Any) -> Memory:
    """What a model and its optimizer hold now, on this process; to be asked before `zero_grad`."""
    parameters = gradients = 0
    for param in model.parameters():
        parameters += param.numel() * param.element_size()
        # What bitsandbytes needs to read a quantized weight.
        for state in _quantization_states(param):
            parameters += _bytes(vars(state).values())
        if param.grad is not None:
            gradients += param.grad.numel() * param.grad.element_size()
    for module in model.modules():  # in 8 bits bitsandbytes keeps the scales with the layer
        parameters += _bytes([getattr(getattr(module, "state", None), "SCB", None)])
    while hasattr(optimizer, "optimizer"):  # Accelerate's wrapper
        optimizer = optimizer.optimizer
    held = _bytes(value for state in optimizer.state.values() for value in state.values())
    return Memory(parameters, gradients, held)


def _quantization_states(param: Any) -> list[Any]:
    """Of a bitsandbytes parameter: scales and, where these are quantized in turn, theirs."""
    first = getattr(param, "quant_state", None)
    return [state for state in (first, getattr(first, "state2", None)) if state is not None]


def _bytes(values: Iterable[Any]) -> int:
    """Of the tensors among `values`."""
    return sum(tensor.nbytes for tensor in plain_tensors(values))


def plain_tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among `values`; of those that wrap others (torchao's, DTensors) what they are made of."""
    import torch

    for value in values:
        if hasattr(value, "__tensor_flatten__"):
            yield from plain_tensors(getattr(value, name) for name in value.__tensor_flatten__()[0])
        elif isinstance(value, torch.Tensor):
            yield value


def of_recipe(name: str, flags: Sequence[str] = ()) -> tuple[Memory, int, int]:
    """What a recipe's training will take, with its number of parameters and of those that are trained.

    Args:
        name: see :func:`adamnx_hf.recipes.resolve.find`.
        flags: as for `adamnx-hf run`.

    Raises:
        RecipeError: a flag does not fit, or the recipe's task or fields do not tell the model's sizes, or
            make no model or optimizer.
    """
    from adamnx_hf.recipes.resolve import resolve

    recipe = resolve(name, [*flags, "--use_cpu=true"])  # it asks for no device
    if not hasattr(recipe.task, "meta_model"):
        raise RecipeError(f"{name}: its task {recipe.arguments.task} does not tell a model's size beforehand")
    try:
        return _of_resolved(recipe)
    except Exception as error:  # of Transformers', PEFT's and optimizers' kinds
        raise in_one_line(error) from error


def _of_resolved(recipe: Any) -> tuple[Memory, int, int]:
    import copy

    from transformers import Trainer

    model, packed = recipe.task.meta_model(recipe.task_arguments)
    args = copy.copy(recipe.training_arguments)
    args.max_steps = max(args.max_steps, 1)  # what horizon=auto asks for; the state does not depend on it

    def optimizer(params: list[Any]) -> Optimizer:
        factory, options = Trainer.get_optimizer_cls_and_kwargs(args)
        made: Optimizer = factory(params, **options)
        return made

    counts = [(param.numel(), param.requires_grad) for param in model.parameters()]
    trained = sum(count for count, trains in counts if trains)
    return expected(model, optimizer, packed), sum(count for count, _ in counts), trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `adamnx-hf memory`."""
    parser.description = (
        "Bytes of parameters, gradients and optimizer states of recipes, on one device that holds them all. "
        "Activations come on top of that. Nothing is loaded."
    )
    parser.add_argument(
        "recipes", nargs="*", metavar="RECIPE", help="default: all recipes that tell their model's size"
    )
    parser.add_argument(
        "--optim", nargs="+", metavar="NAME", help="as in TrainingArguments (default: the recipe's)"
    )


def run(args: argparse.Namespace) -> int:
    """Prints a table, in Markdown."""
    from adamnx_hf.recipes.resolve import named, read

    try:
        names = args.recipes or [n for n, path in named().items() if read(path).get("model_config")]
        rows = [
            (name, optim, *of_recipe(name, [f"--optim={optim}"] if optim else []))
            for name in names
            for optim in args.optim or [None]
        ]
    except RecipeError as error:
        print(f"adamnx-hf memory: error: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    return 0


def table(rows: Sequence[tuple[str, str | None, Memory, int, int]]) -> str:
    """The rows of `adamnx-hf memory` as a Markdown table. GB are 10⁹ bytes."""
    lines = [
        "| recipe | parameters | trained | bytes a parameter: weights | gradients | states | all, GB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, optim, memory, count, trained in rows:
        each = (memory.parameters, memory.gradients, memory.states)
        label = f"`{name}`" + (f" with {optim}" if optim else "")
        lines.append(
            f"| {label} | {count:,} | {trained:,} | "
            + " | ".join(f"{size / count:.3f}" for size in each)
            + f" | {memory.total / 1e9:.4g} |"
        )
    return "\n".join(lines)
