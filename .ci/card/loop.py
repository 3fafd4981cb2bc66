"""What vision.py and language.py share: plans, contenders, the loop in a CUDA graph, the table at the end.

A program gives a task; this module trains it with each contender, rate and seed of a plan. Every result is a
line of JSON in a file and stands there as soon as it is known, so that a cut loses the run it falls into and
nothing else. A program that is started again with the same file goes on where it stopped.

The runs are made by a process of their own. A CUDA graph that cannot be captured, or an illegal memory
access, spoils the process that it happens in: it ends then, and another one goes on with the next run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import hashlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import yaml
from torch import Tensor, nn
from torch.optim import Optimizer

from adamnx_hf import AdamNX
from adamnx_hf.errors import RecipeError, nearest, number
from adamnx_hf.optim.grouping import param_groups
from adamnx_hf.optim.schedules import adam, adamnx, beta2_for_horizon
from adamnx_hf.paired import paired_difference

#: Exit status of a process that cannot be trusted with another run.
SPOILED = 75

#: How often the runs are taken up again by a new process, at most.
RESTARTS = 8

#: Steps before a capture: they compile, try kernels out and make the optimizer's state.
WARM_UP = 4

# ---------------------------------------------------------------- plans


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run and how it is judged, settled before the first run."""

    program: str
    """`vision` or `language`."""
    contenders: list[str]
    """Of :data:`CONTENDERS`."""
    rates: list[float]
    """Peak learning rates. Of several, each contender takes what is best on the held-out rows."""
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

    @property
    def parts(self) -> dict[str, list[int]]:
        """The seeds of the sweep, where there is one, and of the judging."""
        return {"sweep": self.sweep_seeds if len(self.rates) > 1 else [], "judge": self.seeds}


_LISTS = {"contenders": str, "rates": float, "seeds": int, "family": list, "sweep_seeds": int}
_LEAST: dict[str, float] = {"steps": 1, "batch": 1, "evaluate_every": 1, "smallest_effect": 0, "holdout": 0}
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
        if name not in CONTENDERS:
            raise RecipeError(f"contenders: {name!r} is not known{nearest(str(name), CONTENDERS)}")
    for pair in plan.family:
        if len(pair) != 2 or any(name not in plan.contenders for name in pair):
            raise RecipeError(
                f"family: {pair!r} is not a pair of this plan's contenders; write [[a, b], ...]"
            )
    if not (plan.contenders and plan.rates):
        raise RecipeError("contenders and rates need one entry at least")
    if min(plan.rates) <= 0:
        raise RecipeError(f"rates: {min(plan.rates)!r} is not above 0")
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


# ---------------------------------------------------------------- contenders


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer's second moment. All but the graft run through AdamNX, so that they differ in it alone."""

    schedule: str
    """Of AdamNX's `beta2_schedule`; with "adam" it is AdamW."""
    beta2: Callable[[int], float]
    """From the number of steps of a run."""
    uncorrected_m: bool = False
    """Whether m starts at 0, as AdaX has it. That is a factor 1 - β1^t on the step, and is made by the rate.

    AdaX's decay does not have the factor: here it lacks some ten steps' decay at the beginning.
    """
    graft: bool = False


CONTENDERS = {
    "adamw": Contender("adam", lambda steps: 0.999),
    "adamw_95": Contender("adam", lambda steps: 0.95),
    # Its memory, 1/(1 − β2) steps, is the share of the run that 0.999 is of the paper's 62,480 steps.
    "adamw_scaled": Contender("adam", lambda steps: max(0.0, 1 - 1 / (0.016 * steps))),
    "adamnx": Contender("adamnx", lambda steps: 0.99),
    "adamnx_auto": Contender("adamnx", beta2_for_horizon),
    "adafactor_decay": Contender("adafactor", lambda steps: 0.999),
    "adax": Contender("adax", lambda steps: 0.99, uncorrected_m=True),
    "graft": Contender("adamnx", beta2_for_horizon, graft=True),
}

BETA1 = 0.9


