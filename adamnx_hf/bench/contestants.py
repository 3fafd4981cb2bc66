"""The optimizers that are timed."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
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


_ADAMNX, _ADAMW = "adamnx_hf.optim:AdamNX", "torch.optim:AdamW"

#: Makes an AdamNX of parameters, with its options.
make_adamnx = partial(_make_optimizer, _ADAMNX)


def _define(what: str, target: str, options: Mapping[str, Any], **facts: Any) -> Contestant:
    return Contestant(what, partial(_make_optimizer, target, **options), **facts)


def _take_from_catalog(name: str, **facts: Any) -> Contestant:
    """Returns the optimizer that `optim=name` stands for, with its label and its defaults."""
    known = OPTIMIZERS[name]
    return _define(known.label, str(known.target), known.defaults or {}, **facts)


#: The contestants, by the name that `--optimizers` takes. AdamNX's are named by the dtype of the moments and
#: the rounding of the parameters.
CONTESTANTS: dict[str, Contestant] = {
    "adamnx": _take_from_catalog("adamnx", clips=True, timed=_BOTH),
    "adamnx_bf16": _define("AdamNX, bfloat16 state", _ADAMNX, {"state_dtype": "bfloat16"}),
    "adamnx_int8": _define("AdamNX, 8-bit state", _ADAMNX, {"state_dtype": "int8"}),
    "adamnx_bf16_stochastic": _take_from_catalog("adamnx_bf16", dtype="bfloat16"),
    "adamnx_bf16_kahan": _define(
        "AdamNX, bfloat16 state, Kahan",
        _ADAMNX,
        {"state_dtype": "bfloat16", "param_rounding": "kahan"},
        dtype="bfloat16",
    ),
    "adamnx_int8_stochastic": _take_from_catalog("adamnx_8bit", dtype="bfloat16"),
    BASELINE: _define("torch AdamW, fused", _ADAMW, {"fused": True}, clips=True, timed=_BOTH),
    "adamw_torch_foreach": _define(
        "torch AdamW, foreach", _ADAMW, {"foreach": True}, clips=True, timed=_BOTH
    ),
    "adamw_optimi": _define(
        "optimi AdamW, Triton", "optimi:AdamW", {"triton": True},
        devices=("cuda",), needs="optimi", timed=("cuda",),
    ),
    "adamw_optimi_kahan": _define(
        "optimi AdamW, Kahan", "optimi:AdamW", {"kahan_sum": True}, needs="optimi", dtype="bfloat16"
    ),
    "adamw_torchao_8bit": _define(
        "torchao AdamW, 8-bit state", "torchao.optim:AdamW8bit", {},
        needs="torchao", timed=("cuda",), compiles_each_shape=True,
    ),
    "adamw_torchao_stochastic": _define(
        "torchao AdamW, stochastic", "torchao.optim:_AdamW", {"bf16_stochastic_round": True},
        needs="torchao", dtype="bfloat16", compiles_each_shape=True,
    ),
    "adamw_bnb_8bit": _define(
        "bitsandbytes AdamW, 8-bit state", "bitsandbytes.optim:AdamW8bit", {},
        needs="bitsandbytes", timed=("cuda",),
    ),
}  # fmt: skip


def label_contestant(name: str) -> str:
    """Returns the words for a row's name; the name itself if it is no contestant's."""
    plain = name.removesuffix(CLIPPED)
    what = CONTESTANTS[plain].what if plain in CONTESTANTS else plain
    return f"{what}, with clipping" if name.endswith(CLIPPED) else what
