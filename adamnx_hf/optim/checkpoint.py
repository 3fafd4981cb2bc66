"""Checks of a saved optimizer state, made before anything of it is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from adamnx_hf.optim.formats import find_format

__all__ = ["check_state", "check_state_dict"]

_MOMENTS = ("exp_avg", "exp_avg_sq")

# Options that every version of AdamNX, and the authors' own, saves with a group.
_OPTIONS = {"lr", "betas", "eps", "weight_decay"}

# Options that tell optimizers whose state has the same names with another meaning.
_FOREIGN = {
    "momentum_decay": "torch.optim.NAdam",
    "decoupled_weight_decay": "torch.optim.RAdam or another of torch's Adams",
    "correct_bias": "Transformers' former AdamW",
    "bias_correction": "adamnx_hf.catalog.AdaX or another optimizer that may leave its moments uncorrected",
}


def check_state_dict(state_dict: Any, param_groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises where `state_dict` is not the state of an AdamNX over `param_groups`' parameters.

    Parameters without state are fine (they were frozen, or had no gradient yet), and so are further
    entries, which stay where they are.

    Args:
        state_dict: the result of `Optimizer.state_dict`.
        param_groups: the groups of the optimizer that is to load the state. Different numbers of groups or of
            parameters are left to torch.optim, which refuses them.

    Raises:
        ValueError: `state_dict` is another optimizer's, an 8-bit one's, another model's, or damaged. The
            message names the parameter and what is wrong.
    """
    if not (isinstance(state_dict, Mapping) and {"state", "param_groups"} <= set(state_dict)):
        found = sorted(state_dict) if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise ValueError(
            f"not the state_dict of an optimizer: 'state' and 'param_groups' are expected, found {found}"
        )
    saved_groups, states = state_dict["param_groups"], state_dict["state"]
    if not isinstance(states, Mapping):
        raise ValueError(
            f"this state_dict is damaged: 'state' is a {type(states).__name__} instead of a dict"
        )
    for group in saved_groups:
        if not (isinstance(group, Mapping) and "params" in group):
            found = sorted(map(str, group)) if isinstance(group, Mapping) else type(group).__name__
            raise ValueError(
                f"this state_dict is damaged: a group of parameters has 'params' and options, found {found}"
            )
        if "amsgrad" in group:
            raise ValueError(
                "this state_dict was saved by torch.optim.Adam or AdamW, whose moments are not "
                "bias-corrected as AdamNX's are. Load it into that optimizer, then convert it: "
                "optimizer = adamnx_hf.from_adamw(adamw)"
            )
        for option, optimizer in _FOREIGN.items():
            if option in group:
                raise ValueError(
                    f"this state_dict was saved by {optimizer} ({option!r} is among its options), whose "
                    "moments are not AdamNX's: start with a new optimizer state"
                )

    for group, saved_group in zip(param_groups, saved_groups, strict=False):
        names = group.get("param_names", saved_group.get("param_names", ()))
        for i, (param, id_) in enumerate(zip(group["params"], saved_group["params"], strict=False)):
            name = f"parameter {names[i]!r}" if i < len(names) else f"parameter {id_}"
            state = states.get(id_, {})
            if not isinstance(state, Mapping):
                raise ValueError(
                    f"the state of {name} is damaged: a {type(state).__name__} instead of a dict"
                )
            if state:
                check_state(state, param, name)

    ids = {id_ for group in saved_groups for id_ in group["params"]}
    if unknown := [id_ for id_ in states if id_ not in ids]:
        raise ValueError(
            f"this state_dict is damaged: it has states of {', '.join(map(repr, unknown[:3]))}"
            f"{', …' if len(unknown) > 3 else ''}, which are no parameters of its groups"
        )

    # Some optimizers keep no state, and no new optimizer has one: options tell them.
    for group in saved_groups:
        if not set(group) >= _OPTIONS:
            options = ", ".join(sorted(str(option) for option in group if option != "params"))
            raise ValueError(
                f"this state_dict was not saved by AdamNX: its options are {options}. Start with a new "
                "optimizer state"
            )


