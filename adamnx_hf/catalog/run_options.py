"""AdamNX's options that depend on the Trainer's run: β2 for its length, and clipping."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any, Literal

from trainer_patches import RunInfo

__all__ = ["fit_layerwise_to_run", "fit_to_run"]


def fit_to_run(
    kwargs: dict[str, Any], run: RunInfo, *, horizon: Literal["auto"] | float | None = None
) -> dict[str, Any]:
    """Solves for β2 and takes clipping over from the Trainer, where `optim_args` asks for it.

    Args:
        kwargs: AdamNX's keyword arguments.
        run: the Trainer's run.
        horizon: `"auto"`: as many horizons in this run as in the paper's (6.28). A number: the horizon
            itself, in steps.

    Returns:
        `kwargs` with the β2 in its betas.

    Raises:
        ValueError: `differentiable` is set; `horizon` is below 1, or given together with beta2, or `"auto"`
            where the number of steps is not known; `max_grad_norm` in optim_args stands beside another one in
            TrainingArguments, or the optimizer cannot know the whole norm.
    """
    if kwargs.get("differentiable"):
        raise ValueError(
            "optim_args: differentiable=true cannot be used in a Trainer, which trains leaves of the graph; "
            "leave it out"
        )
    if kwargs.get("max_grad_norm") is not None:
        _take_over_clipping(kwargs["max_grad_norm"], run)
    return _solve_horizon(kwargs, run, horizon)


def fit_layerwise_to_run(
    kwargs: dict[str, Any], run: RunInfo, *, horizon: Literal["auto"] | float | None = None
) -> dict[str, Any]:
    """Does what :func:`fit_to_run` does for gradients that are released during the backward pass.

    TrainingArguments' default max_grad_norm is switched off, with a warning: the norm of all gradients is
    never there to clip by.

    Args:
        kwargs, run, horizon: see :func:`fit_to_run`.

    Raises:
        ValueError: see :func:`fit_to_run`; also for gradient accumulation, fp16, several processes, and
            clipping that cannot be done.
    """
    args, name = run.args, "optim='adamnx_layerwise'"
    if args.gradient_accumulation_steps > 1:
        raise ValueError(
            f"{name} releases gradients as they come and cannot accumulate them: set "
            f"gradient_accumulation_steps=1 (now {args.gradient_accumulation_steps}), or use optim='adamnx'"
        )
    if args.fp16:
        raise ValueError(f"{name} cannot work with fp16's scaled gradients: use bf16=True, or optim='adamnx'")
    if args.world_size > 1:
        raise ValueError(
            f"{name} would step before the gradients of {args.world_size} processes are averaged: use "
            "optim='adamnx', with FSDP2 to share the memory out"
        )
    default = type(args).__dataclass_fields__["max_grad_norm"].default
    if args.max_grad_norm not in (None, 0):
        if args.max_grad_norm != default:
            raise ValueError(
                f"{name} cannot clip by the norm of all gradients, as max_grad_norm={args.max_grad_norm} "
                "asks: set it to 0, or clip each parameter's by its own norm: "
                f'optim_args="max_grad_norm={args.max_grad_norm}"'
            )
        if kwargs.get("max_grad_norm") is None:
            warnings.warn(
                f"{name}: gradients are not clipped, as the norm of all of them is never known. To clip each "
                f'parameter\'s by its own norm: optim_args="max_grad_norm={default}"; to have no warning: '
                "max_grad_norm=0",
                stacklevel=2,
            )
        run.write("max_grad_norm", 0.0)
    return _solve_horizon(kwargs, run, horizon)


def _solve_horizon(
    kwargs: dict[str, Any], run: RunInfo, horizon: Literal["auto"] | float | None
) -> dict[str, Any]:
    if horizon is None:
        return kwargs
    if clash := run.given & {"beta2", "betas"}:
        raise ValueError(f"optim_args: horizon={horizon} solves for beta2; give it or {min(clash)}, not both")
    from adamnx_hf.optim.schedules import beta2_for_horizon  # here, as it imports torch

    if horizon == "auto":
        beta2 = beta2_for_horizon(run.num_training_steps)
    elif math.isfinite(horizon) and horizon >= 1:
        beta2 = beta2_for_horizon(horizon, horizons_per_run=1)
    else:
        raise ValueError(f"optim_args: horizon={horizon} must be 'auto' or at least 1 step")
    return kwargs | {"betas": (kwargs["betas"][0], beta2)}


def _take_over_clipping(max_grad_norm: float, run: RunInfo) -> None:
    """Switches the Trainer's own clipping off: the step clips, and reads the gradients once less."""
    if sharded := _plainly_sharded():
        raise ValueError(
            f"optim_args: max_grad_norm={max_grad_norm} cannot be used with {sharded}, where the optimizer "
            "sees only a part of the gradients; use TrainingArguments(max_grad_norm=...)"
        )
    trainers = run.args.max_grad_norm
    default = type(run.args).__dataclass_fields__["max_grad_norm"].default
    if trainers not in (None, 0, default, max_grad_norm):
        raise ValueError(
            f"optim_args: max_grad_norm={max_grad_norm}, but TrainingArguments(max_grad_norm={trainers}); "
            "give one of them"
        )
    run.write("max_grad_norm", 0.0)


def _plainly_sharded() -> str | None:
    """Returns the name of the engine that shards gradients as plain tensors, None if none is at work."""
    state = getattr(sys.modules.get("accelerate.state"), "AcceleratorState", None)
    if state is None or not state._shared_state:
        return None
    kind = state().distributed_type.value
    if kind == "FSDP" and getattr(state().fsdp_plugin, "fsdp_version", 1) != 1:
        return None
    return {"FSDP": "FSDP1", "DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}.get(kind)
