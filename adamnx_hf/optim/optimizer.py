"""The optimizer class: arguments, param_groups, checkpoints. The step itself is in functional.py.

A subclass that steps parameters in another order uses the functions of :mod:`adamnx_hf.optim.part`, as
:class:`adamnx_hf.LayerwiseAdamNX` does.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    ParamsT,
    StateDict,
    _to_scalar,
    _use_grad_for_differentiable,
)

from adamnx_hf.optim.checkpoint import check_state_dict
from adamnx_hf.optim.clipping import compute_clip_divisor, compute_total_norm
from adamnx_hf.optim.formats import ParamRounding, StateDtype, unpack
from adamnx_hf.optim.layout import Memo
from adamnx_hf.optim.options import NOT_ALWAYS_SAVED, STORAGE, check_max_grad_norm, check_options
from adamnx_hf.optim.part import (
    convert_state,
    find_step_device,
    list_offsets,
    look_at_part,
    note_versions,
    step_part,
)
from adamnx_hf.optim.schedules import Beta2Schedule
from adamnx_hf.optim.step.clock import find_step_dtype, pack_steps

__all__ = ["AdamNX"]

#: The key of the memo for the norm of all gradients. Groups have their places as keys.
NORM = -1


class AdamNX(Optimizer):
    r"""AdamW whose second-moment decay rate rises to 1 (AdamNX, Algorithm 1 of the paper).

    $$
    \begin{aligned}
    \theta &\leftarrow \theta\,(1 - \eta\lambda) \\
    m &\leftarrow \hat\beta_{1,t}\, m + (1 - \hat\beta_{1,t})\, g, &
        \hat\beta_{1,t} &= (\beta_1 - \beta_1^t) / (1 - \beta_1^t) \\
    v &\leftarrow \hat\beta_{2,t}\, v + (1 - \hat\beta_{2,t})\, g^2, &
        \hat\beta_{2,t} &= (1 - q^{t-1}) / (1 - q^t), \quad q = \beta_2^{1-\beta_2} \\
    \theta &\leftarrow \theta - \eta\, m / (\sqrt v + \epsilon)
    \end{aligned}
    $$

    AdamNX is used exactly as :class:`torch.optim.AdamW` is. Early on v is the plain mean of all squared
    gradients. After about `horizon(beta2)` steps (9,950 at 0.99) v stands still, and AdamNX becomes momentum
    SGD with a fixed diagonal preconditioner.

    Args:
        params: iterable of parameters, of `(name, parameter)` pairs, or of dicts that define groups.
            Parameters may be real or complex, of any device, dtype and layout, and DTensors.
        lr: the learning rate η. It may be a 1-element tensor with `fused`, `capturable` or the reference.
        betas: β1 and β2 in [0, 1), both floats or both 1-element tensors. Here β2 = 0.99 plays the role of
            AdamW's 0.999: its horizon is 1/(1−β2)² steps, not 1/(1−β2).
        eps: the term that is added to √v for numerical stability.
        weight_decay: the decoupled weight decay λ.
        maximize: maximizes the objective.
        foreach: True asks for torch's foreach kernels, False for the reference loop. If `fused` is None too,
            None picks the fastest that applies: fused on CPU, CUDA, MPS and XPU.
        capturable: keeps `step` and the schedule on the parameters' device, for CUDA graphs.
        differentiable: lets autograd through the step, by the reference loop.
        fused: True asks for a fused kernel: on CUDA our own Triton kernel, elsewhere torch's. Where there is
            none, that is an error that gives the reason. As with torch's optimizers, a
            :class:`torch.amp.GradScaler` then leaves it to the step to divide by the scale and to skip at an
            inf, without a synchronisation.
        beta2_schedule: how β̂2 rises: `"adamnx"`, or for the paper's ablation `"adam"` (the result is
            AdamW, while β1 is constant), `"adafactor"` (β2 has no effect) or `"adax"` (b = (1−β2)²). See
            :mod:`adamnx_hf.optim.schedules`.
        state_dtype: the format of the moments. None means float32, or float64 for float64 parameters.
            `"bfloat16"` (or `torch.bfloat16`) halves their memory. `"int8"` quarters that of matrices and
            leaves small tensors in float32. Both are rounded stochastically, as v would otherwise stand still
            after some 500 steps (:mod:`adamnx_hf.optim.formats`). Complex parameters keep complex moments.
        param_rounding: how bfloat16 parameters are stored; other dtypes are rounded to nearest. `"nearest"`
            loses updates below 2^-9 of the parameter. `"stochastic"` rounds up or down at random, right on
            average. `"kahan"` keeps what rounding cut off in `param_residual` for the next step: 2 bytes a
            parameter, for the very results of a float32 master copy. If somebody else writes a weight
            between two steps, which its version counter tells, its residual is set to 0.
        max_grad_norm: clips the norm of all gradients together to this as part of the step. The result is
            that of :func:`torch.nn.utils.clip_grad_norm_` and a step, with 8 bytes a parameter less to move.
            `.grad` stays as it is, and the norm is in `grad_norm` afterwards. Plain tensors and DTensors
            (FSDP2) are supported. Where each rank holds a part of the gradients in plain tensors (FSDP1,
            DeepSpeed ZeRO), let that library clip. None turns clipping off; inf computes the norm alone.

    Raises:
        ValueError: a hyperparameter is out of range.
        TypeError: a hyperparameter is no number, or a flag no bool.
        RuntimeError: flags exclude each other. In `step`, before anything is changed: gradients are sparse,
            a tensor has another shape than its parameter, or the implementation that was asked for cannot
            serve the parameters.

    The state has torch.optim's names: `step` (float64 0-d tensor), `exp_avg` (m), `exp_avg_sq` (v); with
    "kahan" also `param_residual`, which only :func:`adamnx_hf.optim.formats.join` can read. m and v *are* the
    bias-corrected moments. So a torch.optim.AdamW checkpoint is not one of AdamNX: convert it with
    :func:`adamnx_hf.from_adamw`.

    Attributes:
        grad_norm: with `max_grad_norm`, the norm that the last step found: a 0-d tensor on the device, where
            only reading its value waits. None if there were no gradients.

    Examples:
        >>> optimizer = AdamNX(model.parameters(), lr=1e-3)
        >>> loss_fn(model(inputs), targets).backward()
        >>> optimizer.step()
        >>> optimizer.zero_grad()

    Reference: "AdamNX: An Adam improvement algorithm based on a novel exponential decay mechanism for the
    second-order moment estimate"; the authors' code: https://github.com/mengzhu0308/AdamNX.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        beta2_schedule: Beta2Schedule = "adamnx",
        state_dtype: StateDtype | torch.dtype | None = None,
        param_rounding: ParamRounding = "nearest",
        max_grad_norm: float | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "beta2_schedule": beta2_schedule,
            "state_dtype": state_dtype,
            "param_rounding": param_rounding,
        }
        check_options(defaults)
        check_max_grad_norm(max_grad_norm)
        defaults["betas"] = (_to_scalar(betas[0]), _to_scalar(betas[1]))
        super().__init__(params, defaults)
        self.max_grad_norm = max_grad_norm
        self._results: dict[str, Tensor | None] = {}
        self._memos: defaultdict[int, Memo] = defaultdict(dict)

    @property
    def grad_norm(self) -> Tensor | None:
        """The norm of the last step, kept in a dict, as torch.compile loses what is set on an optimizer."""
        return self._results.get("grad_norm")

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tells torch.amp.GradScaler, as torch's optimizers do, whether `fused` was asked for.

        Within Accelerate it is False: its schedulers wait only for steps that the GradScaler itself left out.
        """
        wrapper = getattr(vars(self).get("step"), "__module__", None) or ""
        return all(group["fused"] for group in self.param_groups) and not wrapper.startswith("accelerate.")

    def __getstate__(self) -> dict[str, Any]:
        """Returns the attributes that pickle and copy keep: torch.optim's, and the clipping."""
        return {**super().__getstate__(), "max_grad_norm": self.max_grad_norm, "_results": self._results}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch.optim does; its options are checked before anything is changed."""
        if isinstance(param_group, dict):  # torch says what is wrong with anything else
            checked = {**self.defaults, **param_group}
            check_options(checked)
            # A saved state may mix them: schedules that move β1 put a number beside a tensor.
            if len({isinstance(beta, Tensor) for beta in checked["betas"]}) > 1:
                raise ValueError("betas must be either both floats or both Tensors")
            if "state_dtype" in param_group:
                param_group["state_dtype"] = checked["state_dtype"]
            if "max_grad_norm" in param_group:
                raise ValueError(
                    "max_grad_norm is for the gradients of all groups together: give it to AdamNX itself"
                )
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fills in the options that older checkpoints, and the authors', lack."""
        super().__setstate__(state)
        vars(self).setdefault("max_grad_norm", None)
        vars(self).setdefault("_results", {})
        if "_memos" in vars(self) and any(group.get("capturable") for group in self.param_groups):
            # A CUDA graph may have been captured that still reads its tables there.
            vars(self).setdefault("_retired", []).append(self._memos)
        self._memos = defaultdict(dict)
        for group in self.param_groups:
            for option, default in NOT_ALWAYS_SAVED.items():
                group.setdefault(option, default)
            counted = [(p, self.state[p]) for p in group["params"] if "step" in self.state.get(p, {})]
            for param, own in counted:
                device = find_step_device(param, group)
                step = torch.as_tensor(own["step"], dtype=find_step_dtype(device))
                own["step"] = step.reshape(()).to(device)
            pack_steps([own for _, own in counted])

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Loads a state as it was saved: moments keep the dtype that they have in `state_dict`.

        torch.optim casts them to the parameter's (pytorch #43706), which would lose float32 moments of
        bfloat16 parameters at every resume. Where this optimizer was given a `state_dtype` or a
        `param_rounding` of its own and the saved one is another, the state is converted, with a warning.

        Raises:
            ValueError: `state_dict` is another optimizer's, another model's, or damaged. Nothing is changed
                then.
        """
        uncast: StateDict = {}
        storage = [
            {option: group[option] for option in STORAGE if group[option] != NOT_ALWAYS_SAVED[option]}
            for group in self.param_groups
        ]

        def remember(_: Optimizer, state_dict: StateDict) -> None:
            check_state_dict(state_dict, self.param_groups)
            for group in state_dict["param_groups"]:
                try:
                    check_options({**NOT_ALWAYS_SAVED, **group})
                except (ValueError, TypeError, RuntimeError) as error:
                    raise ValueError(f"this state_dict's options cannot be AdamNX's: {error}") from error
            uncast.update(state_dict)

        def restore(_: Optimizer) -> None:
            ids = chain.from_iterable(group["params"] for group in uncast["param_groups"])
            params = chain.from_iterable(group["params"] for group in self.param_groups)
            for id_, param in zip(ids, params, strict=True):
                for key, saved in uncast["state"].get(id_, {}).items():
                    loaded = self.state[param][key]
                    if not isinstance(saved, Tensor):
                        continue
                    if key == "step" and saved.dtype != torch.float32:  # which torch has cast it to
                        loaded.copy_(saved.reshape(()))
                    elif key != "step" and loaded.dtype != saved.dtype:
                        self.state[param][key] = saved.to(param.device)
            if changes := convert_state(self.param_groups, self.state, storage):
                warnings.warn(
                    "AdamNX: this state was saved in another format, and has been converted to the one that "
                    f"the optimizer was given ({', '.join(changes)})",
                    stacklevel=2,
                )

        # This is the last pre-hook and the first post-hook, so that other hooks see the whole state.
        remembering = self.register_load_state_dict_pre_hook(remember)
        restoring = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            remembering.remove()
            restoring.remove()

    def dequantize(self, param: Tensor) -> dict[str, Tensor]:
        """Returns `exp_avg` and `exp_avg_sq` of a parameter in at least float32, whatever their format.

        A DTensor gives this rank's part. The dict is empty before the first step.
        """
        state = self.state.get(param, {})
        return {key: unpack(state[key], param, key) for key in ("exp_avg", "exp_avg_sq") if key in state}

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Performs one optimization step.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The closure's loss, if there is one.
        """
        # torch < 2.9 has this check under the older name.
        getattr(
            self,
            "_accelerator_graph_capture_health_check",
            getattr(self, "_cuda_graph_capture_health_check", lambda: None),
        )()

        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        offsets = list_offsets(self.param_groups)
        parts = []
        for index, group in enumerate(self.param_groups):
            params, memo = group["params"], self._memos[index]
            parts.append(look_at_part(self.param_groups, index, params, offsets[index], self.state, memo))
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if self.max_grad_norm is not None:
            norm = None
            if gradients := [grad.detach() for part in parts for grad in part.columns.grads]:
                norm = compute_total_norm(gradients, self._memos[NORM])
                if grad_scale is not None:
                    grad_scale = grad_scale.to(norm.device, non_blocking=True)
                    norm = norm / grad_scale
                divisor = compute_clip_divisor(norm, self.max_grad_norm)
                if divisor is not None:
                    grad_scale = divisor if grad_scale is None else grad_scale * divisor
            self._results["grad_norm"] = norm

        for part in parts:
            step_part(part, self.state, grad_scale, found_inf)
            note_versions(part)
        return loss
