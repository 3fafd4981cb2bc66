"""The optimizers that are compared, and the learning rate's schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adamnx_hf import AdamNX
from adamnx_hf.optim.grouping import param_groups
from adamnx_hf.optim.schedules import adam, adamnx, beta2_for_horizon

if TYPE_CHECKING:
    from plan import Plan


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer's second moment. All but the graft run through AdamNX, so that they differ in it alone."""

    schedule: str
    """Of AdamNX's `beta2_schedule`; with "adam" it is AdamW."""
    beta2: Callable[[int], float]
    """From the number of steps of a run."""
    uncorrected_m: bool = False
    """Whether m starts at 0, as AdaX has it. That is a factor 1 - β1^t on the step, and is made by the rate.

    AdaX's decay does not have the factor: here it lacks some ten steps' decay at the beginning.
    """
    graft: bool = False


CONTENDERS = {
    "adamw": Contender("adam", lambda steps: 0.999),
    "adamw_95": Contender("adam", lambda steps: 0.95),
    # Its memory, 1/(1 − β2) steps, is the share of the run that 0.999 is of the paper's 62,480 steps.
    "adamw_scaled": Contender("adam", lambda steps: max(0.0, 1 - 1 / (0.016 * steps))),
    "adamnx": Contender("adamnx", lambda steps: 0.99),
    "adamnx_auto": Contender("adamnx", beta2_for_horizon),
    "adafactor_decay": Contender("adafactor", lambda steps: 0.999),
    "adax": Contender("adax", lambda steps: 0.99, uncorrected_m=True),
    "graft": Contender("adamnx", beta2_for_horizon, graft=True),
}

BETA1 = 0.9


class Graft(Optimizer):
    """Adam's direction with the length of AdamNX's step, over all parameters (grafting, arXiv:2002.11803).

    If it does as well as AdamNX, what AdamNX gains is one number a step: how long the step is. Nothing here
    asks for a tensor's value or makes a state later than here, so that a step can be captured.
    """

    def __init__(
        self,
        params: Any,
        lr: Tensor,
        *,
        beta2: float = 0.999,
        beta2_of_length: float,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.beta2, self.beta2_of_length, self.eps = beta2, beta2_of_length, 1e-8
        self.all = [param for group in self.param_groups for param in group["params"]]
        for param in self.all:
            self.state[param] = {
                key: torch.zeros_like(param) for key in ("exp_avg", "exp_avg_sq", "length_sq")
            }
        self.step_count = torch.zeros((), dtype=torch.float64, device=self.all[0].device)
        self.state[self.all[0]]["step"] = self.step_count

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Performs a single optimization step."""
        t = self.step_count.add_(1)
        grads: list[Any] = [param.grad for param in self.all]
        m, second, other = (
            [self.state[param][key] for param in self.all] for key in ("exp_avg", "exp_avg_sq", "length_sq")
        )
        squares = torch._foreach_mul(grads, grads)
        for average, new, weight in (
            (m, grads, adam(t, BETA1)),
            (second, squares, adam(t, self.beta2)),
            (other, squares, adamnx(t, self.beta2_of_length)),
        ):
            weight = torch.as_tensor(weight).float()
            torch._foreach_mul_(average, 1 - weight)
            torch._foreach_add_(average, torch._foreach_mul(new, weight))

        def step_by(squares: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            root = torch._foreach_sqrt(squares)
            torch._foreach_add_(root, self.eps)
            update = list(torch._foreach_div(m, root))
            return update, torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(update))))

        update, own = step_by(second)
        ratio = step_by(other)[1] / own.clamp_min(1e-30)
        lr = self.param_groups[0]["lr"]
        for group in self.param_groups:
            if group["weight_decay"]:
                torch._foreach_mul_(group["params"], 1 - lr * group["weight_decay"])
        torch._foreach_mul_(update, lr * ratio)
        torch._foreach_sub_(self.all, update)


def make_optimizer(name: str, net: nn.Module, lr: Tensor, plan: Plan) -> Optimizer:
    """The contender's optimizer, for runs of the plan's length. `lr` is filled before each step."""
    contender = CONTENDERS[name]
    groups, beta2 = param_groups(net, plan.weight_decay, rule="paper"), contender.beta2(plan.steps)
    if contender.graft:
        return Graft(groups, lr, beta2_of_length=beta2)
    return AdamNX(groups, lr, (BETA1, beta2), beta2_schedule=contender.schedule, capturable=True)  # type: ignore[arg-type]


def rate_factor(step: int, steps: int, warmup: float = 0.0, decay_until: float = 0.6) -> float:
    """The learning rate at `step`, counted from 0, as a share of its peak.

    The paper's Eq. 15: linear from the peak at step 0 to 1 % of it at 60 % of all steps, then constant. A
    `warmup` multiplies it by a line that reaches 1 at that share of all steps.
    """
    rising = min(1.0, (step + 1) / (warmup * steps)) if warmup else 1.0
    return rising * max(0.01, 1 - 0.99 * step / (decay_until * steps))
