"""Sophia, with the curvature that it estimates from labels drawn from the model's own prediction."""

from __future__ import annotations

from typing import Any

import torch

from adamnx_hf.catalog.foreach import ForeachOptimizer

__all__ = ["SophiaG"]


class SophiaG(ForeachOptimizer):
    r"""Sophia with the Gauss-Newton-Bartlett estimate (arXiv:2305.14342, Algorithm 3).

    $$
    \begin{aligned}
    m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
    \theta &\leftarrow (1 - \eta\lambda)\,\theta - \eta\,\operatorname{clip}(m / \max(\rho h, \epsilon), 1)
    \end{aligned}
    $$

    and every `curvature_every` steps :meth:`update_curvature`, after a backward pass of a loss against
    labels drawn from the model's own prediction. The recipes' Trainer makes that pass
    (:class:`adamnx_hf.tasks.callbacks.CurvatureCallback`); in a loop of your own, make it yourself.

    Args:
        params: parameters or groups.
        lr: learning rate η.
        betas: the decay rates of m and of h.
        rho: ρ; the larger, the smaller the share of entries that are clipped.
        weight_decay: λ.
        eps: ε. Until the first estimate h is 0 and every entry moves by η.
        curvature_every: steps between two estimates.

    Raises:
        ValueError: an argument is out of range.
    """

    _moments = ("exp_avg", "hessian")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 1e-1,
        *,
        eps: float = 1e-15,
        curvature_every: int = 10,
    ) -> None:
        if curvature_every < 1:
            raise ValueError(f"Invalid curvature_every: {curvature_every}, must be at least 1")
        super().__init__(params, lr=lr, betas=betas, rho=rho, weight_decay=weight_decay, eps=eps)
        self.curvature_every = curvature_every

    def _update(self, params: Any, grads: Any, first: Any, second: Any, step: int, group: Any) -> None:
        scale = torch._foreach_mul(second, group["rho"])
        torch._foreach_maximum_(scale, group["eps"])
        ratio = torch._foreach_div(first, scale)
        torch._foreach_clamp_min_(ratio, -1.0)
        torch._foreach_clamp_max_(ratio, 1.0)
        torch._foreach_add_(params, ratio, alpha=-group["lr"])

    @torch.no_grad()
    def update_curvature(self, batch_size: int) -> None:
        """Averages the squared gradients of the sampled loss into h.

        Args:
            batch_size: the number of labels, in all processes, over which the loss is the mean.
        """
        for group in self.param_groups:
            beta = group["betas"][1]
            for param in group["params"]:
                if param.grad is not None:
                    hessian = self._find_state(param)["hessian"]
                    hessian.mul_(beta).addcmul_(param.grad, param.grad, value=(1 - beta) * batch_size)