class Graft(Optimizer):
    """Adam's direction with the length of AdamNX's step, over all parameters (grafting, arXiv:2002.11803).

    If it does as well as AdamNX, what AdamNX gains is one number a step: how long the step is. Nothing here
    asks for a tensor's value or makes a state later than here, so that a step can be captured.
    """

    def __init__(
        self,
        params: Any,
        lr: Tensor,
        *,
        beta2: float = 0.999,
        beta2_of_length: float,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.beta2, self.beta2_of_length, self.eps = beta2, beta2_of_length, 1e-8
        self.all = [param for group in self.param_groups for param in group["params"]]
        for param in self.all:
            self.state[param] = {
                key: torch.zeros_like(param) for key in ("exp_avg", "exp_avg_sq", "length_sq")
            }
        self.step_count = torch.zeros((), dtype=torch.float64, device=self.all[0].device)
        self.state[self.all[0]]["step"] = self.step_count

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Performs a single optimization step."""
        t = self.step_count.add_(1)
        grads: list[Any] = [param.grad for param in self.all]
        m, second, other = (
            [self.state[param][key] for param in self.all] for key in ("exp_avg", "exp_avg_sq", "length_sq")
        )
        squares = torch._foreach_mul(grads, grads)
        for average, new, weight in (
            (m, grads, adam(t, BETA1)),
            (second, squares, adam(t, self.beta2)),
            (other, squares, adamnx(t, self.beta2_of_length)),
        ):
            weight = torch.as_tensor(weight).float()
            torch._foreach_mul_(average, 1 - weight)
            torch._foreach_add_(average, torch._foreach_mul(new, weight))

        def step_by(squares: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            root = torch._foreach_sqrt(squares)
            torch._foreach_add_(root, self.eps)
            update = list(torch._foreach_div(m, root))
            return update, torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(update))))

        update, own = step_by(second)
        ratio = step_by(other)[1] / own.clamp_min(1e-30)
        lr = self.param_groups[0]["lr"]
        for group in self.param_groups:
            if group["weight_decay"]:
                torch._foreach_mul_(group["params"], 1 - lr * group["weight_decay"])
        torch._foreach_mul_(update, lr * ratio)
        torch._foreach_sub_(self.all, update)


def make_optimizer(name: str, net: nn.Module, lr: Tensor, plan: Plan) -> Optimizer:
    """The contender's optimizer, for runs of the plan's length. `lr` is filled before each step."""
    contender = CONTENDERS[name]
    groups, beta2 = param_groups(net, plan.weight_decay, rule="paper"), contender.beta2(plan.steps)
    if contender.graft:
        return Graft(groups, lr, beta2_of_length=beta2)
    return AdamNX(groups, lr, (BETA1, beta2), beta2_schedule=contender.schedule, capturable=True)  # type: ignore[arg-type]


def rate_factor(step: int, steps: int, warmup: float = 0.0, decay_until: float = 0.6) -> float:
    """The learning rate at `step`, counted from 0, as a share of its peak.

    The paper's Eq. 15: linear from the peak at step 0 to 1 % of it at 60 % of all steps, then constant. A
    `warmup` multiplies it by a line that reaches 1 at that share of all steps.
    """
    rising = min(1.0, (step + 1) / (warmup * steps)) if warmup else 1.0
    return rising * max(0.01, 1 - 0.99 * step / (decay_until * steps))


# ---------------------------------------------------------------- tasks and their training


class Task(Protocol):
    """What a program trains."""

    name: ClassVar[str]
    networks: ClassVar[dict[str, Any]]
    metrics: ClassVar[dict[str, str]]
    """Each with `min` or `max`, the best it can be."""
    sha256: str
    """Of the data."""
    facts: dict[str, Any]
    """What there is to say about the data."""

    def __init__(self, plan: Plan, folder: Path | None, device: torch.device) -> None: ...

    def model(self) -> nn.Module:
        """Freshly initialised, on the CPU, from torch's default generator."""

    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors in which a step finds its batch."""

    def batches(self, seed: int) -> Iterator[tuple[Tensor, ...]]:
        """Batches without end, in an order that depends on the seed alone."""

    @staticmethod
    def loss(net: nn.Module, *inputs: Tensor) -> Tensor:
        """The mean loss of a batch."""

    def evaluate(self, net: nn.Module, rows: str) -> dict[str, float]:
        """The metrics on the rows of `holdout` or `test`; empty where there are none."""


#: A training step of what lies in the inputs.
Step = Callable[[], object]


class Runner:
    """One network, trained again and again in the same memory.

    Each contender is captured once. Between two runs, weights, buffers and the optimizer's state are
    overwritten where they lie: a graph, as AdamNX's tables, knows them by their addresses.
    """

    def __init__(self, task: Task, plan: Plan, device: torch.device) -> None:
        self.task, self.plan, self.device = task, plan, device
        self.net = task.model().to(device)
        if any(param.ndim == 4 for param in self.net.parameters()):
            self.net = self.net.to(memory_format=torch.channels_last)
        self.inputs = task.inputs()
        self.lr, self.total = torch.zeros((), device=device), torch.zeros((), device=device)
        self.compiled = torch.compile(task.loss, dynamic=False)
        self.ready: dict[tuple[str, str], tuple[Optimizer, Step]] = {}

    def autocast(self) -> torch.autocast:
        """Without its cache: a cast that was made before a capture would never be made again in it."""
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def get_ready(self, name: str, mode: str) -> tuple[Optimizer, Step]:
        """The contender's optimizer and step: `eager`, `compile`, `graph` or `compile+graph`."""
        if (name, mode) not in self.ready:
            self.net.train()
            self.lr.zero_()
            optimizer = make_optimizer(name, self.net, self.lr, self.plan)
            loss_of = self.compiled if "compile" in mode else self.task.loss
            params = [param for param in self.net.parameters() if param.requires_grad]

            def body() -> None:
                with self.autocast():
                    loss = loss_of(self.net, *self.inputs)
                loss.backward()
                if self.plan.clip:
                    nn.utils.clip_grad_norm_(params, self.plan.clip)
                optimizer.step()
                self.total.add_(loss.detach())

            def step() -> None:
                optimizer.zero_grad(set_to_none=True)
                body()

            self.ready[name, mode] = (
                optimizer,
                self.captured(optimizer, step, body) if "graph" in mode else step,
            )
        return self.ready[name, mode]

    def captured(self, optimizer: Optimizer, step: Step, body: Step) -> Step:
        """The step as a CUDA graph, after a warm-up on another stream, as torch's documentation asks."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        # The gradients have to be made anew by the capture, in the graph's own memory.
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            body()
        return graph.replay

    @torch.no_grad()
    def reset(self, optimizer: Optimizer, seed: int) -> None:
        """Weights as the seed has them, and a state as before the first step, where they lie."""
        torch.manual_seed(seed)
        fresh = self.task.model().state_dict()
        for name, tensor in self.net.state_dict().items():
            tensor.copy_(fresh[name])
        for state in optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()
        self.total.zero_()

    def take(self, batch: Sequence[Tensor]) -> None:
        """Puts a batch where the step looks for it."""
        for mine, theirs in zip(self.inputs, batch, strict=True):
            mine.copy_(theirs)

    def evaluate(self, rows: str) -> dict[str, float]:
        """The task's metrics, named after the rows."""
        self.net.eval()
        with torch.no_grad(), self.autocast():
            found = self.task.evaluate(self.net, rows)
        self.net.train()
        return {f"{rows}_{key}": value for key, value in found.items()}

    def run(
        self,
        name: str,
        mode: str,
        rate: float,
        seed: int,
        rows: Sequence[str],
        tell: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        """Trains one contender once, and tells of every evaluation.

        Returns:
            What was found after the last step, or where the loss was no longer finite.
        """
        plan, contender = self.plan, CONTENDERS[name]
        optimizer, step = self.get_ready(name, mode)
        self.reset(optimizer, seed)
        self.net.train()
        batches = self.task.batches(seed)
        begun, since, result = time.perf_counter(), 0, {}
        for t in range(plan.steps):
            self.take(next(batches))
            rate_now = rate * rate_factor(t, plan.steps, plan.warmup, plan.decay_until)
            self.lr.fill_(rate_now * (1 - BETA1 ** (t + 1)) if contender.uncorrected_m else rate_now)
            step()
            since += 1
            if (t + 1) % plan.evaluate_every and t + 1 < plan.steps:
                continue
            train_loss = self.total.item() / since  # waits for the card
            seconds = time.perf_counter() - begun
            result = {"step": t + 1, "train_loss": train_loss, "diverged": not math.isfinite(train_loss)}
            for each in rows:
                result |= self.evaluate(each)
            tell({**result, "steps_per_s": round(since / seconds, 1)})
            if result["diverged"]:
                break
            self.total.zero_()
            begun, since = time.perf_counter(), 0
        return result


# ---------------------------------------------------------------- the file of results


class Lines:
    """The file of results: a line of JSON for each, all of which name the plan and the data."""

    def __init__(self, path: Path, **of_all: Any) -> None:
        self.path, self.of_all = path, of_all
        path.parent.mkdir(parents=True, exist_ok=True)

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


def chosen_rate(name: str, plan: Plan, lines: Sequence[dict[str, Any]], better: str) -> float | None:
    """The rate at which the contender did best on held-out rows, on average over the sweep's seeds.

    None if no rate has a run for every seed. A run that diverged is worse than any other.
    """
    if len(plan.rates) == 1:
        return plan.rates[0]
    sign, means = (1 if better == "max" else -1), {}
    for rate in plan.rates:
        runs = of_kind(lines, "run", part="sweep", contender=name, rate=rate)
        if len(runs) == len(plan.sweep_seeds):
            means[rate] = statistics.fmean(
                sign * value_of(run, f"holdout_{plan.primary}", better) for run in runs
            )
    return max(means, key=means.__getitem__) if means else None


def value_of(run: dict[str, Any], metric: str, better: str) -> float:
    """A metric of a run; the worst there is for one that diverged."""
    value = None if run["diverged"] else run.get(metric)
    return value if value is not None else (-math.inf if better == "max" else math.inf)


def todo(plan: Plan, read: Callable[[], list[dict[str, Any]]], better: str) -> Iterator[dict[str, Any]]:
    """The runs in their order: seeds outermost, so that a cut leaves whole seeds of everything."""
    for part, seeds in plan.parts.items():
        pairs: list[tuple[float | None, str]] = [
            (rate, name) for rate in plan.rates for name in plan.contenders
        ]
        if part == "judge":
            found = read()
            pairs = [(chosen_rate(name, plan, found, better), name) for name in plan.contenders]
        for seed in seeds:
            for rate, name in pairs:
                if rate is not None:
                    yield {"part": part, "seed": seed, "rate": rate, "contender": name}


# ---------------------------------------------------------------- the process that trains


def work(task: Task, plan: Plan, lines: Lines, args: argparse.Namespace, device: torch.device) -> int:
    """Makes the runs that are not in the file yet. Returns the exit status."""
    better, modes = task.metrics[plan.primary], modes_of(args, device)
    runner, left_out, longest = Runner(task, plan, device), 0, 0.0
    for one in todo(plan, lines.read, better):
        before = lines.read()
        mode, key = mode_of(one["contender"], before, modes), key_of(one)
        failed = [line for line in of_kind(before, "error", mode=mode) if key_of(line) == key]
        if mode is None or failed or any(key_of(run) == key for run in of_kind(before, "run")):
            continue
        longest = max((run["seconds"] for run in of_kind(before, "run")), default=0.0)
        if args.deadline and time.time() + longest > args.deadline:
            left_out += 1
            continue
        one |= {"mode": mode}
        lines.add("begin", **one)
        begun, stage = time.time(), "ready"
        try:
            runner.get_ready(one["contender"], mode)
            ready = time.time()
            stage = "run"

            def tell(found: dict[str, Any], one: dict[str, Any] = one) -> None:
                lines.add("epoch", **one, **found)
                told = " ".join(f"{k} {v:.4g}" for k, v in found.items() if isinstance(v, float))
                print(f"{describe(one)}: step {found['step']}: {told}", flush=True)

            rows = ["holdout"] if one["part"] == "sweep" else ["holdout", "test"]
            result = runner.run(one["contender"], mode, one["rate"], one["seed"], rows, tell)
            lines.add("run", **one, **result, **costs(device, ready - begun, time.time() - ready))
        except Exception as error:
            where = traceback.format_exc()[-3000:]
            lines.add("error", **one, stage=stage, error=one_line(error), traceback=where)
            print(f"{describe(one)}: {stage}: {one_line(error)}", file=sys.stderr, flush=True)
            if device.type == "cuda":
                return SPOILED
    if left_out:
        print(f"{left_out} runs are left for another time: there were no {longest:.0f} s left", flush=True)
    return 0


def modes_of(args: argparse.Namespace, device: torch.device) -> list[str]:
    """How a step is carried out, the fastest first. A contender that cannot takes the next."""
    if device.type != "cuda":
        return ["eager"]
    if not args.graph:
        return ["compile"] if args.compile else ["eager"]
    return ["compile+graph", "graph"] if args.compile else ["graph"]


def costs(device: torch.device, ready: float, seconds: float) -> dict[str, Any]:
    """What a run took."""
    peak = torch.cuda.max_memory_reserved() if device.type == "cuda" else 0
    return {"ready_s": round(ready, 2), "seconds": round(seconds, 2), "reserved_gb": round(peak / 1e9, 2)}


def describe(one: dict[str, Any]) -> str:
    """A run, in words."""
    return f"{one['part']} seed {one['seed']} {one['contender']} {one['rate']:g} ({one['mode']})"


def one_line(error: BaseException) -> str:
    """An error's first line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]


def throughput(task: Task, plan: Plan, lines: Lines, args: argparse.Namespace, device: torch.device) -> int:
    """Measures steps a second in every mode, for the first contender or the one that was asked for."""
    runner, name = Runner(task, plan, device), args.contender or plan.contenders[0]
    # A capture that fails may spoil what follows, so that the plain modes come first.
    modes = ["eager", "compile", "compile+graph", "graph"] if device.type == "cuda" else ["eager"]
    for mode in modes:
        begun = time.perf_counter()
        try:
            optimizer, step = runner.get_ready(name, mode)
            runner.reset(optimizer, 0)
            batches = task.batches(0)
            for _ in range(WARM_UP):  # without a graph this is what compiles
                runner.take(next(batches))
                step()
            runner.total.item()
            ready, begun, steps = time.perf_counter() - begun, time.perf_counter(), 0
            while (seconds := time.perf_counter() - begun) < args.throughput_seconds:
                for _ in range(20):
                    runner.take(next(batches))
                    runner.lr.fill_(1e-3)
                    step()
                steps += 20
                runner.total.item()
            begun = time.perf_counter()
            runner.evaluate("test")
            speed = steps / seconds
            found = {"steps_per_s": round(speed, 1), "evaluate_s": round(time.perf_counter() - begun, 2)}
            lines.add("throughput", contender=name, mode=mode, **found, **costs(device, ready, seconds))
            print(
                f"{mode}: {speed:.1f} steps/s, ready after {ready:.1f} s, an evaluation "
                f"{found['evaluate_s']} s; a run of {plan.steps} steps takes {plan.steps / speed:.0f} s",
                flush=True,
            )
        except Exception as error:
            lines.add("error", contender=name, mode=mode, stage="throughput", error=one_line(error))
            print(f"{mode}: {one_line(error)}", file=sys.stderr, flush=True)
    return 0


# ---------------------------------------------------------------- the table


def table(*rows: Sequence[str]) -> list[str]:
    """Rows, the first of which is the head, as Markdown."""
    head, *others = ["| " + " | ".join(row) + " |" for row in rows]
    return [head, "|---" * len(rows[0]) + "|", *others]


def mean_of(values: Sequence[float]) -> str:
    """The mean as text; a dash where there are none."""
    return f"{statistics.fmean(values):.4f}" if values else "-"


def summary(plan: Plan, lines: Sequence[dict[str, Any]], metrics: dict[str, str]) -> str:
    """What was found, as text: the sweep's means, each contender at its rate, and the tests of the family."""
    primary, better = plan.primary, metrics[plan.primary]
    told = [f"plan {plan.sha256[:12]}, {plan.steps} steps, primary metric: {primary} ({better} is best)"]
    if plan.parts["sweep"]:
        rows = [["contender", *(f"{rate:g}" for rate in plan.rates)]]
        for name in plan.contenders:
            rows.append([name])
            for rate in plan.rates:
                runs = of_kind(lines, "run", part="sweep", contender=name, rate=rate)
                found = [value_of(run, f"holdout_{primary}", better) for run in runs]
                rows[-1].append(f"{mean_of(found)} (n {len(found)})")
        told += ["", f"sweep, {primary} on held-out rows:", *table(*rows)]
    if plan.seeds:
        rows, values = [["contender", "rate", "n", primary, "sd", "diverged"]], {}
        for name in plan.contenders:
            best = chosen_rate(name, plan, lines, better)
            runs = of_kind(lines, "run", part="judge", contender=name, rate=best)
            values[name] = {run["seed"]: value_of(run, f"test_{primary}", better) for run in runs}
            finite = [value for value in values[name].values() if math.isfinite(value)]
            sd = f"{statistics.stdev(finite):.4f}" if len(finite) > 1 else "-"
            at = "-" if best is None else f"{best:g}"
            if len(plan.rates) > 1 and best in (min(plan.rates), max(plan.rates)):
                at += " (edge of the grid)"
            lost = str(len(values[name]) - len(finite))
            rows.append([name, at, str(len(finite)), mean_of(finite), sd, lost])
        told += ["", "judged on the test rows after the last step:", *table(*rows)]
        told += ["", *family(plan, values)] if plan.family else []
    for error in of_kind(lines, "error"):
        told.append(f"failed: {error['contender']} {error['mode']} {error['stage']}: {error['error']}")
    return "\n".join(told)


def family(plan: Plan, values: dict[str, dict[int, float]]) -> list[str]:
    """The declared differences, paired by seed, with Holm's correction and a test of equivalence."""
    try:
        from scipy.stats import t as student
    except ModuleNotFoundError:
        return ["the tests of the family need scipy: --summary on a machine that has it prints them"]
    tests = []
    for first, second in plan.family:
        pairs = [
            values[first][seed] - values[second][seed] for seed in values[first] if seed in values[second]
        ]
        found = (
            paired_difference(pairs, [0.0] * len(pairs)) if pairs and all(map(math.isfinite, pairs)) else None
        )
        if found is None or found.high is None:  # no pairs, a run that diverged, or no spread to judge by
            tests.append((first, second, len(pairs), math.nan, math.nan, math.nan, math.nan))
            continue
        mean, half, free = found.mean, found.high - found.mean, len(pairs) - 1
        error = half / float(student.ppf(0.975, free))
        p = 2 * float(student.sf(abs(mean) / error, free))
        # Of the two one-sided tests of equivalence, the one that is harder to pass.
        equivalence = float(student.sf((plan.smallest_effect - abs(mean)) / error, free))
        tests.append((first, second, len(pairs), mean, half, p, equivalence))
    adjusted, last = {}, 0.0
    known = [i for i, test in enumerate(tests) if not math.isnan(test[5])]
    for rank, i in enumerate(sorted(known, key=lambda i: tests[i][5])):
        adjusted[i] = last = max(last, min(1.0, (len(tests) - rank) * tests[i][5]))
    rows = [["difference", "n", "mean", "95 % interval", "p", "p (Holm)", "p (equivalence)"]]
    for i, (first, second, n, mean, half, p, equivalence) in enumerate(tests):
        cells = ["-"] * 5
        if i in adjusted:
            interval = f"{mean - half:.4f} to {mean + half:.4f}"
            cells = [f"{mean:.4f}", interval, f"{p:.4f}", f"{adjusted[i]:.4f}", f"{equivalence:.4f}"]
        rows.append([f"{first} - {second}", str(n), *cells])
    return [
        f"differences in {plan.primary}, paired by seed; Holm over {len(tests)} tests; equivalence: no more "
        f"than {plan.smallest_effect:g}",
        *table(*rows),
    ]


# ---------------------------------------------------------------- the command


def main(task: type[Task], doc: str, argv: Sequence[str] | None = None) -> int:
    """Runs a program; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = arguments(task.name, doc).parse_args(argv)
    try:
        plan = read_plan(args.plan, task)
        if args.contender not in (None, *CONTENDERS):
            raise RecipeError(
                f"--contender: {args.contender!r} is not known{nearest(args.contender, CONTENDERS)}"
            )
        out = args.out or Path(os.environ.get("OUT", ".")) / f"{args.plan.stem}.jsonl"
        if args.worker:
            return worker(task, plan, out, args)
        if args.summary:
            found = Lines(out, plan=plan.sha256).read()
            if not found:
                raise RecipeError(f"--out {out}: has no line of this plan; name the file that its runs wrote")
            print(summary(plan, found, task.metrics))
            return 0
    except RecipeError as error:
        print(f"{task.name}: error: {error}", file=sys.stderr)
        return 2
    program = str(sys.modules[task.__module__].__file__)
    status = supervise([sys.executable, program, *argv], Lines(out, plan=plan.sha256), args.seconds)
    if not args.throughput and status != 2:
        print(summary(plan, Lines(out, plan=plan.sha256).read(), task.metrics), flush=True)
    return status


def arguments(name: str, doc: str) -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        prog=f"{name}.py",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("--plan", type=Path, required=True, metavar="FILE", help="of YAML, as those in .ci/card/plans")
    flag("--data", type=Path, metavar="FOLDER", help="parquet files, or packages of Python")
    flag(
        "--out",
        type=Path,
        metavar="FILE",
        help="of JSON lines, also to go on with; default: $OUT/<plan>.jsonl",
    )
    flag("--seconds", type=number(float, 0, False), metavar="N", help="no run begins that would end later")
    flag("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    flag("--compile", action=argparse.BooleanOptionalAction, default=True, help="forward pass and loss")
    flag("--graph", action=argparse.BooleanOptionalAction, default=True, help="capture steps in CUDA graphs")
    flag("--throughput", action="store_true", help="measure steps a second in each mode, and no more")
    flag("--throughput-seconds", type=number(float, 0, False), default=20.0, metavar="N", help="of each mode")
    flag("--contender", metavar="NAME", help="whose throughput to measure; default: the plan's first")
    flag("--summary", action="store_true", help="print the table of what is in --out, and no more")
    flag("--worker", action="store_true", help=argparse.SUPPRESS)
    flag("--deadline", type=float, help=argparse.SUPPRESS)
    return parser


def worker(task: type[Task], plan: Plan, out: Path, args: argparse.Namespace) -> int:
    """The process that trains."""
    device, begun = torch.device(args.device), time.time()
    torch.set_float32_matmul_precision("high")
    made = task(plan, args.data, device)
    lines = Lines(out, plan=plan.sha256, data=made.sha256)
    lines.read()
    lines.add(
        "start",
        program=task.name,
        settings={key: value for key, value in dataclasses.asdict(plan).items() if key != "sha256"},
        device=torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        torch=torch.__version__,
        commit=os.environ.get("GIT_COMMIT"),
        loading_s=round(time.time() - begun, 1),
        **made.facts,
    )
    print(f"data {made.sha256[:12]}, {made.facts}, read in {time.time() - begun:.1f} s", flush=True)
    return (throughput if args.throughput else work)(made, plan, lines, args, device)


def supervise(command: list[str], lines: Lines, seconds: float | None) -> int:
    """Starts the process that trains, and another one where one was spoiled or died in a run."""
    deadline = [f"--deadline={time.time() + seconds}"] if seconds else []
    # So that what is told to end does not leave the process that trains behind.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for _ in range(1 + RESTARTS):
            process = subprocess.Popen([*command, "--worker", *deadline])
            try:
                status = process.wait()
            finally:
                process.kill()
            if status != SPOILED and not (status < 0 and note_death(lines, status)):
                break
    finally:
        signal.signal(signal.SIGTERM, before)
    return status


def note_death(lines: Lines, status: int) -> bool:
    """Writes down of the run that a process died in that it failed, so that it is not begun again.

    Returns:
        Whether there is such a run.
    """
    found, noted = lines.read(), False
    ends = [line for kind in ("run", "error") for line in of_kind(found, kind) if "part" in line]
    ended = {(key_of(line), line["mode"]) for line in ends}
    for line in of_kind(found, "begin"):
        if (key_of(line), line["mode"]) not in ended:
            one = {key: line[key] for key in ("part", "seed", "rate", "contender", "mode", "data")}
            worked = of_kind(found, "run", contender=one["contender"], mode=one["mode"])
            stage = "run" if worked else "ready"
            lines.add("error", **one, stage=stage, error=f"the process died, status {status}")
            ended.add((key_of(line), line["mode"]))
            noted = True
    return noted