def check_state(state: Mapping[str, Any], param: Tensor, name: str) -> None:
    """Raises where `state` cannot be the state of `param`.

    Args:
        state: the state of one parameter, not empty.
        param: the parameter that is to have the state.
        name: the name of the parameter in the message.

    Raises:
        ValueError: the state does not fit; the message says why.
    """
    if missing := [key for key in ("step", *_MOMENTS) if key not in state]:
        raise ValueError(
            f"this state_dict was not saved by AdamNX: the state of {name} has {', '.join(map(str, state))}, "
            f"and not {', '.join(missing)}. Start with a new optimizer state"
        )
    for key in (*_MOMENTS, "param_residual"):
        if not isinstance(state.get(key, param), Tensor):
            kind = type(state[key]).__name__
            raise ValueError(f"{key} of {name} is damaged: a {kind} instead of a tensor")
    for key in _MOMENTS:
        moment = state[key]
        if moment.layout != torch.strided:
            raise ValueError(f"{key} of {name} is sparse ({moment.layout}), which AdamNX's moments never are")
        if moment.is_meta and not param.is_meta:
            raise ValueError(f"{key} of {name} is on the meta device: its values have not been loaded")
        kept_as = find_format(moment.dtype)
        if kept_as.packed and kept_as.fits(param) and moment.shape == kept_as.shape(param):
            continue
        if moment.shape != param.shape:
            raise ValueError(
                f"{key} of {name} has shape {tuple(moment.shape)}, the parameter has {tuple(param.shape)}: "
                "the state is of another model, or its parameters are in another order"
            )
        if not (moment.is_floating_point() or moment.is_complex()) or moment.dtype.itemsize < 2:
            raise ValueError(
                f"{key} of {name} is {moment.dtype}: a quantized state, which AdamNX cannot go on from"
            )
        if moment.is_complex() and not param.is_complex():
            raise ValueError(f"{key} of {name} is {moment.dtype}, the parameter is {param.dtype}")
    if _has_negative(state["exp_avg_sq"]):
        raise ValueError(f"exp_avg_sq of {name} is damaged: an average of squares, it has values below 0")
    if "param_residual" in state:
        residual = state["param_residual"]
        if residual.shape != param.shape or residual.dtype != torch.bfloat16:
            raise ValueError(
                f"param_residual of {name} is {residual.dtype} of shape {tuple(residual.shape)}; it must be "
                f"torch.bfloat16 of the parameter's, {tuple(param.shape)}"
            )
        if residual.layout != torch.strided or (residual.is_meta and not param.is_meta):
            raise ValueError(f"param_residual of {name} is damaged: it is sparse or has no values")
    _check_step(state["step"], name)


def _has_negative(moment: Tensor) -> bool:
    """Returns whether a moment, or this rank's part of a DTensor, has values below 0."""
    moment = moment.to_local() if hasattr(moment, "to_local") else moment
    if moment.is_meta or is_fake(moment) or find_format(moment.dtype).packed:
        return False
    values = torch.view_as_real(moment.detach()) if moment.is_complex() else moment.detach()
    return bool((values < 0).any())


def _check_step(step: Any, name: str) -> None:
    if isinstance(step, Tensor):
        if step.numel() != 1:
            raise ValueError(f"step of {name} is damaged: {step.numel()} numbers instead of one")
        if step.device.type == "meta" or is_fake(step):
            return  # it has no value
    try:
        if isinstance(step, str | bytes) or (isinstance(step, Tensor) and step.is_complex()):
            raise TypeError
        value = float(step)
    except (TypeError, ValueError):
        raise ValueError(f"step of {name} is damaged: {step!r} instead of a number") from None
    if not (math.isfinite(value) and value >= 0 and value.is_integer()):
        raise ValueError(f"step of {name} is damaged: {value} instead of a number of steps")
