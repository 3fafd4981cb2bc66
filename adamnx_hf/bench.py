"""`adamnx-hf bench`: the optimizer step's time beside torch.optim.AdamW(fused=True), in one run."""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["CASES", "add_arguments", "run"]

#: Parameters by name: how many tensors of which shape.
CASES: dict[str, tuple[int, tuple[int, ...]]] = {
    "10 x 5M": (10, (5_000_000,)),
    "400 x (8, 1024)": (400, (8, 1024)),
    "2000 x 1k": (2000, (1000,)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `adamnx-hf bench`."""
    parser.description = (
        "Times optimizer.step() of AdamNX and of torch.optim.AdamW(fused=True) on the CPU, each on tensors "
        "of its own, taking turns in one run. Prints medians and their ratio: below 1, AdamNX is faster."
    )
    parser.add_argument("--rounds", type=int, default=30, help="turns of each optimizer (default: 30)")
    parser.add_argument(
        "--steps", type=int, default=5, help="timed steps in a turn, after one untimed (default: 5)"
    )
    parser.add_argument(
        "--threads", type=int, default=None, help="torch.set_num_threads (default: torch's own)"
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE",
                        help=f"of {', '.join(map(repr, CASES))} (default: all)")  # fmt: skip
    parser.add_argument("--output", type=Path, help="also write PATH.json and PATH.md")


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark; returns the exit status."""
    if args.rounds < 1 or args.steps < 1:
        print("adamnx-hf bench: --rounds and --steps must be at least 1", file=sys.stderr)
        return 2
    import torch
    from tqdm import tqdm

    if args.threads:
        torch.set_num_threads(args.threads)
    results = []
    with tqdm(total=len(args.cases) * args.rounds, desc="bench", unit="round", leave=False) as progress:
        for name in args.cases:
            results.append(
                {"case": name, **_time_case(*CASES[name], args.rounds, args.steps, progress.update)}
            )

    command, environment = _command(args), _environment()
    report = {"command": command, "environment": environment, "results": results}
    table = _table(results)
    print(table)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
        facts = [f"- {key}: {value}" for key, value in environment.items()]
        text = ["# CPU step time", "", table, "", f"Command: `{command}`", "", *facts, ""]
        args.output.with_suffix(".md").write_text("\n".join(text))
        print(f"written: {args.output.with_suffix('.json')}, {args.output.with_suffix('.md')}")
    return 0


def _time_case(
    count: int, shape: tuple[int, ...], rounds: int, steps: int, tick: Callable[[], Any]
) -> dict[str, Any]:
    """Median seconds of a step of each optimizer."""
    import torch

    from adamnx_hf import AdamNX

    def stepper(make: Callable[..., torch.optim.Optimizer]) -> Callable[[], Any]:
        params = [torch.nn.Parameter(torch.randn(shape)) for _ in range(count)]
        for param in params:
            param.grad = torch.randn(shape)
        return make(params, fused=True).step

    contestants = {"AdamW": stepper(torch.optim.AdamW), "AdamNX": stepper(AdamNX)}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        # The order alternates, and a turn's first step, which finds the other's data in the caches, is
        # not timed.
        for name, step in list(contestants.items())[:: 1 if turn % 2 else -1]:
            step()
            for _ in range(steps):
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
        tick()
    medians = {name: median(values) for name, values in times.items()}
    return {
        "parameters": count * math.prod(shape),
        "adamw_fused_ms": medians["AdamW"] * 1e3,
        "adamnx_ms": medians["AdamNX"] * 1e3,
        "ratio": medians["AdamNX"] / medians["AdamW"],
    }


def _table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| parameters | torch AdamW fused, ms | AdamNX, ms | ratio |",
        "|---|---:|---:|---:|",
    ]
    for row in results:
        lines.append(
            f"| {row['case']} | {row['adamw_fused_ms']:.2f} | {row['adamnx_ms']:.2f} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines)


def _command(args: argparse.Namespace) -> str:
    command = f"adamnx-hf bench --rounds {args.rounds} --steps {args.steps}"
    return command + (f" --threads {args.threads}" if args.threads else "")


def _environment() -> dict[str, str]:
    import torch

    import adamnx_hf

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    return {
        "adamnx-hf": f"{adamnx_hf.__version__} (commit {commit.stdout.strip() or 'unknown'})",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{processor}, {torch.get_num_threads()} threads",
    }
