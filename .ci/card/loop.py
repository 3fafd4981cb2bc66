"""The command that vision.py and language.py share.

A program gives a task; this module trains it with each contender, rate and seed of a plan. Every result is a
line of JSON in a file and stands there as soon as it is known, so that a cut loses the runs that it falls
into and nothing else. A program that is started again with the same file goes on where it stopped.

The runs are made by a process of their own. A CUDA graph that cannot be captured, or an illegal memory
access, spoils the process that it happens in: it ends then, and another one goes on with the next run.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lanes import Lane, Run, Task, Training, train_together
from plan import Plan, read_plan
from results import Lines, centre_rates, key_of, mode_of, of_kind, todo
from verdict import summary, verdict

from adamnx_hf.common.errors import RecipeError, number
from adamnx_hf.common.files import write_json

#: Exit status of a process that cannot be trusted with another run.
SPOILED = 75

#: How often the runs are taken up again by a new process, at most.
RESTARTS = 8

#: How a step is carried out on a card, the fastest first.
MODES = ["compile+graph", "graph", "compile", "eager"]

# ---------------------------------------------------------------- the process that trains


def work(task: Task, plan: Plan, lines: Lines, args: argparse.Namespace, device: torch.device) -> int:
    """Makes the runs that are not in the file yet. Returns the exit status."""
    better, lanes, left_out = task.metrics[plan.primary], [], 0
    for part in todo(plan, lines.read, better):
        while left := find_waiting(part, found := lines.read(), args.modes):
            wave, settled = left[: args.lanes], centre_rates(plan, found, better)
            if args.deadline and time.time() + seconds_for(wave, left, settled, found) > args.deadline:
                left_out += len(left)
                break
            while len(lanes) < len(wave):
                lanes.append(Lane(task, plan, device))
            if not train_wave(assign_lanes(wave, lanes), lines) and device.type == "cuda":
                return SPOILED
    if left_out:
        print(f"{left_out} runs are left for another time: there was no time for them", flush=True)
    return 0


def find_waiting(
    part: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]], modes: Sequence[str]
) -> list[Run]:
    """Finds the runs of a part that have neither been made nor failed in their mode."""
    found = []
    done = {key_of(run) for run in of_kind(lines, "run")}
    failed = {(key_of(line), line["mode"]) for line in of_kind(lines, "error") if "part" in line}
    for one in part:
        mode = mode_of(one["contender"], lines, modes)
        if mode and key_of(one) not in done and (key_of(one), mode) not in failed:
            found.append(Run(**one, mode=mode))
    return found


def seconds_for(
    wave: Sequence[Run], left: Sequence[Run], plan: Plan, lines: Sequence[dict[str, Any]]
) -> float:
    """Estimates how much time the next runs of a part need, by what the last ones have taken.

    After its first seed the sweep goes on only where there is time to judge after it.
    """
    last = of_kind(lines, "run")[-1:]
    each = last[0]["seconds"] / last[0]["together"] if last else 0.0
    first = wave[0].seed in plan.sweep_seeds[:1] and wave[0].rate in plan.rates
    if wave[0].part == "sweep" and not first:
        return each * (len(left) + len(plan.seeds) * len(plan.contenders))
    return each * len(wave)


def assign_lanes(wave: Sequence[Run], lanes: Sequence[Lane]) -> list[tuple[Lane, Run]]:
    """Assigns a lane to each run, if there is one then one that has its contender ready."""
    free, pairs = list(lanes), []
    for run in wave:
        ready = (run.contender, run.mode)
        lane = min(free, key=lambda lane: (ready not in lane.ready, len(lane.ready)))
        free.remove(lane)
        pairs.append((lane, run))
    return pairs


def train_wave(pairs: Sequence[tuple[Lane, Run]], lines: Lines) -> bool:
    """Trains runs together. Returns whether it went well; what did not is in the file."""
    begun, stage, at, trainings = time.time(), "ready", None, []
    for _, run in pairs:
        lines.add("begin", **dataclasses.asdict(run))
    try:
        for lane, run in pairs:
            at = run
            trainings.append(Training(lane, run))
        ready, stage, at = time.time(), "run", None

        def tell(training: Training) -> None:
            found, one = training.result, dataclasses.asdict(training.run)
            lines.add("epoch", **one, **found)
            told = " ".join(f"{k} {v:.4g}" for k, v in found.items() if isinstance(v, float))
            print(f"{training.run}: step {found['step']}: {told}", flush=True)

        train_together(trainings, tell)
    except Exception as error:
        where = traceback.format_exc()[-3000:]
        for run in [at] if at else [run for _, run in pairs]:
            lines.add("error", **dataclasses.asdict(run), stage=stage, error=one_line(error), traceback=where)
            print(f"{run}: {stage}: {one_line(error)}", file=sys.stderr, flush=True)
        return False
    took = costs(pairs[0][0].device, ready - begun, time.time() - ready)
    for training in trainings:
        lines.add("run", **dataclasses.asdict(training.run), **training.result, **took, together=len(pairs))
    return True


def costs(device: torch.device, ready: float, seconds: float) -> dict[str, Any]:
    """What a run took."""
    peak = torch.cuda.max_memory_reserved() if device.type == "cuda" else 0
    return {"ready_s": round(ready, 2), "seconds": round(seconds, 2), "reserved_gb": round(peak / 1e9, 2)}


def one_line(error: BaseException) -> str:
    """An error's first line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]


