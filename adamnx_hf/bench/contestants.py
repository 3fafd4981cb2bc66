"""The optimizers that are timed."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from adamnx_hf.catalog import OPTIMIZERS

__all__ = ["BASELINE", "CLIPPED", "CONTESTANTS", "Contestant", "label_contestant", "make_adamnx"]

#: The optimizer that the times of the others are divided by.
BASELINE = "adamw_torch_fused"
#: The end of a row's name where gradients are clipped before or within the step.
CLIPPED = " + clip"

#: The learning rate of all: so small that parameters stay what they are over many steps.
_LR = 1e-6

_BOTH = ("cpu", "cuda")


@dataclasses.dataclass(frozen=True)
class Contestant:
    """An optimizer to time."""

    what: str
    make: Callable[[list[Any]], Any]
    devices: tuple[str, ...] = _BOTH
    needs: str | None = None
    clips: bool = False
    """Whether a step with clipping is timed too."""
    dtype: str | None = None
    """The dtype of the parameters that the optimizer takes, if it takes only one."""
    timed: tuple[str, ...] = ()
    """The devices on which the optimizer takes part without `--memory`."""
    compiles_each_shape: bool = False
    """Whether the optimizer compiles once for each shape. Unless `--optimizers` names it, it then takes part
    only in the cases of `--memory`, which have few shapes."""


def _make_optimizer(target: str, params: list[Any], **options: Any) -> Any:
    """Returns an optimizer of `params` with these options; `target` is `"module:attribute"` of its class."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)(params, lr=_LR, **options)


#: Makes an AdamNX of parameters, with its options.
make_adamnx = partial(_make_optimizer, "adamnx_hf.optim:AdamNX")


def _take_from_catalog(name: str, **facts: Any) -> Contestant:
    """Returns the optimizer that `optim=name` stands for, with its label and its defaults."""
    known = OPTIMIZERS[name]
    make = partial(_make_optimizer, str(known.target), **(known.defaults or {}))
    return Contestant(known.label, make, **facts)


#: The contestants, by the name that `--optimizers` takes. AdamNX's are named by the dtype of the moments and
#: the rounding of the parameters.
CONTESTANTS: dict[str, Contestant] = {
    "adamnx": _take_from_catalog("adamnx", clips=True, timed=_BOTH),
    "adamnx_bf16": Contestant("AdamNX, bfloat16 state", partial(make_adamnx, state_dtype="bfloat16")),
    "adamnx_int8": Contestant("AdamNX, 8-bit state", partial(make_adamnx, state_dtype="int8")),
    "adamnx_bf16_stochastic": _take_from_catalog("adamnx_bf16", dtype="bfloat16"),
    "adamnx_bf16_kahan": Contestant(
        "AdamNX, bfloat16 state, Kahan",
        partial(make_adamnx, state_dtype="bfloat16", param_rounding="kahan"),
        dtype="bfloat16",
    ),
    "adamnx_int8_stochastic": _take_from_catalog("adamnx_8bit", dtype="bfloat16"),
    BASELINE: Contestant(
        "torch AdamW, fused",
        partial(_make_optimizer, "torch.optim:AdamW", fused=True),
        clips=True,
        timed=_BOTH,
    ),
    "adamw_torch_foreach": Contestant(
        "torch AdamW, foreach",
        partial(_make_optimizer, "torch.optim:AdamW", foreach=True),
        clips=True,
        timed=_BOTH,
    ),
    "adamw_optimi": Contestant(
        "optimi AdamW, Triton",
        partial(_make_optimizer, "optimi:AdamW", triton=True),
        ("cuda",),
        needs="optimi",
        timed=("cuda",),
    ),
    "adamw_optimi_kahan": Contestant(
        "optimi AdamW, Kahan",
        partial(_make_optimizer, "optimi:AdamW", kahan_sum=True),
        needs="optimi",
        dtype="bfloat16",
    ),
    "adamw_torchao_8bit": Contestant(
        "torchao AdamW, 8-bit state",
        partial(_make_optimizer, "torchao.optim:AdamW8bit"),
        needs="torchao",
        timed=("cuda",),
        compiles_each_shape=True,
    ),
    "adamw_torchao_stochastic": Contestant(
        "torchao AdamW, stochastic",
        partial(_make_optimizer, "torchao.optim:_AdamW", bf16_stochastic_round=True),
        needs="torchao",
        dtype="bfloat16",
        compiles_each_shape=True,
    ),
    "adamw_bnb_8bit": Contestant(
        "bitsandbytes AdamW, 8-bit state",
        partial(_make_optimizer, "bitsandbytes.optim:AdamW8bit"),
        needs="bitsandbytes",
        timed=("cuda",),
    ),
}


def label_contestant(name: str) -> str:
    """Returns the words for a row's name; the name itself if it is no contestant's."""
    plain = name.removesuffix(CLIPPED)
    what = CONTESTANTS[plain].what if plain in CONTESTANTS else plain
    return f"{what}, with clipping" if name.endswith(CLIPPED) else what
