"""The optimizer class: arguments, param_groups, state. The step itself is in functional.py."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, chain
from numbers import Real
from typing import Any, Literal, NamedTuple, overload

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
from adamnx_hf.optim.clipping import clip_divisor, total_norm
from adamnx_hf.optim.engines.triton import STEP_FIRST, is_capturing
from adamnx_hf.optim.formats import PARAM_ROUNDINGS, STATE_DTYPES, convert, load, new_moment, packs
from adamnx_hf.optim.functional import adamnx, count_on_device, moment_dtype, pack_steps, step_dtype
from adamnx_hf.optim.layout import Layout, Memo, check_tensors, look_at
from adamnx_hf.optim.schedules import BETA2_SCHEDULES, Beta2Schedule

__all__ = ["FORMATS", "AdamNX", "note_versions"]

# Options that older checkpoints, and the authors', lack, and what they mean by it.
_NOT_ALWAYS_SAVED = {
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "beta2_schedule": "adamnx",
    "state_dtype": None,
    "param_rounding": "nearest",
}

#: What the flags may be.
_FLAGS: dict[str, tuple[bool | None, ...]] = {
    "maximize": (True, False),
    "foreach": (True, False, None),
    "capturable": (True, False),
    "differentiable": (True, False),
    "fused": (True, False, None),
}

#: The memo of the norm of all gradients. Those of the groups have the groups' places.
NORM = -1

#: How things are stored: what an optimizer was given holds for what it loads, too.
FORMATS = ("state_dtype", "param_rounding")


class _Part(NamedTuple):
    """Some of a group's parameters, all that have gradients or one, as a step takes them."""

    group: dict[str, Any]
    columns: list[list[Any]]
    """Params, grads, exp_avgs, exp_avg_sqs and, with "kahan", param_residuals; None where there is none."""
    numbers: Sequence[int]
    states: list[dict[str, Any]]
    """Empty where they are still to be made."""
    layout: Layout | None
    """None where state is still to be made."""
    memo: Memo


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

    Used exactly as :class:`torch.optim.AdamW`. Early on v is the plain mean of all squared gradients;
    after about `horizon(beta2)` steps (9,950 at 0.99) it stands still and AdamNX becomes momentum SGD
    with a fixed diagonal preconditioner.

    Args:
        params: iterable of parameters, of `(name, parameter)` pairs, or of dicts defining groups. Real
            or complex, any device, dtype and layout; DTensors too. Moments are kept in at least float32.
        lr: learning rate η; a 1-element tensor with `fused`, `capturable` or the reference.
        betas: β1 and β2, both floats or both 1-element tensors, in [0, 1). Mind that β2 = 0.99 here
            plays the role of AdamW's 0.999: its horizon is 1/(1−β2)², not 1/(1−β2), steps.
        eps: term added to √v for numerical stability.
        weight_decay: decoupled weight decay λ.
        maximize: maximize the objective.
        foreach: True for torch's foreach kernels, False for the reference loop. None, with `fused` None
            too, picks the fastest that applies: fused on CPU, CUDA, MPS and XPU.
        capturable: keep `step` and the schedule on the parameters' device, for CUDA graphs.
        differentiable: let autograd through the step (reference loop).
        fused: True for a fused kernel (on CUDA our own Triton kernel, elsewhere torch's); an error, with
            the reason, where there is none. As with torch's, a :class:`torch.amp.GradScaler` then leaves it
            to the step to divide by the scale and to skip where there is an inf, with no synchronisation.
        beta2_schedule: how β̂2 rises: `"adamnx"`, or for the paper's ablation `"adam"` (the result is
            AdamW, while β1 is constant), `"adafactor"` (β2 has no effect) or `"adax"` (b = (1−β2)²). See
            :mod:`adamnx_hf.optim.schedules`.
        state_dtype: of the moments. None: float32, or float64 for such parameters. `"bfloat16"` (or
            `torch.bfloat16`) halves them, `"int8"` quarters those of matrices and leaves small tensors in
            float32. They are rounded stochastically, without which v would stand still after some 500 steps
            (:mod:`adamnx_hf.optim.formats`). Complex parameters keep complex moments.
        param_rounding: how parameters in bfloat16 are stored, where `"nearest"` loses what is below 2^-9 of
            them. `"stochastic"`: up or down at random, right on average. `"kahan"`: what rounding cut off is
            kept in `param_residual` and counts at the next step: 2 bytes a parameter, for the very results
            of a float32 master copy. Weights that somebody else writes between two steps start without it,
            as their version counter tells. Parameters of other dtypes are stored as ever.
        max_grad_norm: clip the norm of all gradients together to this, as part of the step: the result of
            :func:`torch.nn.utils.clip_grad_norm_` and then a step, with 8 bytes a parameter less to move.
            `.grad` stays as it is; the norm is in `grad_norm` afterwards. It knows plain tensors and
            DTensors (FSDP2): where each rank holds a part of the gradients in plain tensors (FSDP1,
            DeepSpeed ZeRO), let those clip. None: no clipping; inf: the norm alone.

    Raises:
        ValueError: a hyperparameter out of range.
        TypeError: one that is no number, or a flag that is no bool.
        RuntimeError: flags that exclude each other; in `step`, before anything is changed, sparse gradients
            or tensors of another shape than their parameter; an implementation that was asked for and cannot
            serve the parameters.

    State, as torch.optim names it: `step` (float64 0-d tensor), `exp_avg` (m), `exp_avg_sq` (v); with "kahan"
    also `param_residual`, which only :func:`adamnx_hf.optim.formats.join` can read. m and v
    *are* the bias-corrected moments, so a torch.optim.AdamW checkpoint is not one of AdamNX: convert it
    with :func:`adamnx_hf.from_adamw`.

    Attributes:
        grad_norm: with `max_grad_norm`, the norm that the last step found: a 0-d tensor on the device, so
            that reading it is what waits. None if there were no gradients.

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
        state_dtype: Literal["float32", "bfloat16", "int8"] | torch.dtype | None = None,
        param_rounding: Literal["nearest", "stochastic", "kahan"] = "nearest",
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
        _check(defaults)
        if max_grad_norm is not None:
            _check_number("max_grad_norm", max_grad_norm)
        if max_grad_norm is not None and not max_grad_norm > 0.0:
            raise ValueError(
                f"Invalid max_grad_norm: {max_grad_norm}; it must be above 0, or None for no clipping"
            )
        defaults["betas"] = (_to_scalar(betas[0]), _to_scalar(betas[1]))
        super().__init__(params, defaults)
        self.max_grad_norm = max_grad_norm
        self._results: dict[str, Tensor | None] = {}
        self._memos: defaultdict[int, Memo] = defaultdict(dict)

    @property
    def grad_norm(self) -> Tensor | None:
        """See the class. It is kept in a dict: torch.compile loses what is assigned to an optimizer."""
        return self._results.get("grad_norm")

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by torch.amp.GradScaler: as with torch's optimizers, True if `fused` was asked for.

        Not within Accelerate, whose schedulers wait only for a step that the GradScaler itself left out.
        """
        wrapper = getattr(vars(self).get("step"), "__module__", None) or ""
        return all(group["fused"] for group in self.param_groups) and not wrapper.startswith("accelerate.")

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: what torch.optim keeps, and the clipping."""
        return {**super().__getstate__(), "max_grad_norm": self.max_grad_norm, "_results": self._results}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch.optim does; its options are checked before anything is changed."""
        if isinstance(param_group, dict):  # torch says what is wrong with anything else
            checked = {**self.defaults, **param_group}
            _check(checked)
            # Not so in a saved state: schedules that move β1 put a number beside a tensor.
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
        """Fills in what older checkpoints, and the authors', lack."""
        super().__setstate__(state)
        vars(self).setdefault("max_grad_norm", None)
        vars(self).setdefault("_results", {})
        if "_memos" in vars(self) and any(group.get("capturable") for group in self.param_groups):
            # A CUDA graph may have been captured that still reads its tables there.
            vars(self).setdefault("_retired", []).append(self._memos)
        self._memos = defaultdict(dict)
        for group in self.param_groups:
            for option, default in _NOT_ALWAYS_SAVED.items():
                group.setdefault(option, default)
            for param in group["params"]:
                param_state = self.state.get(param, {})
                if "step" in param_state:
                    device = _step_device(param, group)
                    step = torch.as_tensor(param_state["step"], dtype=step_dtype(device)).reshape(())
                    param_state["step"] = step.to(device)
            pack_steps([self.state[p] for p in group["params"] if "step" in self.state.get(p, {})])

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Loads a state as it was saved: moments keep the dtype they have in `state_dict`.

        torch.optim casts them to the parameter's (pytorch #43706), which would lose float32 moments of
        bfloat16 parameters at every resume. Where this optimizer was given a `state_dtype` or a
        `param_rounding` of its own and the saved one is another, the state is converted, with a warning.

        Raises:
            ValueError: `state_dict` is another optimizer's, another model's, or damaged. Nothing has been
                changed then.
        """
        uncast: StateDict = {}
        formats = [
            {option: group[option] for option in FORMATS if group[option] != _NOT_ALWAYS_SAVED[option]}
            for group in self.param_groups
        ]

        def remember(_: Optimizer, state_dict: StateDict) -> None:
            check_state_dict(state_dict, self.param_groups)
            for group in state_dict["param_groups"]:
                try:
                    _check({**_NOT_ALWAYS_SAVED, **group})
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
            if changes := self._convert(formats):
                warnings.warn(
                    "AdamNX: this state was saved in another format, and has been converted to the one that "
                    f"the optimizer was given ({', '.join(changes)})",
                    stacklevel=2,
                )

        # The last of the pre-hooks and the first of the post-hooks: other hooks see the whole.
        remembering = self.register_load_state_dict_pre_hook(remember)
        restoring = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            remembering.remove()
            restoring.remove()

    def _convert(self, formats: list[dict[str, Any]]) -> list[str]:
        """Brings the state into the formats that each group was given, where it was given any.

        Returns:
            What was changed, in words.
        """
        changes: dict[str, None] = {}
        for group, given, offset in zip(self.param_groups, formats, self._offsets(), strict=True):
            group.update(given)
            for number, param in enumerate(group["params"], offset):
                state = self.state.get(param, {})
                if "exp_avg" not in state:
                    continue
                keeps, kept = _keeps_residual(param, group), "param_residual" in state
                if kept and not keeps:
                    del state["param_residual"]
                elif "param_rounding" in given and keeps and not kept:
                    state["param_residual"] = new_moment(param, torch.bfloat16)
                if kept != ("param_residual" in state):
                    changes[f"param_rounding={group['param_rounding']} for {param.dtype}"] = None
                dtype = _state_dtype(param, group)
                for key in ("exp_avg", "exp_avg_sq"):
                    if "state_dtype" in given and state[key].dtype != dtype:
                        changes[f"state_dtype={group['state_dtype']}"] = None
                        state[key] = convert(state[key], param, dtype, int(state["step"]), number, key)
        return list(changes)

    def _offsets(self) -> list[int]:
        """The number of each group's first parameter: they are numbered through, for the random bits."""
        sizes = [len(group["params"]) for group in self.param_groups]
        return list(accumulate(sizes, initial=0))[:-1]

    def dequantize(self, param: Tensor) -> dict[str, Tensor]:
        """`exp_avg` and `exp_avg_sq` of a parameter in at least float32, whatever they are kept in.

        Of a DTensor this rank's part. Empty before the first step.
        """
        state = self.state.get(param, {})
        moments = {key: state[key] for key in ("exp_avg", "exp_avg_sq") if key in state}
        if hasattr(param, "to_local"):
            param, moments = param.to_local(), {key: m.to_local() for key, m in moments.items()}
        values = {key: load(moment, param, key) for key, moment in moments.items()}
        return {key: value.to(moment_dtype(value.dtype)) for key, value in values.items()}

    def _init_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        # Lazily, and like the parameter as it is now: FSDP2 puts DTensors in its place after __init__.
        dtype, device = _state_dtype(param, group), _step_device(param, group)
        return {
            "step": torch.zeros((), dtype=step_dtype(device), device=device),
            "exp_avg": new_moment(param, dtype),
            "exp_avg_sq": new_moment(param, dtype),
        }

    def _with_grads(
        self, group: dict[str, Any], offset: int
    ) -> tuple[list[Tensor], list[Tensor], Sequence[int]]:
        """The group's parameters that have a gradient, the gradients, and the parameters' numbers."""
        params: list[Tensor] = group["params"]
        grads: list[Any] = [param.grad for param in params]
        numbers: Sequence[int] = range(offset, offset + len(params))
        if True in [grad is None for grad in grads]:
            numbers = [n for n, grad in zip(numbers, grads, strict=True) if grad is not None]
            params = [param for param, grad in zip(params, grads, strict=True) if grad is not None]
            grads = [grad for grad in grads if grad is not None]
        return params, grads, numbers

    def _part(
        self, index: int, params: list[Tensor], grads: list[Tensor], numbers: Sequence[int], memo: Memo
    ) -> _Part:
        """Looks at what a group's step will work on, before any group is stepped.

        Raises:
            RuntimeError: a gradient or a state has another shape than its parameter, or is on another device;
                a sparse gradient.
        """
        group = self.param_groups[index]

        def name(place: int) -> str:
            number, names = numbers[place] - self._offsets()[index], group.get("param_names", ())
            known = number < len(names)
            return f"parameter {names[number]!r}" if known else f"parameter {number} of group {index}"

        states: list[dict[str, Any]] = [self.state.get(param) or {} for param in params]
        columns = _columns(group, params, grads, states)
        layout = None
        if not all(states) or _lacks_residual(group, params, states):
            check_tensors(columns, name)
        else:
            layout = look_at(columns, memo, name)
        return _Part(group, columns, numbers, states, layout, memo)

    def _make_state(self, part: _Part) -> _Part:
        """Makes what is missing of the state of a group's parameters."""
        _refuse_capture()
        params, grads, *_ = part.columns
        states = [self.state[param] for param in params]
        if not all(states):
            for param, state in zip(params, states, strict=True):
                if not state:
                    state.update(self._init_state(param, part.group))
            pack_steps(states)
        for param, state in zip(params, states, strict=True):
            if _keeps_residual(param, part.group) and "param_residual" not in state:
                state["param_residual"] = new_moment(param, torch.bfloat16)
        columns = _columns(part.group, params, grads, states)
        return _Part(part.group, columns, part.numbers, states, None, part.memo)

    def _step_part(self, part: _Part, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Steps some of a group's parameters."""
        if part.layout is None:
            part = self._make_state(part)
        group, (params, grads, exp_avgs, exp_avg_sqs, *residuals) = part.group, part.columns
        if residuals:
            _clear_outdated(params, residuals[0], part.memo)
        if found_inf is not None:
            count_on_device(params, part.states)
        beta1, beta2 = group["betas"]
        adamnx(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            [state["step"] for state in part.states],
            foreach=group["foreach"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
            fused=group["fused"],
            grad_scale=grad_scale,
            found_inf=found_inf,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
            beta2_schedule=group["beta2_schedule"],
            param_rounding=group["param_rounding"],
            param_residuals=residuals[0] if residuals else None,
            numbers=part.numbers,
            memo=part.memo,
            layout=part.layout,
        )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Performs a single optimization step.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The closure's loss, if there is one.
        """
        # torch < 2.9 has it under the older name.
        getattr(
            self,
            "_accelerator_graph_capture_health_check",
            getattr(self, "_cuda_graph_capture_health_check", lambda: None),
        )()

        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        parts = [
            self._part(index, *self._with_grads(group, offset), self._memos[index])
            for index, (group, offset) in enumerate(zip(self.param_groups, self._offsets(), strict=True))
        ]
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if self.max_grad_norm is not None:
            norm = None
            if gradients := [grad.detach() for part in parts for grad in part.columns[1]]:
                norm = total_norm(gradients, self._memos[NORM])
                if grad_scale is not None:
                    grad_scale = grad_scale.to(norm.device, non_blocking=True)
                    norm = norm / grad_scale
                if not math.isinf(self.max_grad_norm):
                    divisor = clip_divisor(norm, self.max_grad_norm)
                    grad_scale = divisor if grad_scale is None else grad_scale * divisor
            self._results["grad_norm"] = norm

        for part in parts:
            self._step_part(part, grad_scale, found_inf)
            note_versions(part)
        return loss


def _columns(
    group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]]
) -> list[list[Any]]:
    """See :class:`_Part`."""
    columns: list[list[Any]] = [params, grads]
    columns += [[state.get("exp_avg") for state in states], [state.get("exp_avg_sq") for state in states]]
    if group["param_rounding"] == "kahan":
        pairs = zip(params, states, strict=True)
        columns.append(
            [state.get("param_residual") if _keeps_residual(param, group) else None for param, state in pairs]
        )
    return columns


def _step_device(param: Tensor, group: dict[str, Any]) -> torch.device:
    return param.device if group["capturable"] else torch.device("cpu")


def _state_dtype(param: Tensor, group: dict[str, Any]) -> torch.dtype:
    """Of the moments of `param`."""
    dtype = moment_dtype(param.dtype)
    asked = group["state_dtype"]
    if asked is None or dtype.is_complex:
        return dtype
    return torch.float32 if asked == "int8" and not packs(param) else STATE_DTYPES[asked]


def _keeps_residual(param: Tensor, group: dict[str, Any]) -> bool:
    return group["param_rounding"] == "kahan" and param.dtype == torch.bfloat16


def _clear_outdated(params: list[Tensor], residuals: list[Tensor | None], memo: Memo) -> None:
    """Sets residuals to 0 that belong to other weights than there are: they were written since our last step.

    After a state was loaded nothing is known of that step, and residuals belong to the weights they were
    saved with, whether those are loaded before or after.
    """
    if torch.compiler.is_compiling() or is_capturing():
        # What is compiled would set them to 0 at every call, and so would the replays of a graph; and nobody
        # notes down what versions those leave behind.
        memo.pop("versions", None)
        return
    versions = memo.get("versions", {})
    for param, residual in zip(params, residuals, strict=True):
        if residual is not None and id(param) in versions and versions[id(param)] != _version(param):
            residual.zero_()


def note_versions(part: _Part) -> None:
    """Notes down, where there are residuals, which weights they belong to."""
    if torch.compiler.is_compiling() or is_capturing():
        return
    if part.group["param_rounding"] == "kahan":
        kept = [param for param in part.columns[0] if _keeps_residual(param, part.group)]
        part.memo.setdefault("versions", {}).update({id(param): _version(param) for param in kept})
    elif "versions" in part.memo:  # a step without residuals: those of before belong to none of its weights
        part.memo["versions"] = dict.fromkeys(part.memo["versions"])


def _version(param: Tensor) -> tuple[int, ...]:
    """Returns a parameter's version counter, of a DTensor both that it has; () where it tells nothing.

    Whoever writes to a parameter raises it, save fused kernels. Inference tensors have none. Parameters that
    are parts of one buffer share theirs, which does not tell the one that was written.
    """
    if param.is_inference():
        return ()
    if hasattr(param, "to_local"):
        return param._version, param.to_local()._version
    if param.untyped_storage().nbytes() > param.nbytes:
        return ()
    return (param._version,)


def _lacks_residual(group: dict[str, Any], params: list[Tensor], states: list[dict[str, Any]]) -> bool:
    return group["param_rounding"] == "kahan" and any(
        _keeps_residual(param, group) and "param_residual" not in state
        for param, state in zip(params, states, strict=True)
    )


def _refuse_capture() -> None:
    """Raises where state is to be made while a CUDA graph is captured.

    The capture would only note down that the state is set to 0, and every replay would set it to 0 again.
    """
    if not torch.compiler.is_compiling() and is_capturing():
        raise RuntimeError(STEP_FIRST)


def _check_number(label: str, value: Any) -> None:
    if not isinstance(value, Real | Tensor) or isinstance(value, Fraction):  # which torch cannot take
        hint = "; YAML takes 1e-3 for text and 1.0e-3 for a number" if isinstance(value, str) else ""
        raise TypeError(f"Invalid {label}: {value!r} is not a number{hint}")


def _check(group: dict[str, Any]) -> None:
    """Raises where a group's options are out of range or exclude each other, in torch.optim.AdamW's words."""
    for option, choices in _FLAGS.items():
        if not any(group[option] is choice for choice in choices):
            allowed = "True, False or None" if None in choices else "True or False"
            raise TypeError(f"Invalid {option}: {group[option]!r}; it must be {allowed}")
    lr, betas, foreach, fused = group["lr"], group["betas"], group["foreach"], group["fused"]
    capturable = group["capturable"]
    if isinstance(lr, Tensor):
        if foreach and not capturable:
            raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
    for name, label in (
        ("lr", "learning rate"),
        ("eps", "epsilon value"),
        ("weight_decay", "weight_decay value"),
    ):
        _check_number(label, group[name])
        if not 0.0 <= group[name]:  # so phrased that nan is caught
            raise ValueError(f"Invalid {label}: {group[name]}; it must be at least 0")
        if not group[name] < math.inf:
            raise ValueError(f"Invalid {label}: {group[name]}; it must be finite")
    if not (hasattr(betas, "__len__") and hasattr(betas, "__getitem__")) or isinstance(betas, Mapping):
        raise TypeError(f"betas must be two numbers, β1 and β2, got {betas!r}")
    if len(betas) != 2:
        raise ValueError(f"betas must be two numbers, β1 and β2, got {betas}")
    for i, beta in enumerate(betas):
        _check_number(f"beta parameter at index {i}", beta)
        if isinstance(beta, Tensor):
            if foreach and not capturable:
                raise ValueError(
                    f"betas[{i}] as a Tensor is not supported for capturable=False and foreach=True"
                )
            if beta.numel() != 1:
                raise ValueError(f"Tensor betas[{i}] must be 1-element")
        if not 0.0 <= beta < 1.0:
            raise ValueError(
                f"Invalid beta parameter at index {i}: {beta}; it must be at least 0 and below 1"
            )
    state_dtype = group["state_dtype"]
    dtype = None if state_dtype is None else str(state_dtype).removeprefix("torch.")
    # 8 bits go by the name alone: they are a format of ours, not torch.int8.
    if dtype is not None and (dtype not in STATE_DTYPES or state_dtype is torch.int8):
        raise ValueError(
            f"Invalid state_dtype: {state_dtype}; choose one of {', '.join(STATE_DTYPES)}, or None"
        )
    group["state_dtype"] = dtype
    if group["param_rounding"] not in PARAM_ROUNDINGS:
        raise ValueError(
            f"Invalid param_rounding: {group['param_rounding']!r}; choose one of {', '.join(PARAM_ROUNDINGS)}"
        )
    if group["beta2_schedule"] not in [*BETA2_SCHEDULES]:  # a list, as what was given may have no hash
        raise ValueError(
            f"Invalid beta2_schedule: {group['beta2_schedule']!r}; choose one of {', '.join(BETA2_SCHEDULES)}"
        )
    if fused and foreach:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    if fused and group["differentiable"]:
        raise RuntimeError("`fused` does not support `differentiable`")
    if group["differentiable"] and (dtype in ("bfloat16", "int8") or group["param_rounding"] != "nearest"):
        raise RuntimeError(
            "`differentiable` does not support what is rounded by chance, through which no gradient flows: "
            f"state_dtype={dtype}, param_rounding={group['param_rounding']}"
        )
