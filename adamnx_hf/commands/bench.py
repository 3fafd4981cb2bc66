"""`adamnx-hf bench`: an optimizer step's time and memory beside other optimizers', interleaved in one run."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.bench.cases import CASES
from adamnx_hf.bench.contestants import CONTESTANTS
from adamnx_hf.bench.plan import make_plan
from adamnx_hf.bench.report import draw_report, find_kernel, run_plan
from adamnx_hf.bench.tables import format_report

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `adamnx-hf bench`."""
    parser.description = (
        "Times optimizer.step() of AdamNX beside torch's AdamW and, where installed, of others. They take "
        "turns in one run, on the same parameters and gradients, with states of their own. Prints "
        "medians, and each one's time divided by torch's fused AdamW's: below 1 is faster."
    )
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], help="default: cuda where there is a card, else cpu"
    )
    parser.add_argument(
        "--memory", action="store_true",
        help="compare ways to store moments and parameters: bytes of state and at the peak, and times",
    )  # fmt: skip
    parser.add_argument("--cases", nargs="+", choices=list(CASES), metavar="CASE",
                        help=f"of {', '.join(CASES)} (default: all for the device)")  # fmt: skip
    parser.add_argument("--optimizers", nargs="+", choices=list(CONTESTANTS), metavar="NAME",
                        help=f"of {', '.join(CONTESTANTS)} (default: all that are installed; those of "
                        "torchao, which compiles for each shape, only in the cases of --memory, on a card "
                        "llama-1b and llama-1b-bf16)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=30, help="turns of each optimizer (default: 30)")
    parser.add_argument(
        "--steps", type=int, default=5, help="timed steps in a turn, after one untimed (default: 5)"
    )
    parser.add_argument(
        "--threads", type=int, default=None, help="on the CPU: torch.set_num_threads (default: torch's own)"
    )
    parser.add_argument(
        "--tune", action="store_true",
        help="instead, time AdamNX's kernel with chunks of other sizes and cache hints, for five kinds of "
        "state (cuda); cases give the shapes (default: 8x34m)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=None,
        help="with --tune: stop after so long, with what has been measured (default: never)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="PATH",
        help="also write PATH.json, PATH.md (both after each case) and a bar chart, PATH.png; "
        "with --tune PATH.jsonl, a line for each measurement, in place of the chart",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="let --output replace what is there")


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark, prints its tables and returns the exit status."""
    start = time.monotonic()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it says that there is no card to profile
    import torch

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    suffixes = (".json", ".md", ".jsonl" if args.tune else ".png")
    outputs = [args.output.with_suffix(s) for s in suffixes] if args.output else []
    if problem := _find_problem(args, device, outputs):
        print(f"adamnx-hf bench: {problem}", file=sys.stderr)
        return 2
    if outputs and not args.tune:
        importlib.import_module("matplotlib")  # raises now if it is missing, not after the measurement
    if device == "cpu":
        print("adamnx-hf bench: on the CPU" + ("" if args.device else "; no CUDA card was found"))
    if args.threads:
        torch.set_num_threads(args.threads)
    plan = make_plan(
        device, args.cases, args.optimizers, rounds=args.rounds, steps=args.steps, memory=args.memory,
        tune=args.tune, deadline=None if args.seconds is None else start + args.seconds,
    )  # fmt: skip
    for line in plan.left_out:
        print(f"left out, {line}")
    report = run_plan(plan, _write_command(args), outputs)
    print(format_report(report, memory=args.memory))
    if outputs:
        if not args.tune:
            draw_report(report, plan, outputs[2])
        print(f"written: {', '.join(str(path) for path in outputs if path.exists())}")
    return _find_status(report, device)


def _find_problem(args: argparse.Namespace, device: str, outputs: Sequence[Path]) -> str | None:
    """Returns why what was asked for cannot be measured, and what to do; None if it can be."""
    import torch

    if args.rounds < 1 or args.steps < 1:
        return "--rounds and --steps must be at least 1"
    if device == "cuda" and not torch.cuda.is_available():
        return "--device cuda, but torch finds no CUDA card here"
    if args.tune and args.memory:
        return "--tune and --memory are two measurements: choose one"
    if args.seconds is not None and not args.tune:
        return f"--seconds {args.seconds:g} is for --tune; without it, choose --rounds"
    if args.seconds is not None and not args.seconds > 0:
        return f"--seconds {args.seconds:g} must be greater than 0"
    if args.tune and find_kernel(device)[0] != "triton":
        why = f"; here it cannot be used: {find_kernel(device)[1]}" if device == "cuda" else ""
        return f"--tune is for the Triton kernel, which needs a CUDA card{why}"
    for name in args.cases or ():
        if device not in CASES[name].devices:
            fitting = ", ".join(n for n, case in CASES.items() if device in case.devices)
            return f"--cases {name} is not for {device}; choose of {fitting}"
    there = [str(path) for path in outputs if path.exists()]
    if there and not args.overwrite:
        return f"{', '.join(there)} would be overwritten; pass --overwrite or another --output"
    return None


def _find_status(report: Mapping[str, Any], device: str) -> int:
    """Returns the exit status, with a line on stderr if it is not 0. On the CPU torch's kernel may serve."""
    status = 0
    for result in report["results"]:
        if lost := result.get("lost"):
            print(
                f"adamnx-hf bench: stopped in {result['case']}, where the card's context was lost ({lost}); "
                "run the cases that are missing by themselves, with --cases",
                file=sys.stderr,
            )
            status = 1
    if device == "cuda" and report["kernel"] != "triton":
        print(
            f"adamnx-hf bench: AdamNX was served by {report['kernel']}, not by its own kernel "
            f"({report['why_not_triton']}); mend that before you use these times",
            file=sys.stderr,
        )
        status = 1
    return status


def _write_command(args: argparse.Namespace) -> str:
    words = [
        f"--{flag} {' '.join(value) if isinstance(value, list) else value}"
        for flag in ("device", "cases", "optimizers", "rounds", "steps", "threads", "seconds")
        if (value := getattr(args, flag))
    ]
    words += [f"--{flag}" for flag in ("tune", "memory") if getattr(args, flag)]
    return " ".join(["adamnx-hf bench", *words])