def throughput(task: Task, plan: Plan, lines: Lines, args: argparse.Namespace, device: torch.device) -> int:
    """Measures steps a second in every mode, with one lane and with more up to those that were asked for."""
    lanes: list[Lane] = []
    endless = dataclasses.replace(plan, evaluate_every=10**9)
    for mode in reversed(args.modes):  # what fails in a faster one may spoil what follows
        for count in sorted({*(n for n in (1, 4, 16) if n < args.lanes), args.lanes}):
            begun = time.perf_counter()
            try:
                while len(lanes) < count:
                    lanes.append(Lane(task, endless, device))
                wave = [
                    Run("judge", seed, 1e-3, plan.contenders[seed % len(plan.contenders)], mode)
                    for seed in range(count)
                ]
                trainings = [Training(lane, run) for lane, run in zip(lanes, wave, strict=False)]
                ready, rate = time.perf_counter() - begun, steps_a_second(trainings, args, device)
                lines.add(
                    "throughput",
                    mode=mode,
                    lanes=count,
                    steps_per_s=round(rate, 1),
                    **costs(device, ready, 0),
                )
                told = f"{rate:.1f} steps/s together, ready after {ready:.1f} s"
                print(
                    f"{mode}, {count} lanes: {told}; a run takes {plan.steps / rate:.1f} s of all", flush=True
                )
            except Exception as error:
                lines.add("error", mode=mode, lanes=count, stage="throughput", error=one_line(error))
                print(f"{mode}, {count} lanes: {one_line(error)}", file=sys.stderr, flush=True)
                break
    return 0


def steps_a_second(trainings: Sequence[Training], args: argparse.Namespace, device: torch.device) -> float:
    """Steps a second of all runs together, after a few that compile what is to be compiled."""

    def rounds(count: int) -> None:
        for _ in range(count):
            for training in trainings:
                training.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    rounds(4)
    begun, steps = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begun) < args.throughput_seconds:
        rounds(20)
        steps += 20 * len(trainings)
    return steps / seconds


# ---------------------------------------------------------------- the command


