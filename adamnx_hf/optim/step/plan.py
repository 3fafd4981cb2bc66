"""The plan of a step: an engine for each kind of parameter, and which parameters go to an engine together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from adamnx_hf.optim.engines import choose_engine
from adamnx_hf.optim.engines.contract import Case, Engine
from adamnx_hf.optim.formats import find_moment_dtype
from adamnx_hf.optim.layout import Columns, Layout

__all__ = ["Engines", "choose_engines", "group_places"]

#: The engine for parameters of each device and dtype.
Engines = dict[tuple[torch.device, torch.dtype], Engine]


def choose_engines(
    columns: Columns,
    layout: Layout,
    *,
    host_schedule: bool,
    foreach: bool | None,
    fused: bool | None,
    differentiable: bool,
) -> Engines:
    """Returns the engine for each device and dtype among the parameters.

    Raises:
        RuntimeError: the implementation that was asked for cannot serve one of them.
    """
    kinds = {(device, dtype) for device in layout.devices for dtype in layout.dtypes[0]}
    if len(kinds) > 1:
        kinds = {(param.device, param.dtype) for param in columns.params}
    return {
        (device, dtype): choose_engine(
            Case(device.type, find_moment_dtype(dtype), host_schedule, differentiable, layout.wrapped),
            foreach=foreach,
            fused=fused,
        )
        for device, dtype in kinds
    }


def group_places(columns: Columns, engines: Engines, steps: list[float]) -> list[Sequence[int]]:
    """Returns groups of places: parameters that agree in what their engine does not mix.

    Args:
        columns: the step's tensors.
        engines: the result of :func:`choose_engines`.
        steps: the steps done so far for each parameter; empty where the device has them.
    """
    may_differ = next(iter(engines.values())).ABILITIES.steps_may_differ
    if len(engines) == 1 and (may_differ or len(set(steps)) <= 1):
        return [range(len(columns.params))]
    groups = defaultdict(list)
    for i, param in enumerate(columns.params):
        can = engines[param.device, param.dtype].ABILITIES
        dtype = find_moment_dtype(param.dtype) if can.dtypes else param.dtype
        step = steps[i] if steps and not can.steps_may_differ else None
        groups[param.device, dtype, step].append(i)
    return list(groups.values())
