"""Engines: ways to carry out one AdamNX step on many tensors at once, all with the same results to rounding.

To add one: write a module that keeps the contract (:mod:`adamnx_hf.optim.engines.contract`) and add a line to
:data:`ENGINES`.
"""

from __future__ import annotations

from typing import cast

import torch

from adamnx_hf.optim.engines import aten, foreach, reference, triton
from adamnx_hf.optim.engines.contract import Case, Engine

__all__ = ["ENGINES", "choose_engine"]

#: Engines by name, the fastest first. The default is the first that can serve.
ENGINES: dict[str, Engine] = {
    "triton": cast(Engine, triton),
    "aten": cast(Engine, aten),
    "foreach": cast(Engine, foreach),
    "reference": cast(Engine, reference),
}


def choose_engine(case: Case, *, foreach: bool | None, fused: bool | None) -> Engine:
    """Returns the engine for a case, by torch.optim's rules for `foreach` and `fused`.

    If both are None that is the fastest that can serve, if one is True an engine of that kind, otherwise the
    reference. Within torch.compile `fused=True` is also served by what the compiler itself fuses.

    Raises:
        RuntimeError: no engine that was asked for can serve; the message gives each one's reason.
    """
    reasons = {}
    for name in _list_candidates(foreach, fused):
        reason = ENGINES[name].why_not(case)
        if reason is None:
            return ENGINES[name]
        reasons[name] = reason
    asked = "fused=True" if fused else "foreach=True"
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise RuntimeError(
        f"AdamNX: {asked} cannot be used here ({why}). Leave it at None for the fastest that can."
    )


def _list_candidates(foreach: bool | None, fused: bool | None) -> list[str]:
    """Returns the names of the engines that the flags allow, the fastest first."""
    able = [(name, engine.ABILITIES) for name, engine in ENGINES.items()]
    compiling = torch.compiler.is_compiling()
    if fused and compiling:
        return [name for name, can in able if can.compiled and can.flag]
    if fused or foreach:
        flag = "fused" if fused else "foreach"
        return [name for name, can in able if can.flag == flag]
    if fused is None and foreach is None:
        return [name for name, can in able if can.compiled == "traced" or not compiling]
    return [name for name, can in able if can.flag is None]
