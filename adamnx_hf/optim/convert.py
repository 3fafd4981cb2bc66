"""Conversion of a torch.optim.AdamW or Adam, in the middle of training, to AdamNX."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from adamnx_hf.optim.checkpoint import check_state
from adamnx_hf.optim.formats import find_moment_dtype
from adamnx_hf.optim.optimizer import AdamNX
from adamnx_hf.optim.options import STORAGE
from adamnx_hf.optim.part import convert_state
from adamnx_hf.optim.schedules import BETA2_SCHEDULES

__all__ = ["from_adamw"]

# Options of an Adam group that an AdamNX group has no use for.
_DROPPED = {"amsgrad", "decoupled_weight_decay"}


def from_adamw(optimizer: Adam, *, beta2: float = 0.99, verbose: bool = True, **options: Any) -> AdamNX:
    """Carries a live torch.optim.AdamW or Adam into AdamNX, in the middle of training.

    The new optimizer has the same parameters and groups (lr, β1, eps, weight decay, and whatever else a
    scheduler put there) and the same step count. It has the old moments divided by their bias correction,
    which is the form that AdamNX keeps. `optimizer` itself is left as it was. With `beta2_schedule="adam"`
    and `beta2` as before, training goes on as if nothing had happened, while β1 is constant.

    To convert a saved AdamW checkpoint, load it into AdamW and convert that.

    Args:
        optimizer: a torch.optim.AdamW or Adam, with any of their implementations.
        beta2: AdamNX's β2 for every group. AdamW's 0.999 would mean a horizon of a million steps.
        verbose: prints what was done.
        **options: further keyword arguments of :class:`AdamNX` (`beta2_schedule`, `fused`, ...), for all
            groups.

    Returns:
        An AdamNX over the same parameters. Learning-rate schedulers still hold the old optimizer: make
        them anew on this one.

    Raises:
        TypeError: `optimizer` is not a torch Adam or AdamW; an unknown option.
        ValueError: a hyperparameter is out of range, or a state does not fit its parameter.
    """
    if not isinstance(optimizer, Adam):
        raise TypeError(
            f"from_adamw takes a torch.optim.AdamW or Adam, got {type(optimizer).__name__}; "
            "if it is a wrapper (accelerate's AcceleratedOptimizer), pass its .optimizer"
        )
    for group in optimizer.param_groups:
        for i, param in enumerate(group["params"]):
            names = group.get("param_names", ())
            if state := optimizer.state.get(param):
                check_state(state, param, f"parameter {names[i]!r}" if i < len(names) else f"parameter {i}")
    notes = []
    groups = []
    for group in optimizer.param_groups:
        kept = {key: value for key, value in group.items() if key not in _DROPPED}
        if isinstance(kept["lr"], Tensor):  # schedulers change it in place
            kept["lr"] = kept["lr"].clone()
        kept["betas"] = (float(group["betas"][0]), beta2)
        kept.update({key: value for key, value in options.items() if key != "max_grad_norm"})
        if kept["fused"] and kept["capturable"]:
            kept["fused"] = None
            notes.append("fused=True dropped: not available together with capturable=True")
        if group["amsgrad"]:
            notes.append("amsgrad's running maximum dropped; v goes on from exp_avg_sq")
        if group["weight_decay"] and not group["decoupled_weight_decay"]:
            notes.append(
                f"weight_decay={group['weight_decay']} was added to the gradient (L2) and is now decoupled"
            )
        groups.append(kept)
    converted = AdamNX(groups, betas=(0.9, beta2), **options)

    steps = set()
    for old_group, group in zip(optimizer.param_groups, converted.param_groups, strict=True):
        for param in group["params"]:
            state = optimizer.state.get(param, {})
            step = float(state.get("step", 0))
            if step == 0:
                continue
            steps.add(step)
            new = converted.state[param]
            new["step"] = torch.as_tensor(state["step"]).detach().clone()
            for key, beta in zip(("exp_avg", "exp_avg_sq"), old_group["betas"], strict=True):
                new[key] = _debias(state[key], float(beta), step)
    storage = [{option: group[option] for option in STORAGE} for group in converted.param_groups]
    convert_state(converted.param_groups, converted.state, storage)
    # This puts `step` on the device where the new optimizer keeps it.
    converted.__setstate__(converted.__getstate__())

    if verbose:
        print(_describe_conversion(converted, steps, sorted(set(notes))))
    return converted


def _debias(moment: Tensor, beta: float, step: float) -> Tensor:
    correction = -math.expm1(step * math.log(beta)) if beta > 0 else 1.0
    return moment.to(find_moment_dtype(moment.dtype)) / correction


def _describe_conversion(converted: AdamNX, steps: set[float], notes: list[str]) -> str:
    total = sum(len(group["params"]) for group in converted.param_groups)
    group = converted.param_groups[0]
    lines = [
        f"from_adamw: {len(converted.state)} of {total} parameters had state, carried over into AdamNX "
        f"({len(converted.param_groups)} group{'s' * (len(converted.param_groups) > 1)}, "
        f"betas {group['betas']}, beta2_schedule {group['beta2_schedule']!r})"
    ]
    if steps:
        last = max(steps)
        weight = BETA2_SCHEDULES[group["beta2_schedule"]](last + 1, group["betas"][1])
        span = f"{min(steps):.0f} to {last:.0f}" if min(steps) < last else f"{last:.0f}"
        lines.append(
            f"at step {span}; bias correction folded into the moments; "
            f"the next squared gradient enters v with weight {float(weight):.2g}"
        )
    lines += notes
    lines.append("learning-rate schedulers still drive the old optimizer: make them anew on this one")
    return "\n  ".join(lines)
