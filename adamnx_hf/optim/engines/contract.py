"""The contract between :func:`adamnx_hf.optim.functional.adamnx` and engines.

An engine carries out one AdamNX step on many tensors at once. It is given real tensors of one device, those
of one parameter laid out alike in dense memory, and knows nothing of param_groups, `step` counters, complex
numbers or DTensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from adamnx_hf.optim.layout import Columns, Layout, Memo, pick

__all__ = ["Abilities", "Case", "Engine", "Extras", "Rule", "Weight"]

#: A schedule's weight: one number for all parameters, or a tensor with one element for each of them.
Weight = float | Tensor


def pick_weights(weights: Weight, places: Sequence[int]) -> Weight:
    """Returns the weights of the parameters at `places`."""
    # A range is that of all parameters.
    if isinstance(weights, float) or isinstance(places, range) or places == [*range(len(weights))]:
        return weights
    return torch.stack([weights[i] for i in places])  # an index would have to be sent to the device


class Case(NamedTuple):
    """A case that an engine may or may not be able to serve."""

    device: str
    """The type of the tensors' device."""
    dtype: torch.dtype
    """The dtype of the arithmetic, see :func:`adamnx_hf.optim.formats.find_moment_dtype`."""
    host_schedule: bool = True
    """Whether the weights are known on the host."""
    differentiable: bool = False
    """Whether autograd is to see through the step."""
    wrapped: bool = False
    """Whether there may be tensors that wrap others and have no memory of their own."""


class Abilities(NamedTuple):
    """The abilities of an engine, and the flags that ask for it."""

    dtypes: frozenset[torch.dtype] = frozenset()
    """Dtypes that tensors of one call may have in any mixture. Empty: all have the dtype of the arithmetic.
    Dtypes of narrow formats belong here only if the engine `rounds`."""
    steps_may_differ: bool = False
    """Whether parameters of one call may be at different steps."""
    rounds: bool = False
    """Whether the engine itself rounds stochastically what is stored in a narrow format."""
    unscales: bool = False
    """Whether the engine itself divides gradients by `grad_scale` and obeys `found_inf`."""
    flag: Literal["fused", "foreach"] | None = None
    """The flag of torch.optim that asks for the engine; None for a plain loop."""
    compiled: Literal["traced", "operator"] | None = None
    """How torch.compile takes a step: it traces the engine's code, or it calls the engine as an operator, but
    only where the flag asks for that. None: it cannot take one."""


class Rule(NamedTuple):
    """The numbers of :func:`adamnx_hf.optim.update.adamnx_update` at one step."""

    weight1: Weight
    weight2: Weight
    lr: float | Tensor
    weight_decay: float
    eps: float
    maximize: bool = False

    def pick(self, places: Sequence[int]) -> Rule:
        """Returns the rule for the parameters at `places`."""
        weight1, weight2 = pick_weights(self.weight1, places), pick_weights(self.weight2, places)
        return Rule(weight1, weight2, self.lr, self.weight_decay, self.eps, self.maximize)


class Extras(NamedTuple):
    """Arguments for engines that round or unscale themselves."""

    memo: Memo
    """A dict that is the same at each step, for what the engine keeps."""
    step: Weight
    """t, a number or one for each parameter, as the weights are; seeds the rounding."""
    numbers: Sequence[int]
    """A number for each parameter, see :func:`adamnx_hf.adamnx`; seeds the rounding."""
    rounding: str = "nearest"
    """How parameters in bfloat16 are stored, see :data:`adamnx_hf.optim.formats.PARAM_ROUNDINGS`."""
    grad_scale: Tensor | None = None
    """A 0-d tensor by which gradients are to be divided."""
    found_inf: Tensor | None = None
    """A 0-d tensor; where it is not 0 nothing is to be changed."""
    layout: Layout | None = None
    """The layout of the columns, where it is known."""

    def pick(self, places: Sequence[int], memo: Memo, layout: Layout | None) -> Extras:
        """Returns the extras for the parameters at `places`, with a memo and a layout of theirs."""
        step, numbers = pick_weights(self.step, places), pick(self.numbers, places)
        return Extras(memo, step, numbers, self.rounding, self.grad_scale, self.found_inf, layout)


class Engine(Protocol):
    """The names that an engine module offers."""

    ABILITIES: Abilities

    def why_not(self, case: Case) -> str | None:
        """Returns the reason why the engine cannot serve a case, or None if it can."""

    def step_(self, columns: Columns, rule: Rule, extras: Extras) -> None:
        """Steps the parameters in place, as :func:`adamnx_hf.optim.update.adamnx_update` does.

        An engine that neither rounds nor unscales has no use for `extras` and `columns.residuals`.
        """
