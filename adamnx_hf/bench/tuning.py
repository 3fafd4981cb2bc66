"""The tuning of AdamNX's kernel: chunks of other sizes and cache hints, timed in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from adamnx_hf.bench.cases import CASES, allocate_parameters
from adamnx_hf.bench.contestants import make_adamnx
from adamnx_hf.bench.device import catch_failures, note_failure, wait_for
from adamnx_hf.bench.memory import count_bytes_moved, count_state_bytes
from adamnx_hf.bench.plan import Plan
from adamnx_hf.bench.timing import Runner, add_rates, take_turns
from adamnx_hf.optim.engines import triton as engine
from adamnx_hf.optim.engines.triton import Tuning

__all__ = ["STATES", "list_candidates", "tune"]

#: The kinds of state that `--tune` looks at: the parameters' dtype, and AdamNX's options.
STATES: dict[str, tuple[str, dict[str, str]]] = {
    "float32": ("float32", {}),
    "float32, bfloat16 state": ("float32", {"state_dtype": "bfloat16"}),
    "bfloat16, bfloat16 state, stochastic": (
        "bfloat16",
        {"state_dtype": "bfloat16", "param_rounding": "stochastic"},
    ),
    "float32, 8-bit state": ("float32", {"state_dtype": "int8"}),
    "bfloat16": ("bfloat16", {}),
}

# The share of the time for a kind of state that may go into compiling. The rest is for measuring.
_WARM_UP_SHARE = 0.7


def list_candidates(shipped: Tuning) -> list[Tuning]:
    """Returns the tunings to try: first the one that is shipped, then the likeliest to win."""
    evict: dict[str, Any] = {"load": "evict_first"}
    stream: dict[str, Any] = {"store": ".cs"}
    plain = shipped._replace(load="", store="")
    tried = [shipped, plain, *(plain._replace(**hints) for hints in (evict, stream, evict | stream))]
    for block, warps in ((2048, 8), (512, 4)):
        sized = plain._replace(block=block, warps=warps)
        tried += [sized, sized._replace(**evict, **stream)]
    others = ((1024, 4), (1024, 8), (2048, 4), (4096, 8), (4096, 16), (512, 2))
    tried += [plain._replace(block=block, warps=warps) for block, warps in others]
    return list(dict.fromkeys(tried))


def tune(plan: Plan, copy_gb_per_s: float | None, lines: Path | None = None) -> Iterator[dict[str, Any]]:
    """Times AdamNX's kernel with each tuning, for each case of the plan and each kind of state.

    Args:
        plan: the cases. The time until its deadline is shared out among the kinds of state that are left.
            Its device is `"cuda"` or, where Triton interprets kernels, `"cpu"`.
        copy_gb_per_s: the bandwidth of a copy on this card, if it is known.
        lines: a file that gets a line of JSON for each measurement.

    Yields:
        For each kind of state what the report's JSON says of it: a row for each tuning, the fastest first.
    """
    from tqdm import tqdm

    kinds = list(itertools.product(plan.cases, STATES))
    with (
        lines.open("w") if lines else contextlib.nullcontext() as notes,
        tqdm(total=len(kinds) * plan.rounds, desc="tune", unit="round", leave=False) as progress,
    ):
        for number, (case, state) in enumerate(kinds):
            seconds = None
            if plan.deadline is not None:
                seconds = (plan.deadline - time.monotonic()) / (len(kinds) - number)
                if seconds <= 0:
                    return
            progress.set_postfix_str(f"{case}, {state}")
            result = _Trial(case, state, plan, seconds, notes, copy_gb_per_s).run(progress.update)
            yield result
            if "lost" in result:
                return


@dataclasses.dataclass
class _Trial:
    """All tunings on one case with one kind of state."""

    case: str
    state: str
    plan: Plan
    seconds: float | None
    """The time for all of the trial after the first step. It ends between measurements."""
    notes: TextIO | None
    """A file that gets a line of JSON for each measurement."""
    copy_gb_per_s: float | None
    tunings: dict[str, Tuning] = dataclasses.field(default_factory=dict)
    """The tunings that work, by the names of their rows."""
    failures: list[str] = dataclasses.field(default_factory=list)

    def run(self, tick: Callable[[], Any]) -> dict[str, Any]:
        """Times the tunings; returns what the report's JSON says of them. `tick` is called each round."""
        dtype, options = STATES[self.state]
        case = dataclasses.replace(CASES[self.case], dtype=dtype)
        rows: list[dict[str, Any]] = []
        count, end, shipped = 0, None, None
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, engine, "tuning", engine.tuning)
            lost = stack.enter_context(
                catch_failures(f"{self.case}, {self.state}", self.plan.device, self.failures)
            )
            params = stack.enter_context(allocate_parameters(case, self.plan.device))
            count = sum(param.numel() for param in params)
            optimizer = make_adamnx(params, **options)
            optimizer.step()
            wait_for(self.plan.device)
            start = time.monotonic()
            end = None if self.seconds is None else start + self.seconds
            shipped = _find_shipped(optimizer, params[0], options)
            runners = self._compile(list_candidates(shipped), optimizer, params, start)
            rows = take_turns(
                runners, params, self.plan, gradients=case.gradients, tick=tick,
                note=functools.partial(self._note_time, runners), deadline=end,
            )  # fmt: skip
            runners.clear()
        add_rates(rows, self.copy_gb_per_s)
        for row in rows:
            tuning = self.tunings[row["optimizer"]]
            row.update(tuning=tuning._asdict(), shipped=tuning == shipped)
        return {
            "case": self.case,
            "state": self.state,
            "dtype": dtype,
            "parameters": count,
            "optimizers": sorted(rows, key=lambda row: row["ms"]),
            "failed": self.failures,
            **({"stopped": True} if lost or (end is not None and time.monotonic() > end) else {}),
            **lost,
        }

    def _compile(
        self, candidates: list[Tuning], optimizer: Any, params: list[Any], start: float
    ) -> dict[str, Runner]:
        """Makes a step with each tuning; returns runners of those that work, as far as the time goes."""
        moved, held = count_bytes_moved(params, optimizer), count_state_bytes(optimizer)
        runners: dict[str, Runner] = {}
        for number, tuning in enumerate(candidates):
            if self.seconds is not None and time.monotonic() - start > self.seconds * _WARM_UP_SHARE:
                self.failures.append(f"{len(candidates) - number} tunings: there was no time to compile them")
                break
            name, memos = _name_tuning(tuning), type(optimizer._memos)(dict)
            began = time.monotonic()
            try:
                _step_with(tuning, memos, optimizer)
                wait_for(self.plan.device)
            except Exception as error:  # too many registers or too much shared memory, say
                note_failure(name, error, self.plan.device, self.failures)
                continue
            self.tunings[name] = tuning
            runners[name] = Runner(functools.partial(_step_with, tuning, memos, optimizer), moved, held)
            self._note(tuning, compile_s=time.monotonic() - began)
        return runners

    def _note_time(self, runners: Mapping[str, Runner], name: str, turn: int, ms: float) -> None:
        facts: dict[str, Any] = {"turn": turn, "ms": ms}
        if self.copy_gb_per_s and (moved := runners[name].moved):
            facts["share_of_copy"] = moved / (ms * 1e-3) / 1e9 / self.copy_gb_per_s
        self._note(self.tunings[name], **facts)

    def _note(self, tuning: Tuning, **facts: Any) -> None:
        if self.notes:
            line = {"case": self.case, "state": self.state, **tuning._asdict(), **facts}
            print(json.dumps(line), file=self.notes, flush=True)


def _find_shipped(optimizer: Any, param: Any, options: Mapping[str, str]) -> Tuning:
    """Returns the tuning that the engine uses for this optimizer's parameters."""
    moments = [optimizer.state[param][key].dtype for key in ("exp_avg", "exp_avg_sq")]
    kind = (param.dtype, param.dtype, *moments, True)
    return engine.tuning(kind, options.get("param_rounding", "nearest"))


def _step_with(tuning: Tuning, memos: Any, optimizer: Any) -> None:
    engine.tuning = lambda *_: tuning
    optimizer._memos = memos  # tables are for one size of chunk
    optimizer.step()


def _name_tuning(tuning: Tuning) -> str:
    return ", ".join(filter(None, (f"{tuning.block} x {tuning.warps}", tuning.load, tuning.store)))
