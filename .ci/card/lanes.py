"""Training runs side by side on one card: each in a lane, which is a network, a CUDA graph and a stream.

A small network leaves most of a card idle. Steps of several lanes, launched in turn, run at the same time.
Each run comes out as it would alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from contenders import BETA1, CONTENDERS, make_optimizer, rate_factor
from plan import Plan
from torch import Tensor, nn
from torch.optim import Optimizer

#: Compiles a loss once for all lanes, whose networks are of one shape.
compile_once = functools.cache(functools.partial(torch.compile, dynamic=False))

#: Steps before a capture: they compile, try kernels out and make the optimizer's state.
WARM_UP = 4


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
        """New tensors in which a step finds its batch."""

    def batches(self, seed: int) -> Iterator[tuple[Tensor, ...]]:
        """Batches without end, in an order that depends on the seed alone, made on the current stream."""

    @staticmethod
    def loss(net: nn.Module, *inputs: Tensor) -> Tensor:
        """The mean loss of a batch."""

    def evaluate(self, net: nn.Module, rows: str) -> Tensor | None:
        """The metrics in their order on the rows of `holdout` or `test`, without waiting for the card.

        None where there are no such rows.
        """


#: A training step of what lies in the inputs.
Step = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run."""

    part: str
    """`coarse`, `sweep` or `judge`."""
    seed: int
    rate: float
    contender: str
    mode: str
    """`eager`, `compile`, `graph` or `compile+graph`."""

    @property
    def rows(self) -> list[str]:
        """What it is evaluated on. What chooses a rate does not see the test rows."""
        return ["holdout", "test"] if self.part == "judge" else ["holdout"]

    def __str__(self) -> str:
        return f"{self.part} seed {self.seed} {self.contender} {self.rate:g} ({self.mode})"


class Lane:
    """One network, trained again and again in the same memory.

    Each contender is captured once. Between two runs, weights, buffers and the optimizer's state are
    overwritten where they lie: a graph, as AdamNX's tables, knows them by their addresses.
    """

    def __init__(self, task: Task, plan: Plan, device: torch.device) -> None:
        self.task, self.plan, self.device = task, plan, device
        # Libraries keep their working memory by stream, so that lanes cannot share one.
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with self.on():
            self.net = task.model().to(device)
            if any(param.ndim == 4 for param in self.net.parameters()):
                self.net = self.net.to(memory_format=torch.channels_last)
            self.inputs = task.inputs()
            self.lr, self.total = torch.zeros((), device=device), torch.zeros((), device=device)
        self.ready: dict[tuple[str, str], tuple[Optimizer, Step]] = {}

    def on(self) -> contextlib.AbstractContextManager[Any]:
        """What is launched within it goes to the lane's stream."""
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

    def autocast(self) -> torch.autocast:
        """Without its cache: a cast that was made before a capture would never be made again in it."""
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def get_ready(self, name: str, mode: str) -> tuple[Optimizer, Step]:
        """The contender's optimizer and its step in a mode of :class:`Run`, made where they are not yet."""
        if (name, mode) not in self.ready:
            with self.on():
                self.ready[name, mode] = self._make_ready(name, mode)
        return self.ready[name, mode]

    def _make_ready(self, name: str, mode: str) -> tuple[Optimizer, Step]:
        self.net.train()
        self.lr.zero_()
        optimizer = make_optimizer(name, self.net, self.lr, self.plan)
        loss_of = compile_once(self.task.loss) if "compile" in mode else self.task.loss
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

        return optimizer, self._capture(optimizer, step, body) if "graph" in mode else step

    def _capture(self, optimizer: Optimizer, step: Step, body: Step) -> Step:
        """Captures the step in a CUDA graph, after a warm-up, as torch's documentation asks."""
        torch.cuda.synchronize()
        for _ in range(WARM_UP):
            step()
        torch.cuda.synchronize()
        # The gradients have to be made anew by the capture, in the graph's own memory.
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
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

    def evaluate(self, rows: str) -> Tensor | None:
        """The task's metrics on the rows."""
        self.net.eval()
        with torch.no_grad(), self.autocast():
            found = self.task.evaluate(self.net, rows)
        self.net.train()
        return found


class Training:
    """A run in its lane, step by step. Nothing but :meth:`read` waits for the card."""

    def __init__(self, lane: Lane, run: Run) -> None:
        self.lane, self.run, self.plan = lane, run, lane.plan
        self.optimizer, self._step = lane.get_ready(run.contender, run.mode)
        self._unread: list[tuple[int, dict[str, Tensor], torch.cuda.Event | None]] = []
        self.result: dict[str, Any] = {}
        self.taken = 0
        with lane.on():
            lane.reset(self.optimizer, run.seed)
            lane.net.train()
            self.batches = lane.task.batches(run.seed)

    @property
    def has_news(self) -> bool:
        """Whether there is an evaluation to read after which the card still has something to do."""
        return not self.ended and len(self._unread) > (0 if self.taken == self.plan.steps else 1)

    @property
    def ended(self) -> bool:
        """Whether the loss was no longer finite, or the last result has been read."""
        return bool(self.result) and (self.result["diverged"] or self.result["step"] == self.plan.steps)

    def step(self) -> None:
        """Takes the next step; after the last one, and at times before it, evaluates."""
        lane, plan, t = self.lane, self.plan, self.taken
        rate = self.run.rate * rate_factor(t, plan.steps, plan.warmup, plan.decay_until)
        if CONTENDERS[self.run.contender].uncorrected_m:
            rate *= 1 - BETA1 ** (t + 1)
        with lane.on():
            lane.take(next(self.batches))
            lane.lr.fill_(rate)
            self._step()
            self.taken += 1
            if self.taken % plan.evaluate_every == 0 or self.taken == plan.steps:
                self._evaluate()

    def _evaluate(self) -> None:
        lane = self.lane
        found = {
            "train_loss": lane.total / (self.taken % self.plan.evaluate_every or self.plan.evaluate_every)
        }
        lane.total.zero_()
        for rows in self.run.rows:
            if (metrics := lane.evaluate(rows)) is not None:
                found[rows] = metrics
        self._unread.append((self.taken, found, lane.stream.record_event() if lane.stream else None))

    def read(self) -> dict[str, Any]:
        """Returns the oldest evaluation that has not been read. This waits for the card."""
        step, found, event = self._unread.pop(0)
        if event:
            event.synchronize()
        loss = found.pop("train_loss").item()
        self.result = {"step": step, "train_loss": loss, "diverged": not math.isfinite(loss)}
        for rows, metrics in found.items():
            for key, value in zip(self.lane.task.metrics, metrics.tolist(), strict=True):
                self.result[f"{rows}_{key}"] = value
        return self.result


def train_together(trainings: Sequence[Training], tell: Callable[[Training], None]) -> None:
    """Takes the steps of all runs in turn, until each has ended, and tells of every evaluation.

    An evaluation is read when the next one has been launched: the card always has something to do. A run
    whose loss is no longer finite ends there.
    """
    going = list(trainings)
    while going:
        for training in going:
            training.step()
        for training in going:
            while training.has_news:
                training.read()
                tell(training)
        going = [training for training in going if not training.ended]
