"""The optimizers that `optim=` names.

To add one: a record in :data:`OPTIMIZERS` and, if the optimizer is ours, its file. The Trainer then takes the
name, `adamnx-hf compare` trains it as a contender, and draws its `decay`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from adamnx_hf.catalog.graft import fit_graft
from adamnx_hf.catalog.run_options import fit_layerwise_to_run, fit_to_run
from adamnx_hf.common.lazy import import_on_access
from trainer_patches import register_optimizer

if TYPE_CHECKING:
    from adamnx_hf.catalog.adax import AdaX
    from adamnx_hf.catalog.sophia import SophiaG

__all__ = ["OPTIMIZERS", "AdaX", "Optimizer", "SophiaG", "find_decay", "register"]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer's record: all that is known before its module is imported."""

    name: str
    """The word in `TrainingArguments(optim=...)`."""
    label: str
    """The name that people read."""
    kind: str
    """The name of its class, as results.json has it."""
    target: str | None = None
    """`"module:attribute"` of its class or factory. None: Transformers knows the name itself."""
    defaults: Mapping[str, Any] | None = None
    """Keyword arguments that are passed unless the user sets them."""
    configure: Callable[..., dict[str, Any]] | None = None
    """Fits the keyword arguments to a run; see :func:`trainer_patches.register_optimizer`."""
    decay: str | None = None
    """The name of the schedule by which its second moment v decays, in
    :data:`adamnx_hf.optim.schedules.BETA2_SCHEDULES`. None: it has no v, or one with no schedule of ours."""


_OURS, _TORCHS = "adamnx_hf.optim", "adamnx_hf.catalog.torch_optimizers"

#: The optimizers by their `optim=` names.
OPTIMIZERS: dict[str, Optimizer] = {
    optimizer.name: optimizer
    for optimizer in (
        Optimizer("adamnx", "AdamNX", "AdamNX", f"{_OURS}:AdamNX", configure=fit_to_run, decay="adamnx"),
        Optimizer(
            name="adamnx_bf16",
            label="AdamNX, bfloat16 state, stochastic",
            kind="AdamNX",
            target=f"{_OURS}:AdamNX",
            defaults={"state_dtype": "bfloat16", "param_rounding": "stochastic"},
            configure=fit_to_run,
            decay="adamnx",
        ),
        Optimizer(
            name="adamnx_8bit",
            label="AdamNX, 8-bit state, stochastic",
            kind="AdamNX",
            target=f"{_OURS}:AdamNX",
            defaults={"state_dtype": "int8", "param_rounding": "stochastic"},
            configure=fit_to_run,
            decay="adamnx",
        ),
        Optimizer(
            name="adamnx_layerwise",
            label="AdamNX, layer by layer",
            kind="LayerwiseAdamNX",
            target=f"{_OURS}:LayerwiseAdamNX",
            configure=fit_layerwise_to_run,
            decay="adamnx",
        ),
        # The optimizers that the paper compares with.
        Optimizer("adam", "Adam", "Adam", f"{_TORCHS}:adam", decay="adam"),
        Optimizer("adamw", "AdamW", "AdamW", f"{_TORCHS}:adamw", decay="adam"),
        Optimizer("adax", "AdaX", "AdaX", "adamnx_hf.catalog.adax:AdaX", decay="adax"),
        Optimizer("momentum_sgd", "SGD with momentum", "SGD", f"{_TORCHS}:momentum_sgd"),
        Optimizer("radam", "RAdam", "RAdam", f"{_TORCHS}:radam", decay="adam"),
        Optimizer("lion", "Lion", "Lion", "adamnx_hf.catalog.lion:Lion"),
        Optimizer("sophiag", "SophiaG", "SophiaG", "adamnx_hf.catalog.sophia:SophiaG"),
        Optimizer("graft", "Graft", "Graft", "adamnx_hf.catalog.graft:Graft", configure=fit_graft),
        # Transformers' own names.
        Optimizer("adamw_torch_fused", "AdamW", "AdamW", decay="adam"),
        Optimizer("adafactor", "Adafactor", "Adafactor", decay="adafactor"),
    )
}

#: Classes that none of these names stands for.
_OTHERS = {"NAdam": "adam"}


def find_decay(kind: str) -> str | None:
    """Returns the schedule of v in optimizers of a class, by the class's name; None if it is none of ours."""
    known = (optimizer.decay for optimizer in OPTIMIZERS.values() if optimizer.kind == kind)
    return next(known, _OTHERS.get(kind))


def register() -> None:
    """Registers the names that Transformers lacks, when `adamnx_hf` is imported."""
    for one in OPTIMIZERS.values():
        if one.target is None:
            continue
        try:
            register_optimizer(
                one.name, one.target, defaults=one.defaults, configure=one.configure, overwrite=True
            )
        except ValueError as error:  # Transformers has come to know the name itself: no reason not to import
            warnings.warn(str(error), RuntimeWarning, stacklevel=3)


# They import torch, which `import adamnx_hf` does without.
__getattr__ = import_on_access(__name__, {"AdaX": "adax", "SophiaG": "sophia"})
