"""Parts of an optimizer that are stepped together: their gradients, their state, their residuals.

The optimizers, and subclasses of them, step parameters with these functions: :func:`look_at_part` for all
parts, which raises before anything is changed, then :func:`step_part` and :func:`note_versions`.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamnx_hf.optim.engines import runtime
from adamnx_hf.optim.formats import choose_format, convert, keeps_residual
from adamnx_hf.optim.functional import adamnx
from adamnx_hf.optim.layout import Columns, Layout, Memo, check_tensors, look_at, pick
from adamnx_hf.optim.step.clock import count_on_device, find_step_dtype, pack_steps

__all__ = [
    "Part",
    "convert_state",
    "find_step_device",
    "list_offsets",
    "look_at_part",
    "note_versions",
    "step_part",
]

Group = dict[str, Any]
State = MutableMapping[Tensor, dict[str, Any]]


class Part(NamedTuple):
    """The parameters that a step takes from a group: all that have gradients, or a single one."""

    group: Group
    columns: Columns
    """Moments and residuals are None where they are still to be made."""
    numbers: Sequence[int]
    """Parameters are numbered through all groups, for the random bits."""
    states: list[dict[str, Any]]
    """Empty where they are still to be made."""
    layout: Layout | None
    """None where state is still to be made."""
    memo: Memo


def list_offsets(groups: Sequence[Group]) -> list[int]:
    """Returns the number of each group's first parameter."""
    return list(accumulate([len(group["params"]) for group in groups], initial=0))[:-1]


def look_at_part(
    groups: Sequence[Group],
    index: int,
    params: list[Tensor],
    first: int,
    state: Mapping[Tensor, Any],
    memo: Memo,
) -> Part:
    """Looks at what a step of a part will work on, before any part is stepped.

    Args:
        groups: the optimizer's.
        index: the group of the part.
        params: all parameters of the group, or one; those without a gradient are left out.
        first: the number of the first of them, see :func:`list_offsets`.
        state: the optimizer's.
        memo: the same dict at each step.

    Raises:
        RuntimeError: a gradient or a state has another shape than its parameter, or is on another device; a
            sparse gradient.
    """
    group = groups[index]
    grads: list[Any] = [param.grad for param in params]
    numbers: Sequence[int] = range(first, first + len(params))
    if True in [grad is None for grad in grads]:
        places = [place for place, grad in enumerate(grads) if grad is not None]
        params, grads, numbers = pick(params, places), pick(grads, places), pick(numbers, places)

    def name(place: int) -> str:
        number, names = numbers[place] - list_offsets(groups)[index], group.get("param_names", ())
        known = number < len(names)
        return f"parameter {names[number]!r}" if known else f"parameter {number} of group {index}"

    states: list[dict[str, Any]] = [state.get(param) or {} for param in params]
    columns = _gather(group, params, grads, states)
    layout = None
    lacks = columns.residuals is not None and any(
        rest is None and keeps_residual(param, "kahan")
        for param, rest in zip(params, columns.residuals, strict=True)
    )
    if all(states) and not lacks:
        layout = look_at(columns, memo, name)
    else:
        check_tensors(columns, name)
    return Part(group, columns, numbers, states, layout, memo)


