"""Checks of a group's options. Errors have torch.optim.AdamW's words where it has the same option."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from adamnx_hf.optim.formats import FORMATS, PARAM_ROUNDINGS
from adamnx_hf.optim.schedules import BETA2_SCHEDULES
from adamnx_hf.optim.step.inputs import check_choice

__all__ = ["NOT_ALWAYS_SAVED", "STORAGE", "check_max_grad_norm", "check_options"]

#: Options that older checkpoints, and the authors', lack, with the values that are meant then.
NOT_ALWAYS_SAVED = {
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "beta2_schedule": "adamnx",
    "state_dtype": None,
    "param_rounding": "nearest",
}

#: Options that choose formats. A state that is loaded is converted to those that its optimizer was given.
STORAGE = ("state_dtype", "param_rounding")

_FLAGS = ("maximize", "foreach", "capturable", "differentiable", "fused")

_LABELS = {"lr": "learning rate", "eps": "epsilon value", "weight_decay": "weight_decay value"}


def check_options(group: dict[str, Any]) -> None:
    """Raises where a group's options are out of range or exclude each other.

    Args:
        group: all options; `state_dtype` becomes a name where it is a dtype.

    Raises:
        TypeError: a value of another type.
        ValueError: a value out of range.
        RuntimeError: options that exclude each other.
    """
    for flag in _FLAGS:
        choices = (True, False, NOT_ALWAYS_SAVED[flag])
        if not any(group[flag] is choice for choice in choices):
            allowed = "True, False or None" if None in choices else "True or False"
            raise TypeError(f"Invalid {flag}: {group[flag]!r}; it must be {allowed}")
    tensors_allowed = not group["foreach"] or group["capturable"]
    _check_tensor("lr", group["lr"], allowed=tensors_allowed)
    for name, label in _LABELS.items():
        value = group[name]
        _check_number(label, value)
        if not 0.0 <= value:  # `not 0.0 <= x` also rejects nan
            raise ValueError(f"Invalid {label}: {value}; it must be at least 0")
        if not value < math.inf:
            raise ValueError(f"Invalid {label}: {value}; it must be finite")
    _check_betas(group["betas"], tensors_allowed=tensors_allowed)
    group["state_dtype"] = _name_format(group["state_dtype"])
    check_choice("param_rounding", group["param_rounding"], PARAM_ROUNDINGS)
    check_choice("beta2_schedule", group["beta2_schedule"], BETA2_SCHEDULES)
    _check_together(group)


def check_max_grad_norm(value: Any) -> None:
    """Raises TypeError or ValueError where `max_grad_norm` is neither None nor a number above 0."""
    if value is None:
        return
    _check_number("max_grad_norm", value)
    if not value > 0.0:
        raise ValueError(f"Invalid max_grad_norm: {value}; it must be above 0, or None for no clipping")


def _check_number(label: str, value: Any) -> None:
    if not isinstance(value, Real | Tensor) or isinstance(value, Fraction):  # which torch cannot take
        hint = "; YAML takes 1e-3 for text and 1.0e-3 for a number" if isinstance(value, str) else ""
        raise TypeError(f"Invalid {label}: {value!r} is not a number{hint}")


def _check_tensor(name: str, value: Any, *, allowed: bool) -> None:
    if isinstance(value, Tensor):
        if not allowed:
            raise ValueError(f"{name} as a Tensor is not supported for capturable=False and foreach=True")
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element")


def _check_betas(betas: Any, *, tensors_allowed: bool) -> None:
    if not (hasattr(betas, "__len__") and hasattr(betas, "__getitem__")) or isinstance(betas, Mapping):
        raise TypeError(f"betas must be two numbers, β1 and β2, got {betas!r}")
    if len(betas) != 2:
        raise ValueError(f"betas must be two numbers, β1 and β2, got {betas}")
    for i, beta in enumerate(betas):
        _check_number(f"beta parameter at index {i}", beta)
        _check_tensor(f"betas[{i}]", beta, allowed=tensors_allowed)
        if not 0.0 <= beta < 1.0:
            raise ValueError(
                f"Invalid beta parameter at index {i}: {beta}; it must be at least 0 and below 1"
            )


def _name_format(state_dtype: Any) -> str | None:
    """Returns the name of a format that was given by its name or by its dtype."""
    if state_dtype is None:
        return None
    name = str(state_dtype).removeprefix("torch.")
    # A format of ours goes by its name alone: "int8" is not torch.int8.
    if name not in FORMATS or (isinstance(state_dtype, torch.dtype) and FORMATS[name].dtype != state_dtype):
        raise ValueError(f"Invalid state_dtype: {state_dtype}; choose one of {', '.join(FORMATS)}, or None")
    return name


def _check_together(group: dict[str, Any]) -> None:
    if group["fused"] and group["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    if group["fused"] and group["differentiable"]:
        raise RuntimeError("`fused` does not support `differentiable`")
    name, rounding = group["state_dtype"], group["param_rounding"]
    narrow = name is not None and FORMATS[name].narrow
    if group["differentiable"] and (narrow or rounding != "nearest"):
        raise RuntimeError(
            "`differentiable` does not support what is rounded by chance, through which no gradient flows: "
            f"state_dtype={name}, param_rounding={rounding}"
        )
