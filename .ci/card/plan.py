"""What a program runs and how it is judged: a file of YAML, settled before the first run."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from contenders import CONTENDERS

from adamnx_hf.common.errors import RecipeError, nearest

if TYPE_CHECKING:
    from lanes import Task


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run and how it is judged, settled before the first run."""

    program: str
    """`vision` or `language`."""
    contenders: list[str]
    """Of :data:`CONTENDERS`."""
    rates: list[float]
    """Peak learning rates. Of several, each contender takes what is best on the held-out rows.

    With `coarse` they are multiples of the best of those.
    """
    seeds: list[int]
    """Seeds that judge, on the test rows. Empty: the sweep alone."""
    steps: int
    batch: int
    network: str
    """Of the program's networks."""
    evaluate_every: int
    """Steps."""
    primary: str
    """The one metric that is tested, after the last step."""
    family: list[list[str]]
    """Pairs of contenders whose difference is tested, with Holm's correction over all of them."""
    smallest_effect: float
    """Of the primary metric: what is surely smaller counts as no difference."""
    sweep_seeds: list[int] = dataclasses.field(default_factory=list)
    """Seeds that choose the rate, other ones than those that judge."""
    coarse: list[float] = dataclasses.field(default_factory=list)
    """Peak learning rates of a first look, by the first contender with the first of the sweep's seeds."""
    widen: int = 0
    """How many rates a sweep may go beyond the plan's, where a contender's best lies at an edge."""
    holdout: int = 0
    """Rows of the training split on which no run trains, for the choice of the rate. vision alone."""
    weight_decay: float = 0.01
    """Of the weights of convolutions and linear layers."""
    warmup: float = 0.0
    """Share of all steps over which the rate rises linearly. The paper has none."""
    decay_until: float = 0.6
    """Share of all steps at which the rate has come down to 1 % of its peak. The paper's is 0.6."""
    clip: float = 0.0
    """The largest norm of all gradients together; 0 clips nothing."""
    sha256: str = ""
    """Of the file."""


_LISTS = {
    "contenders": str,
    "rates": float,
    "coarse": float,
    "seeds": int,
    "family": list,
    "sweep_seeds": int,
}
_LEAST: dict[str, float] = {
    "steps": 1,
    "batch": 1,
    "evaluate_every": 1,
    "smallest_effect": 0,
    "holdout": 0,
    "widen": 0,
}
_LEAST |= {"weight_decay": 0, "warmup": 0, "decay_until": 0.01, "clip": 0}


def read_plan(path: Path, task: type[Task]) -> Plan:
    """The plan in a file of YAML.

    Raises:
        RecipeError: something in it does not fit; one line, with the remedy.
    """
    try:
        content = path.read_bytes()
        found = yaml.safe_load(content)
    except OSError as error:
        raise RecipeError(
            f"--plan {path}: {error.strerror}; name a file such as .ci/card/plans/*.yaml"
        ) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"--plan {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise RecipeError(f"--plan {path}: not a list of `key: value`")
    try:
        plan = _checked(found, hashlib.sha256(content).hexdigest())
        if plan.program != task.name:
            raise RecipeError(
                f"program: {plan.program!r} is another program's plan; this one is {task.name}.py"
            )
        for field, valid in (("network", task.networks), ("primary", task.metrics)):
            if getattr(plan, field) not in valid:
                raise RecipeError(
                    f"{field}: {getattr(plan, field)!r} is not known{nearest(getattr(plan, field), valid)}"
                )
    except RecipeError as error:
        raise RecipeError(f"--plan {path}: {error}") from None
    return plan


def _checked(found: dict[str, Any], sha256: str) -> Plan:
    """A plan of what a file holds; see :func:`read_plan` for what it raises."""
    fields = {field.name: field for field in dataclasses.fields(Plan) if field.name != "sha256"}
    for key in found:
        if key not in fields:
            raise RecipeError(f"{key!r} is no key of a plan{nearest(str(key), fields)}")
    for name, field in fields.items():
        optional = {field.default, field.default_factory} != {dataclasses.MISSING}
        if not optional and name not in found:
            raise RecipeError(f"{name!r} is missing; add it")
    values: dict[str, Any] = {}
    for key, value in found.items():
        kind = _LISTS.get(key)
        if kind and not isinstance(value, list):
            raise RecipeError(f"{key}: {value!r} is not a list; write [a, b]")
        kind = kind or {"int": int, "float": float}.get(str(fields[key].type), str)
        items = [_typed(key, item, kind) for item in (value if key in _LISTS else [value])]
        if key in _LISTS and any(items.count(item) > 1 for item in items):
            raise RecipeError(f"{key}: {value!r} names one twice; leave one out")
        values[key] = items if key in _LISTS else items[0]
    plan = Plan(**values, sha256=sha256)

    for name in [*plan.contenders, *(name for pair in plan.family for name in pair)]:
        if not isinstance(name, str) or name not in CONTENDERS:
            raise RecipeError(f"contenders: {name!r} is not known{nearest(str(name), CONTENDERS)}")
    for pair in plan.family:
        if len(pair) != 2 or pair[0] == pair[1] or any(name not in plan.contenders for name in pair):
            raise RecipeError(
                f"family: {pair!r} is not a pair of this plan's contenders; write [[a, b], ...]"
            )
    if not (plan.contenders and plan.rates):
        raise RecipeError("contenders and rates need one entry at least")
    for key, rates in (("rates", plan.rates), ("coarse", plan.coarse)):
        if min(rates, default=1) <= 0:
            raise RecipeError(f"{key}: {min(rates)!r} is not above 0")
    if plan.coarse and len(plan.rates) == 1:
        raise RecipeError(
            "coarse: a first look is of use before a sweep; name several rates, or leave it out"
        )
    if len(plan.rates) > 1 and not plan.sweep_seeds:
        raise RecipeError(
            f"sweep_seeds: of {len(plan.rates)} rates one is to be chosen; name a seed to choose with"
        )
    if both := set(plan.seeds) & set(plan.sweep_seeds):
        raise RecipeError(f"sweep_seeds: {min(both)} judges, too; take another seed")
    if plan.program == "vision" and len(plan.rates) > 1 and not plan.holdout:
        raise RecipeError("holdout: 0 rows leave nothing to choose a rate by; write 5000")
    if plan.decay_until > 1:
        raise RecipeError(f"decay_until: {plan.decay_until} is a share of all steps; 1 at most")
    if plan.warmup > plan.decay_until:
        raise RecipeError(
            f"warmup: {plan.warmup} is a share of all steps; decay_until ({plan.decay_until}) at most"
        )
    return plan


def _typed(key: str, value: Any, kind: Any) -> Any:
    """The value, if it is one of its kind and not too small."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and numeric and math.isfinite(value):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        what = {int: "a whole number", float: "a number", str: "a name", list: "a pair"}[kind]
        hint = "; YAML takes 1e-3 for text and 1.0e-3 for a number" if kind is float else ""
        raise RecipeError(f"{key}: {value!r} is not {what}{hint}")
    if key in _LEAST and value < _LEAST[key]:
        raise RecipeError(f"{key}: {value!r} is below {_LEAST[key]}")
    return value
