"""AdaX, as it was published."""

from __future__ import annotations

from typing import Any

import torch

from adamnx_hf.catalog.foreach import ForeachOptimizer
from adamnx_hf.optim.schedules import adax

__all__ = ["AdaX"]


class AdaX(ForeachOptimizer):
    r"""AdaX (arXiv:2004.09740) with decoupled weight decay.

    $$
    \begin{aligned}
    m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
    v &\leftarrow \hat\beta_{2,t} v + (1 - \hat\beta_{2,t}) g^2 \\
    \theta &\leftarrow (1 - \eta\lambda)\,\theta - \eta\, m / (\sqrt v + \epsilon)
    \end{aligned}
    $$

    with :func:`adamnx_hf.optim.schedules.adax` for the second moment, and a first moment that is not
    corrected for its start at 0: that is what sets it apart from `AdamNX(beta2_schedule="adax")`.

    Args:
        params: parameters or groups.
        lr: learning rate η.
        betas: β1, and β2 with b = (1 − β2)², the paper's 1e-4 by default.
        eps: ε.
        weight_decay: λ.

    Raises:
        ValueError: an argument is out of range.
    """

    _moments = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, bias_correction=False
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Marks states of older versions as uncorrected, so that AdamNX refuses them."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("bias_correction", False)

    def _update(self, params: Any, grads: Any, first: Any, second: Any, step: int, group: Any) -> None:
        weight = float(adax(float(step), group["betas"][1]))
        torch._foreach_mul_(second, 1 - weight)
        torch._foreach_addcmul_(second, grads, grads, weight)
        root = torch._foreach_sqrt(second)
        torch._foreach_add_(root, group["eps"])
        torch._foreach_addcdiv_(params, first, root, -group["lr"])
