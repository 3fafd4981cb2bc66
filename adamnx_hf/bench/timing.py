"""The times of steps: contestants take turns on the same parameters and gradients."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from adamnx_hf.bench.cases import CASES, allocate_parameters, make_gradients
from adamnx_hf.bench.contestants import BASELINE, CLIPPED, CONTESTANTS
from adamnx_hf.bench.device import (
    catch_failures,
    free_memory,
    note_failure,
    read_allocated,
    time_step,
    wait_for,
)
from adamnx_hf.bench.memory import count_bytes_moved, count_state_bytes, measure_temporary_bytes
from adamnx_hf.bench.plan import Plan, takes_part

__all__ = ["Runner", "add_rates", "compare_contestants", "take_turns"]

_MAX_NORM = 1.0
# With fewer bytes than this in gradients there is a second set of them, so that a step finds them elsewhere.
_SECOND_GRADIENTS = 2**30


@dataclasses.dataclass
class Runner:
    """A step that takes turns with others, and the memory it needs."""

    step: Callable[[], Any]
    moved: int | None
    """Bytes that the step at least reads and writes, if they are known."""
    state_bytes: int
    peak_bytes: int | None = None
    """Bytes that the step allocates for a while, once they are measured."""


def compare_contestants(plan: Plan, copy_gb_per_s: float | None) -> Iterator[dict[str, Any]]:
    """Times the plan's contestants on each of its cases; ends early if the card's context is lost.

    Args:
        plan: the cases and contestants.
        copy_gb_per_s: the bandwidth of a copy on this card, if it is known.

    Yields:
        For each case what the report's JSON says of it: a row for each contestant, and the failures.
    """
    from tqdm import tqdm

    with tqdm(total=len(plan.cases) * plan.rounds, desc="bench", unit="round", leave=False) as progress:
        for case in plan.cases:
            progress.set_postfix_str(case)
            result = _compare_on_case(case, plan, progress.update)
            add_rates(result["optimizers"], copy_gb_per_s)
            yield result
            if "lost" in result:
                return


def _compare_on_case(case: str, plan: Plan, tick: Callable[[], Any]) -> dict[str, Any]:
    failures: list[str] = []
    rows: list[dict[str, Any]] = []
    count = 0
    with (
        catch_failures(case, plan.device, failures) as lost,
        allocate_parameters(CASES[case], plan.device) as params,
    ):
        names = [name for name in plan.contestants if takes_part(name, case, named=plan.named)]
        runners = dict(_make_runners(names, params, plan, failures))
        _warm_up(runners, plan.device, failures)
        rows = take_turns(runners, params, plan, gradients=CASES[case].gradients, tick=tick)
        count = sum(param.numel() for param in params)
        runners.clear()
    return {
        "case": case,
        "parameters": count,
        "optimizers": rows,
        "failed": failures,
        **({"stopped": True, **lost} if lost else {}),
    }


def _make_runners(
    names: Sequence[str], params: list[Any], plan: Plan, failures: list[str]
) -> Iterator[tuple[str, Runner]]:
    """Yields a runner for each contestant that can step, and one with clipping where that is timed."""
    for name in names:
        before = read_allocated(plan.device)
        try:
            optimizer = CONTESTANTS[name].make(params)
            optimizer.step()
            wait_for(plan.device)  # else the next contestant would be blamed for a failure on the card
        except Exception as error:  # another package's, or too little memory beside the others
            note_failure(name, error, plan.device, failures)
            optimizer = None
        if optimizer is None:
            free_memory(plan.device)
            continue
        on_card = plan.device == "cuda"
        held = read_allocated(plan.device) - before if on_card else count_state_bytes(optimizer)
        yield name, Runner(optimizer.step, count_bytes_moved(params, optimizer), held)
        if CONTESTANTS[name].clips and not plan.memory:
            yield name + CLIPPED, Runner(_make_clipped_step(optimizer, params), None, held)


def _make_clipped_step(optimizer: Any, params: list[Any]) -> Callable[[], None]:
    """Returns a step that clips: within the step if the optimizer can, before it otherwise."""
    import torch

    def clip_before() -> None:
        torch.nn.utils.clip_grad_norm_(params, _MAX_NORM, foreach=True)
        optimizer.step()

    def clip_within() -> None:
        optimizer.max_grad_norm = _MAX_NORM
        optimizer.step()
        optimizer.max_grad_norm = None

    return clip_within if hasattr(optimizer, "max_grad_norm") else clip_before


def _warm_up(runners: dict[str, Runner], device: str, failures: list[str]) -> None:
    """Compiles what there is to compile and measures memory; leaves out runners that fail."""
    for name, runner in list(runners.items()):
        try:
            runner.step()
            runner.peak_bytes = measure_temporary_bytes(runner.step, device)
            wait_for(device)
        except Exception as error:
            note_failure(name, error, device, failures)
            del runners[name], runner
            free_memory(device)


def take_turns(
    runners: Mapping[str, Runner],
    params: list[Any],
    plan: Plan,
    *,
    gradients: str = "apart",
    tick: Callable[[], Any],
    note: Callable[[str, int, float], Any] = lambda name, turn, ms: None,
    deadline: float | None = None,
) -> list[dict[str, Any]]:
    """Times all runners in turns.

    Args:
        runners: steps of `params`, by name.
        params: parameters with gradients.
        plan: the device, and how often.
        gradients: the kind of the gradients, see :func:`make_gradients`.
        tick: is called after each round.
        note: is called with each measurement: name, turn, milliseconds.
        deadline: the value of `time.monotonic` after which no measurement begins.

    Returns:
        A row for each runner that was timed, with medians of all its turns.
    """
    sets = [[param.grad for param in params]]
    if sum(param.grad.nbytes for param in params) < _SECOND_GRADIENTS:
        sets.append(make_gradients(params, gradients))

    times: dict[str, list[float]] = {name: [] for name in runners}
    host: dict[str, list[float]] = {name: [] for name in runners}
    next_sets = itertools.cycle(sets[::-1])
    for turn in range(plan.rounds):
        # The order alternates. The first step of a turn finds the data of another in the caches, and is not
        # timed.
        for name, runner in list(runners.items())[:: -1 if turn % 2 else 1]:
            if deadline is not None and time.monotonic() > deadline:
                break
            runner.step()
            times[name].append(time_step(runner.step, plan.steps, plan.device))
            note(name, turn, times[name][-1])
            if plan.device == "cuda":
                # Where there are two sets, a step finds its gradients where they were not before.
                for param, grad in zip(params, next(next_sets), strict=True):
                    param.grad = grad
                host[name].append(_time_host(runner.step))
        tick()
    return _make_rows(runners, times, host)


def _time_host(step: Callable[[], Any]) -> float:
    """Returns the microseconds that the host takes to start a step on a card."""
    wait_for("cuda")
    start = time.perf_counter()
    step()
    microseconds = (time.perf_counter() - start) * 1e6
    wait_for("cuda")
    return microseconds


def _make_rows(
    runners: Mapping[str, Runner], times: Mapping[str, list[float]], host: Mapping[str, list[float]]
) -> list[dict[str, Any]]:
    rows = []
    for name, runner in runners.items():
        if not times[name]:  # there was no time for this one
            continue
        reference = times.get(BASELINE + (CLIPPED if name.endswith(CLIPPED) else ""))
        last, ordered = len(times[name]) - 1, sorted(times[name])
        p10, *quartiles, p90 = (ordered[round(share * last)] for share in (0.1, 0.25, 0.75, 0.9))
        rows.append(
            {
                "optimizer": name,
                "ms": median(times[name]),
                "ratio": median(times[name]) / median(reference) if reference else None,
                "p10_ms": p10,
                "p90_ms": p90,
                "quartiles_ms": quartiles,
                "host_us": median(host[name]) if host[name] else None,
                "bytes": runner.moved,
                "state_bytes": runner.state_bytes,
                "peak_bytes": runner.peak_bytes,
            }
        )
    return rows


def add_rates(rows: list[dict[str, Any]], copy_gb_per_s: float | None) -> None:
    """Adds the bytes moved in a second, alone and as a share of a copy's, to rows that know their bytes."""
    for row in rows:
        if copy_gb_per_s and row["bytes"]:
            row["gb_per_s"] = row["bytes"] / (row["ms"] * 1e-3) / 1e9
            row["share_of_copy"] = row["gb_per_s"] / copy_gb_per_s
