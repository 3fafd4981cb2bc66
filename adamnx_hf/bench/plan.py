"""A benchmark's plan: the device, the cases and contestants, and how often each is timed."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Any

from adamnx_hf.bench.cases import CASES, TUNED, Case, list_default_cases
from adamnx_hf.bench.contestants import CONTESTANTS, Contestant

__all__ = ["Plan", "make_plan", "takes_part"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The measurements of a report: of which optimizers, on which parameters, where and how often."""

    device: str
    """`"cuda"` or `"cpu"`."""
    cases: Sequence[str]
    contestants: Sequence[str] = ()
    named: bool = False
    """Whether the user named the contestants."""
    left_out: Sequence[str] = ()
    """A line for each case or contestant whose package is not installed."""
    rounds: int = 30
    """Turns of each contestant."""
    steps: int = 5
    """Timed steps in a turn."""
    memory: bool = False
    """Whether ways to store moments and parameters are compared, with bytes beside times."""
    tune: bool = False
    """Whether AdamNX's kernel is tuned instead."""
    deadline: float | None = None
    """The value of `time.monotonic` after which no measurement of the tuning begins."""


def make_plan(
    device: str, cases: Sequence[str] | None = None, contestants: Sequence[str] | None = None, **plan: Any
) -> Plan:
    """Returns a plan of what is installed and fits `device`.

    Args:
        device: `"cuda"` or `"cpu"`.
        cases: names of cases. Default: all for the device, or the one that is tuned.
        contestants: names of contestants. Default: all for the device.
        plan: other fields of :class:`Plan`.
    """
    memory, tune = plan.get("memory", False), plan.get("tune", False)
    names = contestants or [n for n, c in CONTESTANTS.items() if memory or device in c.timed]
    cases = cases or ([TUNED[device]] if tune else list_default_cases(device, memory=memory))
    wanted: list[tuple[str, Case | Contestant]] = [(name, CONTESTANTS[name]) for name in names]
    wanted += [(name, CASES[name]) for name in cases]
    missing = {
        name: f"{name}: {thing.needs} is not installed"
        for name, thing in wanted
        if device in thing.devices and thing.needs and importlib.util.find_spec(thing.needs) is None
    }
    return Plan(
        device,
        cases=[name for name in cases if name not in missing],
        contestants=[n for n in names if device in CONTESTANTS[n].devices and n not in missing],
        named=bool(contestants),
        left_out=list(missing.values()),
        **plan,
    )


def takes_part(contestant: str, case: str, *, named: bool) -> bool:
    """Returns whether a contestant takes part in a case.

    Args:
        contestant: its name.
        case: the case's name.
        named: whether the user named the contestants.
    """
    optimizer = CONTESTANTS[contestant]
    if optimizer.compiles_each_shape and not named and not CASES[case].memory:
        return False
    return optimizer.dtype in (None, CASES[case].dtype)