def step_part(part: Part, state: State, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
    """Steps some of a group's parameters.

    Args:
        part: the parameters.
        state: the optimizer's, to which missing state is added.
        grad_scale, found_inf: see :func:`adamnx_hf.adamnx`.
    """
    if part.layout is None:
        part = _make_state(part, state)
    group, columns = part.group, part.columns
    _clear_outdated_residuals(part)
    if found_inf is not None:
        count_on_device(columns.params, part.states)
    beta1, beta2 = group["betas"]
    adamnx(
        columns.params,
        columns.grads,
        columns.exp_avgs,
        columns.exp_avg_sqs,
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
        param_residuals=columns.residuals,
        numbers=part.numbers,
        memo=part.memo,
        layout=part.layout,
    )


def find_step_device(param: Tensor, group: Group) -> torch.device:
    """Returns the device that the `step` of a parameter is kept on, unless a GradScaler has it moved."""
    return param.device if group["capturable"] else torch.device("cpu")


def convert_state(groups: Sequence[Group], state: State, storage: Sequence[Mapping[str, Any]]) -> list[str]:
    """Brings the state into the formats that each group was given, where it was given any.

    Args:
        groups: the optimizer's; they take over `storage`.
        state: the optimizer's.
        storage: for each group the options of :data:`adamnx_hf.optim.options.STORAGE` that it was given.

    Returns:
        What was changed, in words.
    """
    changes: dict[str, None] = {}
    for group, given, offset in zip(groups, storage, list_offsets(groups), strict=True):
        group.update(given)
        for number, param in enumerate(group["params"], offset):
            own = state.get(param, {})
            if "exp_avg" not in own:
                continue
            keeps, kept = keeps_residual(param, group["param_rounding"]), "param_residual" in own
            if kept and not keeps:
                del own["param_residual"]
            elif "param_rounding" in given and keeps and not kept:
                own["param_residual"] = torch.zeros_like(param)
            if kept != ("param_residual" in own):
                changes[f"param_rounding={group['param_rounding']} for {param.dtype}"] = None
            target = choose_format(param, group["state_dtype"])
            for key in ("exp_avg", "exp_avg_sq"):
                if "state_dtype" in given and own[key].dtype != target.dtype:
                    changes[f"state_dtype={group['state_dtype']}"] = None
                    own[key] = convert(own[key], param, target, int(own["step"]), number, key)
    return list(changes)


def _clear_outdated_residuals(part: Part) -> None:
    """Sets a residual to 0 if somebody else has written to its weight since our last step.

    After a state was loaded that step is unknown. Then residuals belong to the weights that they were saved
    with, whether these are loaded before or after.
    """
    if part.columns.residuals is None:
        return
    if torch.compiler.is_compiling() or runtime.is_capturing():
        # Compiled code would set them to 0 at every call, and so would the replays of a graph. Nobody notes
        # down the versions that these leave behind.
        part.memo.pop("versions", None)
        return
    versions = part.memo.get("versions", {})
    for param, residual in zip(part.columns.params, part.columns.residuals, strict=True):
        if residual is not None and id(param) in versions and versions[id(param)] != _read_version(param):
            residual.zero_()


def note_versions(part: Part) -> None:
    """Notes down which weights the residuals belong to, if there are any."""
    rounding = part.group["param_rounding"]
    needless = rounding != "kahan" and "versions" not in part.memo
    if needless or torch.compiler.is_compiling() or runtime.is_capturing():
        return
    if rounding == "kahan":
        kept = [param for param in part.columns.params if keeps_residual(param, rounding)]
        part.memo.setdefault("versions", {}).update({id(param): _read_version(param) for param in kept})
    else:  # a step without residuals: those of before belong to no weights
        part.memo["versions"] = dict.fromkeys(part.memo["versions"])


def _read_version(param: Tensor) -> tuple[int, ...]:
    """Returns a parameter's version counter, a DTensor's two, or () where a counter tells nothing.

    Every write to a parameter raises it, save those of fused kernels. Inference tensors have no counter.
    Parameters that are parts of one buffer share a counter, which does not tell the one that was written.
    """
    if param.is_inference():
        return ()
    if hasattr(param, "to_local"):
        return param._version, param.to_local()._version
    if param.untyped_storage().nbytes() > param.nbytes:
        return ()
    return (param._version,)


def _gather(group: Group, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]]) -> Columns:
    """Returns the columns of a step, with residuals if the group keeps any."""
    exp_avgs = [state.get("exp_avg") for state in states]
    exp_avg_sqs = [state.get("exp_avg_sq") for state in states]
    residuals = None
    if (rounding := group["param_rounding"]) == "kahan":
        pairs = zip(params, states, strict=True)
        residuals = [s.get("param_residual") if keeps_residual(p, rounding) else None for p, s in pairs]
    return Columns(params, grads, exp_avgs, exp_avg_sqs, residuals)


def _make_state(part: Part, state: State) -> Part:
    """Makes the missing state, which takes after the parameters as they are now.

    FSDP2 puts DTensors in the place of parameters after the optimizer was made.

    Raises:
        RuntimeError: a CUDA graph is being captured. The capture would only note down that the state is set
            to 0, and every replay would set it to 0 again.
    """
    if not torch.compiler.is_compiling() and runtime.is_capturing():
        raise RuntimeError(runtime.STEP_FIRST)
    group, params = part.group, part.columns.params
    states = [state[param] for param in params]
    for param, own in zip(params, states, strict=True):
        if not own:
            device, kept_as = find_step_device(param, group), choose_format(param, group["state_dtype"])
            own["step"] = torch.zeros((), dtype=find_step_dtype(device), device=device)
            own["exp_avg"], own["exp_avg_sq"] = kept_as.zeros(param), kept_as.zeros(param)
        if keeps_residual(param, group["param_rounding"]) and "param_residual" not in own:
            own["param_residual"] = torch.zeros_like(param)
    if not all(part.states):
        pack_steps(states)
    columns = _gather(group, params, part.columns.grads, states)
    return Part(group, columns, part.numbers, states, None, part.memo)
