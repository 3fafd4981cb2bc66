"""The plan of a step: buckets of parameters that one engine can step together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch

from adamnx_hf.optim.engines import choose_engine
from adamnx_hf.optim.engines.contract import Case, Engine, Weight
from adamnx_hf.optim.formats import moment_dtype
from adamnx_hf.optim.layout import Columns, Layout, pick
from adamnx_hf.optim.step.clock import Clock

__all__ = ["Bucket", "Engines", "choose_engines", "plan"]

#: The engine for parameters of each device and dtype.
Engines = dict[tuple[torch.device, torch.dtype], Engine]


class Bucket(NamedTuple):
    """Parameters that agree in what their engine does not mix: device, and maybe dtype and step."""

    engine: Engine
    dtype: torch.dtype
    """The dtype of the arithmetic."""
    places: Sequence[int]
    columns: Columns
    layout: Layout
    step: Weight
    """The next t: a number, or a tensor with one element for each parameter."""


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
            Case(device.type, moment_dtype(dtype), host_schedule, differentiable, layout.wrapped),
            foreach=foreach,
            fused=fused,
        )
        for device, dtype in kinds
    }


def plan(columns: Columns, layout: Layout, engines: Engines, clock: Clock) -> list[Bucket]:
    """Returns the buckets that a step consists of; nothing is changed yet.

    Raises:
        ValueError: a `step` of float32 has come to its end.
    """
    params, steps = columns.params, clock.values()
    groups: list[Sequence[int]] = [range(len(params))]
    may_differ = next(iter(engines.values())).ABILITIES.steps_may_differ
    if len(engines) > 1 or not (len(set(steps)) <= 1 or may_differ):
        groups = _group(columns, engines, steps)
    buckets = []
    for places in groups:
        first, own = params[places[0]], columns.pick(places)
        engine, dtype = engines[first.device, first.dtype], moment_dtype(first.dtype)
        own_layout = layout if len(groups) == 1 else Layout.of(own)
        step = _next_step(clock, steps, first.device, places)
        buckets.append(Bucket(engine, dtype, places, own, own_layout, step))
    return buckets


def _group(columns: Columns, engines: Engines, steps: list[float]) -> list[Sequence[int]]:
    """Returns the places of parameters that can go to an engine together."""
    grouped = defaultdict(list)
    for i, param in enumerate(columns.params):
        can = engines[param.device, param.dtype].ABILITIES
        dtype = moment_dtype(param.dtype) if can.dtypes else param.dtype
        step = steps[i] if steps and not can.steps_may_differ else None
        grouped[param.device, dtype, step].append(i)
    return list(grouped.values())


def _next_step(clock: Clock, steps: list[float], device: torch.device, places: Sequence[int]) -> Weight:
    """Returns the next t: a number if the host knows the steps and they agree, else a tensor."""
    if not clock.on_host:
        return clock.next_on(device, places)
    chosen: list[float] = pick(steps, places)
    if len(set(chosen)) == 1:
        return chosen[0] + 1
    return torch.tensor(chosen, dtype=torch.float64, device="cpu") + 1