def main(task: type[Task], doc: str, argv: Sequence[str] | None = None) -> int:
    """Runs a program; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = arguments(task.name, doc).parse_args(argv)
    try:
        if args.json and not args.summary:
            raise RecipeError("--json: goes with --summary; add that")
        check_device(args.device)
        plan = read_plan(args.plan, task)
        out = args.out or Path(os.environ.get("OUT", ".")) / f"{args.plan.stem}.jsonl"
        if args.worker:
            return worker(task, plan, out, args)
        if args.summary:
            found = Lines(out, plan=plan.sha256).read()
            if not found:
                raise RecipeError(f"--out {out}: has no line of this plan; name the file that its runs wrote")
            content = verdict(plan, found, task.metrics)
            if args.json:
                write_json(args.json, content)
            print(summary(content))
            return 0
        lines = Lines(out, plan=plan.sha256)
    except RecipeError as error:
        print(f"{task.name}: error: {error}", file=sys.stderr)
        return 2
    program = str(sys.modules[task.__module__].__file__)
    status = supervise([sys.executable, program, *argv], lines, args.seconds)
    if not args.throughput and status != 2:
        print(summary(verdict(plan, lines.read(), task.metrics)), flush=True)
    return status


def check_device(name: str) -> None:
    """Sees to it that the device is there.

    Raises:
        RecipeError: it is not.
    """
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise RecipeError(f"--device {name}: is neither cpu nor cuda; name one of them")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RecipeError(f"--device {name}: torch finds no card; name cpu")


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
    flag(
        "--modes",
        nargs="+",
        choices=MODES,
        metavar="MODE",
        help=f"how a step is carried out, of {', '.join(MODES)}; what cannot be made ready in one takes the "
        "next; default: compile+graph graph, without a card eager",
    )
    flag("--lanes", type=number(int, 1), default=8, metavar="N", help="runs at a time; default: %(default)s")
    flag("--throughput", action="store_true", help="measure steps a second in each mode, and no more")
    flag(
        "--throughput-seconds",
        type=number(float, 0, False),
        default=5.0,
        metavar="N",
        help="of each measurement",
    )
    flag("--summary", action="store_true", help="print the table of what is in --out, and no more")
    flag("--json", type=Path, metavar="FILE", help="with --summary: what it says as data, with every run")
    flag("--worker", action="store_true", help=argparse.SUPPRESS)
    flag("--deadline", type=float, help=argparse.SUPPRESS)
    return parser


def worker(task: type[Task], plan: Plan, out: Path, args: argparse.Namespace) -> int:
    """The process that trains."""
    device, begun = torch.device(args.device), time.time()
    torch.set_float32_matmul_precision("high")
    args.modes = args.modes or (["compile+graph", "graph"] if device.type == "cuda" else ["eager"])
    made = task(plan, args.data, device)
    if device.type == "cuda":
        torch.cuda.synchronize()  # lanes have streams of their own
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
    # One queue of the card's for each lane; with the 8 that are the default some would wait for others.
    environment = {"CUDA_DEVICE_MAX_CONNECTIONS": "32", **os.environ}
    # So that what is told to end does not leave the process that trains behind.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for _ in range(1 + RESTARTS):
            before_it = len(lines.read())
            process = subprocess.Popen([*command, "--worker", *deadline], env=environment)
            try:
                status = process.wait()
            finally:
                process.kill()
            if status < 0:
                print(f"the process that trains died, status {status}", file=sys.stderr, flush=True)
            if status != SPOILED and not (status < 0 and note_death(lines, status, before_it)):
                break
    finally:
        signal.signal(signal.SIGTERM, before)
    return status


def note_death(lines: Lines, status: int, before_it: int = 0) -> bool:
    """Writes down of the runs that a process died in that they failed, so that they are not begun again.

    Args:
        lines: of the file of results.
        status: of the process.
        before_it: how many lines are older than the process. What was cut off in those may be begun again.

    Returns:
        Whether there are such runs.
    """
    found, noted = lines.read(), False
    ends = [line for kind in ("run", "error") for line in of_kind(found[before_it:], kind) if "part" in line]
    ended = {(key_of(line), line["mode"]) for line in ends}
    for line in of_kind(found[before_it:], "begin"):
        if (key_of(line), line["mode"]) not in ended:
            one = {key: line[key] for key in ("part", "seed", "rate", "contender", "mode", "data")}
            mine = {"contender": one["contender"], "mode": one["mode"]}
            worked = of_kind(found, "run", **mine) or of_kind(found, "epoch", **mine)
            stage = "run" if worked else "ready"
            lines.add("error", **one, stage=stage, error=f"the process died, status {status}")
            ended.add((key_of(line), line["mode"]))
            noted = True
    return noted
