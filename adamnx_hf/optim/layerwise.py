"""Gradient release: each parameter is stepped within the backward pass, as soon as its gradient is there."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adamnx_hf.optim.clipping import compute_clip_divisor, compute_total_norm
from adamnx_hf.optim.optimizer import AdamNX
from adamnx_hf.optim.part import list_offsets, look_at_part, note_versions, step_part

__all__ = ["LayerwiseAdamNX"]


class LayerwiseAdamNX(AdamNX):
    """:class:`AdamNX` that steps within `backward()` and frees each gradient at once.

    Only one layer's gradients exist at a time. That saves 4 bytes for each float32 parameter. The updates
    are AdamNX's own, and so are states and checkpoints.

    `backward()` changes the parameters. `step()` afterwards ends the step, and steps parameters that have a
    gradient from elsewhere. Call `step()`, and learning-rate schedulers after it, as with any optimizer. A
    second backward pass before `step()` is an error, as gradients that are gone cannot be accumulated.

    Args:
        params, lr, betas, eps, weight_decay, kwargs: see :class:`AdamNX`.
        max_grad_norm: clips the gradient of each parameter by that gradient's own norm. AdamNX clips by the
            norm of all gradients, but that is known only with the last one, when the first are gone. After
            `step()` that norm is in `grad_norm`.

    Every `backward()` that reaches a parameter steps it. Set `requires_grad_(False)` while a network's
    gradients are not to change it (a discriminator's in the generator's turn). A pass that breaks off has
    moved some of the parameters.

    This optimizer does not go with a :class:`torch.amp.GradScaler`, whose gradients are still scaled in the
    backward pass, nor with several processes, whose gradients are not averaged yet.

    Raises:
        ValueError: see :class:`AdamNX`; also for `differentiable` and `capturable`.
        RuntimeError: in `backward()`, at a second pass before `step()`, or with several processes.

    Examples:
        >>> optimizer = LayerwiseAdamNX(model.parameters(), lr=1e-5)
        >>> loss_fn(model(inputs), targets).backward()  # steps, and leaves no gradients
        >>> optimizer.step()
    """

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return False

    #: The index of its group and its own number, by the id of each parameter.
    _places: dict[int, tuple[int, int]]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch.optim does, and hooks its parameters."""
        if isinstance(param_group, dict):
            for option in ("differentiable", "capturable"):
                if {**self.defaults, **param_group}[option]:
                    raise ValueError(f"LayerwiseAdamNX does not support {option}=True; AdamNX does")
        super().add_param_group(param_group)
        if "_stepped" not in vars(self):  # within __init__
            self._begin()
        self._hook(len(self.param_groups) - 1)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Hooks the parameters of a copy, too."""
        super().__setstate__(state)
        if "_stepped" not in vars(self):
            self._begin()
            for index in range(len(self.param_groups)):
                self._hook(index)

    def _begin(self) -> None:
        self._stepped: set[int] = set()
        self._squares: list[Tensor] = []

    def _hook(self, index: int) -> None:
        first = list_offsets(self.param_groups)[index]
        for number, param in enumerate(self.param_groups[index]["params"], first):
            vars(self).setdefault("_places", {})[id(param)] = index, number
            self._attach(param)

    def _attach(self, param: Any) -> None:
        """Has the backward pass step `param`, for this optimizer and no longer for an older one.

        An older optimizer's hook is found in the parameter's own list of hooks. A weak reference to the
        parameter instead would be in the way of :func:`torch.utils.swap_tensors`.
        """
        hooks = param._post_accumulate_grad_hooks
        if hooks is not None:
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Release)]:
                del hooks[key]
            # After tensors were swapped the list is still here, but autograd has lost it.
            param._post_accumulate_grad_hooks = hooks
        if param.requires_grad:
            param.register_post_accumulate_grad_hook(_Release(self))

    @torch.no_grad()
    def _release(self, param: Tensor) -> None:
        """Steps one parameter and frees its gradient."""
        if id(param) in self._stepped:
            raise RuntimeError(
                "LayerwiseAdamNX: a parameter has a second gradient before step(). Gradients are released as "
                "they come and cannot be accumulated: call step() after each backward(), with "
                "gradient_accumulation_steps=1; or use AdamNX. After a backward() that broke off, or that "
                "was not meant for these parameters, call zero_grad()"
            )
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise RuntimeError(
                "LayerwiseAdamNX: with several processes it would step before their gradients are averaged; "
                "use AdamNX, with FSDP2 to share the memory out"
            )
        index, number = self._places[id(param)]
        part = look_at_part(self.param_groups, index, [param], number, self.state, self._memos[id(param)])
        divisor = None
        if self.max_grad_norm is not None:
            norm = compute_total_norm([grad.detach() for grad in part.columns.grads])
            self._squares.append(norm.square())
            divisor = compute_clip_divisor(norm, self.max_grad_norm)
        step_part(part, self.state, divisor, None)
        # Autograd may have kept the parameter for the rest of this pass (a weight that is used twice, once
        # detached). It must raise then, and not go on with the new value; fused kernels do not tell it.
        torch.autograd.graph.increment_version(param)
        note_versions(part)
        param.grad = None
        self._stepped.add(id(param))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops all gradients. A backward pass that broke off counts as ended."""
        super().zero_grad(set_to_none)
        self._begin()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Ends the step that `backward()` has done.

        Args:
            closure: reevaluates the model, runs `backward()` and returns the loss.

        Returns:
            The closure's loss, if there is one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._release(param)
                    self._attach(param)  # the hook was lost, or there was none while the parameter was frozen
        if self.max_grad_norm is not None:
            norm = None
            if self._squares:
                device = self._squares[0].device
                norm = torch.stack([square.to(device) for square in self._squares]).sum().sqrt()
            self._results["grad_norm"] = norm
        self._begin()
        return loss


class _Release:
    """The hook on a parameter. It does not keep an optimizer alive that nobody else holds."""

    def __init__(self, optimizer: LayerwiseAdamNX) -> None:
        self.optimizer = weakref.ref(optimizer)

    def __call__(self, param: Tensor) -> None:
        if (optimizer := self.optimizer()) is not None:
            optimizer._release(param)
