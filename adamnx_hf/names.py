"""The `optim=` names this package registers with Transformers."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

from adamnx_hf.optim.schedules import beta2_for_horizon
from trainer_patches import RunInfo, register_optimizer

__all__ = ["NAMES", "fit_horizon", "register"]


def fit_horizon(
    kwargs: dict[str, Any], run: RunInfo, *, horizon: Literal["auto"] | float | None = None
) -> dict[str, Any]:
    """Solves β2 where `optim_args` asks for a horizon.

    Args:
        kwargs: AdamNX's keyword arguments.
        run: the Trainer's run.
        horizon: `"auto"`: as many horizons in this run as in the paper's (6.28). A number: the horizon
            itself, in steps.

    Returns:
        `kwargs` with the β2 in its betas.

    Raises:
        ValueError: horizon below 1, or together with beta2; `"auto"` where the number of steps is not known.
    """
    if horizon is None:
        return kwargs
    if clash := run.given & {"beta2", "betas"}:
        raise ValueError(f"optim_args: horizon={horizon} solves for beta2; give it or {min(clash)}, not both")
    if horizon == "auto":
        beta2 = beta2_for_horizon(run.num_training_steps)
    elif math.isfinite(horizon) and horizon >= 1:
        beta2 = beta2_for_horizon(horizon, horizons_per_run=1)
    else:
        raise ValueError(f"optim_args: horizon={horizon} must be 'auto' or at least 1 step")
    return kwargs | {"betas": (kwargs["betas"][0], beta2)}


_BASELINES = "adamnx_hf.baselines:"

#: The `optim=` names, with what they stand for and how it is configured.
NAMES: dict[str, dict[str, Any]] = {
    "adamnx": {"optimizer": "adamnx_hf.optim:AdamNX", "configure": fit_horizon},
    # What the paper compares with.
    "adam": {"optimizer": f"{_BASELINES}adam"},
    "adamw": {"optimizer": f"{_BASELINES}adamw"},
    "adax": {"optimizer": f"{_BASELINES}AdaX"},
    "momentum_sgd": {"optimizer": f"{_BASELINES}momentum_sgd"},
    "radam": {"optimizer": f"{_BASELINES}radam"},
    "lion": {"optimizer": f"{_BASELINES}Lion"},
    "sophiag": {"optimizer": f"{_BASELINES}SophiaG"},
}


def register() -> None:
    """Registers all our names. Called when `adamnx_hf` is imported."""
    for name, registration in NAMES.items():
        try:
            register_optimizer(name, overwrite=True, **registration)
        except ValueError as error:  # Transformers has come to know the name itself: no reason not to import
            warnings.warn(str(error), RuntimeWarning, stacklevel=3)
