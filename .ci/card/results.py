"""The file of results, the rates that it chooses, and what is still to be run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from plan import Plan

from adamnx_hf.common.errors import RecipeError


class Lines:
    """The file of results: a line of JSON for each, all of which name the plan and the data."""

    def __init__(self, path: Path, **of_all: Any) -> None:
        self.path, self.of_all = path, of_all
        if path.is_dir():
            raise RecipeError(f"--out {path}: is a folder; name a file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"--out {path}: {error.strerror}; name another file") from error

    def add(self, kind: str, **values: Any) -> None:
        """Writes a line so that it stays, whatever comes next. What is not finite is null."""
        values = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **self.of_all, **values}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """The lines of this plan. Half a line, which a cut has left, is none.

        Raises:
            RecipeError: they were made with other data.
        """
        found = []
        with contextlib.suppress(FileNotFoundError):
            text = self.path.read_text(encoding="utf-8")
            if text and not text.endswith("\n"):  # what is written next is not to go on in it
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("\n")
            for line in text.splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    found.append(json.loads(line))
        found = [line for line in found if line.get("plan") == self.of_all["plan"]]
        mine = str(self.of_all.get("data") or "")
        if others := {line["data"] for line in found if mine and line.get("data") not in (None, mine)}:
            raise RecipeError(
                f"--out {self.path}: has runs of this plan with other data ({min(others)[:12]}, here "
                f"{mine[:12]}); name another file"
            )
        return found


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a run from the others of its plan."""
    return tuple(line.get(key) for key in ("part", "seed", "rate", "contender"))


def of_kind(lines: Sequence[dict[str, Any]], kind: str, **wanted: Any) -> list[dict[str, Any]]:
    """The lines of a kind that hold what is wanted."""
    return [
        line for line in lines if line["kind"] == kind and all(line.get(k) == v for k, v in wanted.items())
    ]


def mode_of(name: str, lines: Sequence[dict[str, Any]], modes: Sequence[str]) -> str | None:
    """How the contender runs: the first mode for which it could be made ready. None if there is none left."""
    failed = {line["mode"] for line in of_kind(lines, "error", contender=name, stage="ready")}
    return next((mode for mode in modes if mode not in failed), None)


def centre_rates(plan: Plan, lines: Sequence[dict[str, Any]], better: str) -> Plan:
    """Lays the plan's rates around the best of its first look, where it asks for one that has been made."""
    runs = [run for run in of_kind(lines, "run", part="coarse") if run["rate"] in plan.coarse]
    if not runs:
        return plan
    values = {run["rate"]: value_of(run, f"holdout_{plan.primary}", better) for run in runs}
    best = pick_best(values, better)
    rates = dict.fromkeys(round_rate(best * factor) for factor in plan.rates)  # no rate twice
    return dataclasses.replace(plan, rates=list(rates))


def pick_best(values: dict[float, float], better: str) -> float:
    """Picks the rate with the best value; of several the lowest."""
    return (max if better == "max" else min)(sorted(values), key=values.__getitem__)


def round_rate(rate: float) -> float:
    """Rounds a learning rate to two digits."""
    return float(f"{rate:.2g}")


def list_swept_seeds(name: str, plan: Plan, lines: Sequence[dict[str, Any]]) -> list[int]:
    """Lists the sweep's seeds for which the contender has run at every rate of the plan."""
    runs = {(run["seed"], run["rate"]) for run in of_kind(lines, "run", part="sweep", contender=name)}
    return [seed for seed in plan.sweep_seeds if all((seed, rate) in runs for rate in plan.rates)]


def sweep_means(name: str, plan: Plan, lines: Sequence[dict[str, Any]], better: str) -> dict[float, float]:
    """The primary metric on held-out rows at each rate, on average over the sweep's seeds, rising by rate.

    A rate counts that has a run for each of :func:`list_swept_seeds`. A run that diverged is worse than any
    other.
    """
    seeds, values = list_swept_seeds(name, plan, lines), {}
    for run in of_kind(lines, "run", part="sweep", contender=name):
        if run["seed"] in seeds:
            values.setdefault(run["rate"], []).append(value_of(run, f"holdout_{plan.primary}", better))
    return {
        rate: statistics.fmean(values[rate]) for rate in sorted(values) if len(values[rate]) == len(seeds)
    }


def chosen_rate(name: str, plan: Plan, lines: Sequence[dict[str, Any]], better: str) -> float | None:
    """The rate at which the contender did best in the sweep. None if no rate has been swept."""
    if len(plan.rates) == 1:
        return plan.rates[0]
    means = sweep_means(name, plan, lines, better)
    return pick_best(means, better) if means else None


def wider_rate(name: str, plan: Plan, lines: Sequence[dict[str, Any]], better: str) -> float | None:
    """The next rate beyond an edge of the sweep, if the best lies there. None once `widen` were added."""
    best, rates = chosen_rate(name, plan, lines, better), [*sweep_means(name, plan, lines, better)]
    added = [rate for rate in rates if rate not in plan.rates]
    if len(added) >= plan.widen or len(rates) < 2 or best not in (rates[0], rates[-1]):
        return None
    return round_rate(best * best / (rates[1] if best == rates[0] else rates[-2]))


def value_of(run: dict[str, Any], metric: str, better: str) -> float:
    """A metric of a run; the worst there is for one that diverged."""
    value = None if run["diverged"] else run.get(metric)
    return value if value is not None else (-math.inf if better == "max" else math.inf)


def todo(plan: Plan, read: Callable[[], list[dict[str, Any]]], better: str) -> Iterator[list[dict[str, Any]]]:
    """The runs in their order, in parts of which each needs the results of those before it.

    Seeds are outermost, so that a cut leaves whole seeds of everything. The sweep is widened where a best
    lies at an edge.
    """

    def runs(part: str, seed: int, pairs: Sequence[tuple[float | None, str]]) -> list[dict[str, Any]]:
        return [
            {"part": part, "seed": seed, "rate": rate, "contender": name}
            for rate, name in pairs
            if rate is not None
        ]

    if plan.coarse:
        yield runs("coarse", plan.sweep_seeds[0], [(rate, plan.contenders[0]) for rate in plan.coarse])
        found = read()
        if not of_kind(found, "run", part="coarse"):
            return  # there is nothing to choose rates by
        plan = centre_rates(plan, found, better)
    if len(plan.rates) > 1:
        for seed in plan.sweep_seeds:
            yield runs("sweep", seed, [(rate, name) for rate in plan.rates for name in plan.contenders])
        for _ in range(plan.widen):
            found = read()
            wider = {name: wider_rate(name, plan, found, better) for name in plan.contenders}
            yield [
                run
                for name, rate in wider.items()
                for seed in list_swept_seeds(name, plan, found)
                for run in runs("sweep", seed, [(rate, name)])
            ]
    found = read()
    chosen = [(chosen_rate(name, plan, found, better), name) for name in plan.contenders]
    yield [run for seed in plan.seeds for run in runs("judge", seed, chosen)]
