"""A graft: the direction of one optimizer's step, with the length of another's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adamnx_hf.catalog.foreach import evaluate
from trainer_patches import RunInfo, registered_optimizers

__all__ = ["Graft", "fit_graft"]

#: A function `params -> Optimizer`.
Maker = Callable[[Any], Optimizer]


class Graft(Optimizer):
    """Steps in the direction of one optimizer, as far as another one would go (grafting, arXiv:2002.11803).

    Both optimizers compute a whole step, decoupled weight decay included, from the same weights and
    gradients. The length is one number, the norm over all parameters. A graft tells where the gain of an
    optimizer comes from: if AdamW's direction with AdamNX's length does as well as AdamNX, then its gain is
    the length of its steps, which a learning rate and its schedule can give.

    It is a control for experiments: a step costs both optimizers' and two copies of the parameters.

    Args:
        params: parameters or groups.
        lr: learning rate of both, which schedules change here.
        direction, length: functions `params -> Optimizer` that make the two. They get the groups from here.

    Attributes:
        direction, length: the two optimizers.
        ratio: the length of the last step, as a share of the one that `direction` would have made: a 0-d
            tensor. None before the first step.
    """

    def __init__(self, params: Any, lr: float, direction: Maker, length: Maker) -> None:
        super().__init__(params, {"lr": lr})
        self.direction, self.length = (
            make([dict(group) for group in self.param_groups]) for make in (direction, length)
        )
        self.ratio: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Performs a single optimization step.

        Args:
            closure: reevaluates the model and returns the loss.
        """
        loss = evaluate(closure)
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not params:
            return loss
        before = [param.clone() for param in params]
        steps = [self._make_step(optimizer, params, before) for optimizer in (self.direction, self.length)]
        own, other = (torch.linalg.vector_norm(torch.stack(torch._foreach_norm(step))) for step in steps)
        self.ratio = torch.where(own > 0, other / own, 1.0)
        torch._foreach_mul_(steps[0], self.ratio)
        torch._foreach_add_(params, steps[0])
        return loss

    def _make_step(self, optimizer: Optimizer, params: list[Tensor], before: list[Tensor]) -> Any:
        """Returns what an optimizer's step would add to each parameter, and leaves the parameters alone."""
        for group, own in zip(optimizer.param_groups, self.param_groups, strict=True):
            group["lr"] = own["lr"]
        optimizer.step()
        steps = torch._foreach_sub(params, before)
        torch._foreach_copy_(params, before)
        return steps

    def state_dict(self) -> dict[str, Any]:
        """Returns torch.optim's dict, with one each for `direction` and `length`."""
        parts = {name: getattr(self, name).state_dict() for name in ("direction", "length")}
        return {**super().state_dict(), **parts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what :meth:`state_dict` returned.

        Raises:
            ValueError: the state is not a graft's.
        """
        if missing := [name for name in ("direction", "length") if name not in state_dict]:
            raise ValueError(f"this state_dict is not a graft's: it has no {' and no '.join(missing)}")
        super().load_state_dict(state_dict)
        for name in ("direction", "length"):
            getattr(self, name).load_state_dict(state_dict[name])


def fit_graft(
    kwargs: dict[str, Any], run: RunInfo, *, direction: str = "adamw", length: str = "adamnx"
) -> dict[str, Any]:
    """Makes the two optimizers of a :class:`Graft` known to a run.

    Args:
        kwargs: the graft's keyword arguments.
        run: the Trainer's run.
        direction, length: names of registered optimizers, maybe with optim_args of their own in brackets:
            `adamnx(horizon=auto)`. Their betas and eps are their own defaults unless set there.

    Raises:
        ValueError: a name is not registered, or an option does not fit.
    """
    return {
        **kwargs,
        "direction": _read_maker("direction", direction, run),
        "length": _read_maker("length", length, run),
    }


def _read_maker(option: str, text: str, run: RunInfo) -> Maker:
    name, bracket, rest = text.partition("(")
    known = registered_optimizers()
    if name not in known or name == "graft" or (bracket and not rest.endswith(")")):
        names = ", ".join(sorted({*known} - {"graft"}))
        raise ValueError(f"optim_args: {option}={text} is not NAME or NAME(KEY=VALUE,...); NAME: {names}")
    registered, args = known[name], copy.copy(run.args)
    args.optim_args = rest.removesuffix(")") or None
    defaults = registered.find_default("betas") or ()
    for field, value in zip(("adam_beta1", "adam_beta2"), defaults, strict=False):
        setattr(args, field, value)
    args.adam_epsilon = registered.find_default("eps") or args.adam_epsilon
    options, _ = registered.build_keywords(args, run.planned_steps)
    if options.get("max_grad_norm") is not None:
        raise ValueError(f"optim_args: {option}={text}: give max_grad_norm to TrainingArguments instead")
    return lambda params: registered.load()(params, **options)
