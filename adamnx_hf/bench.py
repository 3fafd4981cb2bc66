"""`adamnx-hf bench`: an optimizer step's time and memory beside other optimizers', interleaved in one run."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["BASELINE", "CASES", "CONTESTANTS", "Case", "Contestant", "add_arguments", "run"]

Shape = tuple[int, ...]

#: What the others are divided by.
BASELINE = "adamw_torch_fused"
_CLIPPED = " + clip"
_MAX_NORM = 1.0
# With less than this in gradients there is a second set of them, so that a step finds them elsewhere.
_SECOND_GRADIENTS = 2**30


@dataclasses.dataclass(frozen=True)
class Case:
    """Parameters to step, all in one group."""

    what: str
    shapes: Callable[[], Sequence[Shape]]
    devices: tuple[str, ...]
    dtype: str = "float32"
    needs: str | None = None
    memory: bool = False
    """Whether it is what `--memory` looks at, and on the CPU nothing else does."""


def _llama(layers: int, hidden: int, intermediate: int, key_value: int, vocabulary: int) -> Sequence[Shape]:
    """The parameters of a Llama whose output layer is its embedding."""
    attention = [(hidden, hidden), (key_value, hidden), (key_value, hidden), (hidden, hidden)]
    mlp = [(intermediate, hidden), (intermediate, hidden), (hidden, intermediate)]
    return [(vocabulary, hidden), *layers * [*attention, *mlp, (hidden,), (hidden,)], (hidden,)]


def _lora(layers: int, hidden: int, intermediate: int, rank: int) -> Sequence[Shape]:
    """LoRA's two matrices for each of the seven linear layers of a Llama block."""
    linears = [*4 * [(hidden, hidden)], *2 * [(intermediate, hidden)], (hidden, intermediate)]
    return layers * [shape for out, in_ in linears for shape in ((rank, in_), (out, rank))]


def _torchvision(name: str) -> Sequence[Shape]:
    import torch
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=100)
    return [tuple(param.shape) for param in model.parameters()]


#: By the name `--cases` takes.
CASES: dict[str, Case] = {
    "llama-1b": Case("Llama-3.2-1B", lambda: _llama(16, 2048, 8192, 512, 128_256), ("cuda",), memory=True),
    "llama-1b-bf16": Case(
        "Llama-3.2-1B in bfloat16",
        lambda: _llama(16, 2048, 8192, 512, 128_256),
        ("cuda",),
        dtype="bfloat16",
        memory=True,
    ),
    "llama-5m": Case("a small Llama", lambda: _llama(4, 256, 704, 256, 8192), ("cpu",), memory=True),
    "llama-5m-bf16": Case(
        "a small Llama in bfloat16",
        lambda: _llama(4, 256, 704, 256, 8192),
        ("cpu",),
        dtype="bfloat16",
        memory=True,
    ),
    "convnext-b": Case("ConvNeXt-B", lambda: _torchvision("convnext_base"), ("cuda",), needs="torchvision"),
    "efficientnet-v2-l": Case(
        "EfficientNetV2-L", lambda: _torchvision("efficientnet_v2_l"), ("cuda",), needs="torchvision"
    ),
    "lora-7b": Case("LoRA r = 16 on Llama-2-7B", lambda: _lora(32, 4096, 11_008, 16), ("cuda",)),
    "10x5m": Case("10 x 5 M", lambda: 10 * [(5_000_000,)], ("cpu",)),
    "400x8k": Case("400 x (8, 1024)", lambda: 400 * [(8, 1024)], ("cpu", "cuda")),
    "2000x1k": Case("2,000 x 1 k", lambda: 2000 * [(1000,)], ("cpu", "cuda")),
}


@dataclasses.dataclass(frozen=True)
class Contestant:
    """An optimizer to time."""

    what: str
    make: Callable[[list[Any]], Any]
    devices: tuple[str, ...]
    needs: str | None = None
    clips: bool = False
    """Whether clipping and a step are timed too."""
    dtype: str | None = None
    """Of the parameters, if it is for one dtype only."""
    timed: tuple[str, ...] = ()
    """The devices on which it takes part without `--memory`."""


def _adamnx(params: list[Any], **options: Any) -> Any:
    from adamnx_hf.optim import AdamNX

    return AdamNX(params, lr=1e-6, **options)


def _adamnx_as(state_dtype: str, param_rounding: str = "nearest") -> Callable[[list[Any]], Any]:
    return functools.partial(_adamnx, state_dtype=state_dtype, param_rounding=param_rounding)


def _adamw(**flags: Any) -> Callable[[list[Any]], Any]:
    def make(params: list[Any]) -> Any:
        import torch

        return torch.optim.AdamW(params, lr=1e-6, **flags)

    return make


def _from(module: str, name: str, **options: Any) -> Callable[[list[Any]], Any]:
    def make(params: list[Any]) -> Any:
        return getattr(importlib.import_module(module), name)(params, lr=1e-6, **options)

    return make


_BOTH = ("cpu", "cuda")

#: By the name `--optimizers` takes. AdamNX's others are named by moments and rounding of parameters.
CONTESTANTS: dict[str, Contestant] = {
    "adamnx": Contestant("AdamNX", _adamnx, _BOTH, clips=True, timed=_BOTH),
    "adamnx_bf16": Contestant("AdamNX, bfloat16 state", _adamnx_as("bfloat16"), _BOTH),
    "adamnx_int8": Contestant("AdamNX, 8-bit state", _adamnx_as("int8"), _BOTH),
    "adamnx_bf16_stochastic": Contestant(
        "AdamNX, bfloat16 state, stochastic", _adamnx_as("bfloat16", "stochastic"), _BOTH, dtype="bfloat16"
    ),
    "adamnx_bf16_kahan": Contestant(
        "AdamNX, bfloat16 state, Kahan", _adamnx_as("bfloat16", "kahan"), _BOTH, dtype="bfloat16"
    ),
    "adamnx_int8_stochastic": Contestant(
        "AdamNX, 8-bit state, stochastic", _adamnx_as("int8", "stochastic"), _BOTH, dtype="bfloat16"
    ),
    BASELINE: Contestant("torch AdamW, fused", _adamw(fused=True), _BOTH, clips=True, timed=_BOTH),
    "adamw_torch_foreach": Contestant(
        "torch AdamW, foreach", _adamw(foreach=True), _BOTH, clips=True, timed=_BOTH
    ),
    "adamw_optimi": Contestant(
        "optimi AdamW, Triton",
        _from("optimi", "AdamW", triton=True),
        ("cuda",),
        needs="optimi",
        timed=("cuda",),
    ),
    "adamw_optimi_kahan": Contestant(
        "optimi AdamW, Kahan",
        _from("optimi", "AdamW", kahan_sum=True),
        _BOTH,
        needs="optimi",
        dtype="bfloat16",
    ),
    "adamw_torchao_8bit": Contestant(
        "torchao AdamW, 8-bit state",
        _from("torchao.optim", "AdamW8bit"),
        _BOTH,
        needs="torchao",
        timed=("cuda",),
    ),
    "adamw_torchao_stochastic": Contestant(
        "torchao AdamW, stochastic",
        _from("torchao.optim", "_AdamW", bf16_stochastic_round=True),
        _BOTH,
        needs="torchao",
        dtype="bfloat16",
    ),
    "adamw_bnb_8bit": Contestant(
        "bitsandbytes AdamW, 8-bit state",
        _from("bitsandbytes.optim", "AdamW8bit"),
        _BOTH,
        needs="bitsandbytes",
        timed=("cuda",),
    ),
}


def _names(known: Iterable[str]) -> str:
    return ", ".join(known)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `adamnx-hf bench`."""
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
                        help=f"of {_names(CASES)} (default: all for the device)")  # fmt: skip
    parser.add_argument("--optimizers", nargs="+", choices=list(CONTESTANTS), metavar="NAME",
                        help=f"of {_names(CONTESTANTS)} (default: all that are installed)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=30, help="turns of each optimizer (default: 30)")
    parser.add_argument(
        "--steps", type=int, default=5, help="timed steps in a turn, after one untimed (default: 5)"
    )
    parser.add_argument(
        "--threads", type=int, default=None, help="on the CPU: torch.set_num_threads (default: torch's own)"
    )
    parser.add_argument(
        "--tune", action="store_true", help="instead, time AdamNX's kernel with chunks of other sizes (cuda)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help="also write PATH.json, PATH.md and a bar chart, PATH.png"
    )
    parser.add_argument("--overwrite", action="store_true", help="let --output replace what is there")


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark; returns the exit status."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell that there is no card to profile
    import torch

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    names = args.optimizers or [n for n, c in CONTESTANTS.items() if args.memory or device in c.timed]
    cases = args.cases or [
        name
        for name, case in CASES.items()
        if device in case.devices and (case.memory if args.memory else device == "cuda" or not case.memory)
    ]
    outputs = [args.output.with_suffix(s) for s in (".json", ".md", ".png")] if args.output else []
    if problem := _problem(args, device, outputs):
        print(f"adamnx-hf bench: {problem}", file=sys.stderr)
        return 2
    if outputs and not args.tune:
        importlib.import_module("matplotlib")  # told now if it is missing, not after the measurement
    if device == "cpu":
        print("adamnx-hf bench: on the CPU" + ("" if args.device else "; no CUDA card was found"))
    if args.threads:
        torch.set_num_threads(args.threads)
    wanted: list[tuple[str, Case | Contestant]] = [(name, CONTESTANTS[name]) for name in names]
    wanted += [(name, CASES[name]) for name in cases]
    left_out = [
        f"{name}: {thing.needs} is not installed"
        for name, thing in wanted
        if device in thing.devices and thing.needs and importlib.util.find_spec(thing.needs) is None
    ]
    for line in left_out:
        print(f"left out, {line}")
    missing = {line.partition(":")[0] for line in left_out}
    names = [n for n in names if device in CONTESTANTS[n].devices and n not in missing]
    cases = [name for name in cases if name not in missing]

    report: dict[str, Any] = {"command": _command(args), "environment": _environment(device)}
    if device == "cuda":
        report["copy_gb_per_s"] = _copy_bandwidth()
    timed = _tune if args.tune else _compare
    report["results"] = list(timed(cases, names, args, device, report.get("copy_gb_per_s")))
    report["left_out"] = left_out
    table = _tables(report, memory=args.memory)
    print(table)
    if outputs:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        outputs[0].write_text(json.dumps(report, indent=2) + "\n")
        what = "Memory of optimizers" if args.memory else "Time of a step"
        title = f"{what}: {report['environment'].get('card') or report['environment']['processor']}"
        facts = [f"- {key}: {value}" for key, value in report["environment"].items()]
        outputs[1].write_text("\n".join([f"# {title}", "", table, "", *facts, ""]))
        if not args.tune:
            (_draw_memory if args.memory else _draw)(report, title, outputs[2])
        print(f"written: {', '.join(str(path) for path in outputs if path.exists())}")
    return 0


def _problem(args: argparse.Namespace, device: str, outputs: list[Path]) -> str | None:
    import torch

    if args.rounds < 1 or args.steps < 1:
        return "--rounds and --steps must be at least 1"
    if device == "cuda" and not torch.cuda.is_available():
        return "--device cuda, but torch finds no CUDA card here"
    if args.tune and args.memory:
        return "--tune and --memory are two measurements: choose one"
    if args.tune and device != "cuda":
        return "--tune is for the Triton kernel, which needs a CUDA card"
    for name in args.cases or ():
        if device not in CASES[name].devices:
            fitting = _names(n for n, case in CASES.items() if device in case.devices)
            return f"--cases {name} is not for {device}; choose of {fitting}"
    there = [str(path) for path in outputs if path.exists()]
    if there and not args.overwrite:
        return f"{', '.join(there)} would be overwritten; pass --overwrite or another --output"
    return None


# ---------------------------------------------------------------- measuring


def _compare(
    cases: list[str], names: list[str], args: argparse.Namespace, device: str, copy_gb_per_s: float | None
) -> Iterator[dict[str, Any]]:
    import torch
    from tqdm import tqdm

    with tqdm(total=len(cases) * args.rounds, desc="bench", unit="round", leave=False) as progress:
        for case in cases:
            progress.set_postfix_str(case)
            failures: list[str] = []
            try:
                with _parameters(CASES[case], device) as params:
                    fitting = [n for n in names if CONTESTANTS[n].dtype in (None, CASES[case].dtype)]
                    runners = dict(_runners(fitting, params, device, failures, clip=not args.memory))
                    _warm_up(runners, device, failures)
                    rows = _time(runners, params, args.rounds, args.steps, device, progress.update)
                    count = sum(param.numel() for param in params)
                    runners.clear()
            except torch.OutOfMemoryError as error:
                failures.append(f"{case}: {_one_line(error)}")
                rows, count = [], 0
            _add_shares(rows, copy_gb_per_s)
            yield {"case": case, "parameters": count, "optimizers": rows, "failed": failures}


def _add_shares(rows: list[dict[str, Any]], copy_gb_per_s: float | None) -> None:
    """Adds the bytes moved in a second, as a share of what a copy moves, where both are known."""
    for row in rows:
        if copy_gb_per_s and row["bytes"]:
            row["share_of_copy"] = row["bytes"] / (row["ms"] * 1e-3) / (copy_gb_per_s * 1e9)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextlib.contextmanager
def _parameters(case: Case, device: str) -> Iterator[list[torch.nn.Parameter]]:
    """The case's parameters, with gradients; gives their memory back."""
    import torch

    dtype = getattr(torch, case.dtype)
    params = [torch.nn.Parameter(torch.randn(s, device=device, dtype=dtype)) for s in case.shapes()]
    for param in params:
        param.grad = torch.randn_like(param)
    try:
        yield params
    finally:
        del params
        _give_back(device)


@dataclasses.dataclass
class _Runner:
    """What takes turns: a call, and the memory it needed."""

    step: Callable[[], Any]
    moved: int | None
    state_bytes: int
    peak_bytes: int | None = None


def _stepped(name: str, params: list[Any], failures: list[str]) -> Any:
    """The optimizer `name` after its first step; None, and a line in `failures`, if it cannot."""
    try:
        optimizer = CONTESTANTS[name].make(params)
        optimizer.step()
    except Exception as error:  # another package's, or too little memory beside the others
        failures.append(f"{name}: {_one_line(error)}")
        return None
    return optimizer


def _give_back(device: str) -> None:
    """Frees the memory of what is not referred to any more."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _runners(
    names: list[str], params: list[Any], device: str, failures: list[str], *, clip: bool
) -> Iterator[tuple[str, _Runner]]:
    import torch

    for name in names:
        contestant = CONTESTANTS[name]
        before = _allocated(device)
        optimizer = _stepped(name, params, failures)
        if optimizer is None:
            _give_back(device)
            continue
        held = _allocated(device) - before if device == "cuda" else _state_bytes(optimizer)
        step = optimizer.step
        moved = _bytes_moved(params, optimizer)
        yield name, _Runner(step, moved, held)
        if not (clip and contestant.clips):
            continue

        def clip_first(step: Any = step) -> None:
            torch.nn.utils.clip_grad_norm_(params, _MAX_NORM, foreach=True)
            step()

        def clip_within(optimizer: Any = optimizer) -> None:
            optimizer.max_grad_norm = _MAX_NORM
            optimizer.step()
            optimizer.max_grad_norm = None

        own = hasattr(optimizer, "max_grad_norm")
        yield name + _CLIPPED, _Runner(clip_within if own else clip_first, None, held)


def _allocated(device: str) -> int:
    import torch

    return torch.cuda.memory_allocated() if device == "cuda" else 0


def _state_bytes(optimizer: Any) -> int:
    """Of the storages that an optimizer's state is made of."""
    from adamnx_hf.memory import plain_tensors

    storages = [
        t.untyped_storage() for t in plain_tensors(v for s in optimizer.state.values() for v in s.values())
    ]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _bytes_moved(params: list[Any], optimizer: Any) -> int | None:
    """Bytes a step at least reads and writes; None where the state is not made of plain tensors."""
    import torch

    from adamnx_hf.optim.formats import packed_shape

    moved = 0
    for param in params:
        shapes = [param.shape, packed_shape(param.shape)] if param.ndim else [param.shape]
        state = [v for v in optimizer.state[param].values() if getattr(v, "shape", None) in shapes]
        if len(state) < 2 or any(type(tensor) is not torch.Tensor for tensor in state):
            return None
        moved += 2 * param.nbytes + param.grad.nbytes + 2 * sum(tensor.nbytes for tensor in state)
    return moved


def _warm_up(runners: dict[str, _Runner], device: str, failures: list[str]) -> None:
    """Compiles what there is to compile, and measures memory; leaves out what has too little of it."""
    import torch

    for name, runner in list(runners.items()):
        try:
            runner.step()
            runner.peak_bytes = _temporary_bytes(runner.step, device)
        except torch.OutOfMemoryError as error:
            failures.append(f"{name}: {_one_line(error)}")
            del runners[name], runner
            _give_back(device)


def _time(
    runners: dict[str, _Runner],
    params: list[Any],
    rounds: int,
    steps: int,
    device: str,
    tick: Callable[[], Any],
) -> list[dict[str, Any]]:
    """Medians of all runners, which take turns."""
    import torch

    cuda = device == "cuda"
    gradients = [[param.grad for param in params]]
    if sum(param.grad.nbytes for param in params) < _SECOND_GRADIENTS:
        gradients.append([param.grad.clone() for param in params])

    times: dict[str, list[float]] = {name: [] for name in runners}
    host: dict[str, list[float]] = {name: [] for name in runners}
    moves = 0
    for turn in range(rounds):
        # The order alternates, and a turn's first step, which finds the other's data in the caches, is not
        # timed.
        for name, runner in list(runners.items())[:: 1 if turn % 2 else -1]:
            runner.step()
            times[name].append(_milliseconds(runner.step, steps, cuda))
            if cuda:
                moves += 1  # where there are two sets, a step finds its gradients where they were not before
                for param, grad in zip(params, gradients[moves % len(gradients)], strict=True):
                    param.grad = grad
                torch.cuda.synchronize()
                start = time.perf_counter()
                runner.step()
                host[name].append((time.perf_counter() - start) * 1e6)
                torch.cuda.synchronize()
        tick()
    baseline = {clip: times.get(BASELINE + clip) for clip in ("", _CLIPPED)}
    rows = []
    for name, runner in runners.items():
        reference = baseline[_CLIPPED if name.endswith(_CLIPPED) else ""]
        rows.append(
            {
                "optimizer": name,
                "ms": median(times[name]),
                "ratio": median(times[name]) / median(reference) if reference else None,
                "quartiles_ms": _quartiles(times[name]),
                "host_us": median(host[name]) if cuda else None,
                "bytes": runner.moved,
                "state_bytes": runner.state_bytes,
                "peak_bytes": runner.peak_bytes,
            }
        )
    return rows


def _temporary_bytes(step: Callable[[], Any], device: str) -> int:
    """The most that torch's allocator hands out during a step, beyond what is held before it."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = _allocated(device)
        step()
        return torch.cuda.max_memory_allocated() - before
    # Not the process' own peak: that is also the compiler's, and what malloc has kept of earlier steps.
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events: Any = profile.profiler
    changes = [e for e in events.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(changes, key=lambda event: event.start_ns()))
    return max([0, *held])


def _milliseconds(step: Callable[[], Any], steps: int, cuda: bool) -> float:
    """Of one step, when `steps` follow one another."""
    import torch

    if not cuda:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - start) / steps * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(steps):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / steps


def _quartiles(values: list[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered[round(q * (len(ordered) - 1))] for q in (0.25, 0.75)]


def _copy_bandwidth(gib: float = 2.0, rounds: int = 20) -> float:
    """What a copy within the card's memory moves, read and written, in 10^9 bytes a second."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    elements = int(min(gib * 2**30, free / 4)) // 4
    source = torch.randn(elements, device="cuda")
    target = torch.empty_like(source)
    times = [_milliseconds(functools.partial(target.copy_, source), 5, cuda=True) for _ in range(rounds)]
    del source, target
    torch.cuda.empty_cache()
    return 2 * elements * 4 / (median(times) * 1e-3) / 1e9


def _tune(
    cases: list[str], names: list[str], args: argparse.Namespace, device: str, copy_gb_per_s: float | None
) -> Iterator[dict[str, Any]]:
    """AdamNX's kernel with each size of chunk and number of warps, in turns."""
    from tqdm import tqdm

    from adamnx_hf.optim.engines import triton as engine

    sizes = [(block, warps) for block in (512, 1024, 2048, 4096, 8192) for warps in (2, 4, 8, 16)]
    sizes = [(b, w) for b, w in sizes if 4 <= b // (32 * w) <= 32]
    shipped = engine.BLOCK, engine.WARPS
    with tqdm(total=len(cases) * args.rounds, desc="tune", unit="round", leave=False) as progress:
        for case in cases:
            progress.set_postfix_str(case)
            with _parameters(CASES[case], device) as params:
                optimizer = _adamnx(params)
                optimizer.step()
                moved = _bytes_moved(params, optimizer)
                # What the optimizer knows of its tensors is kept apart: the tables are for one size.
                kept: dict[tuple[int, int], Any] = {size: type(optimizer._memos)(dict) for size in sizes}

                def step(size: tuple[int, int], optimizer: Any = optimizer, kept: Any = kept) -> None:
                    engine.BLOCK, engine.WARPS = size
                    optimizer._memos = kept[size]
                    optimizer.step()

                runners = {
                    f"{size[0]} x {size[1]}": _Runner(functools.partial(step, size), moved, 0)
                    for size in sizes
                }
                failures: list[str] = []
                try:
                    _warm_up(runners, device, failures)
                    rows = _time(runners, params, args.rounds, args.steps, device, progress.update)
                finally:
                    engine.BLOCK, engine.WARPS = shipped
                _add_shares(rows, copy_gb_per_s)
                count = sum(param.numel() for param in params)
                yield {"case": case, "parameters": count, "optimizers": rows, "failed": failures}
                del optimizer, kept, runners


# ---------------------------------------------------------------- reporting


def _tables(report: dict[str, Any], *, memory: bool = False) -> str:
    lines = [f"Command: `{report['command']}`", ""]
    if bandwidth := report.get("copy_gb_per_s"):
        lines += [f"A copy within the card's memory moves {bandwidth:,.0f} GB/s.", ""]
    for result in report["results"]:
        case = CASES[result["case"]]
        lines += [f"## {case.what}: {result['parameters'] / 1e6:,.1f} M parameters, {case.dtype}", ""]
        cuda = result["optimizers"][0]["host_us"] is not None if result["optimizers"] else False
        head = ["optimizer", "ms", "of torch fused"]
        head += ["share of copy bandwidth", "host µs", "state MB", "temporary MB"] if cuda else []
        if memory:
            head = ["optimizer", "state", "temporary", "parameter, gradient and both", "time, of torch fused"]
            lines += ["Bytes a parameter:", ""]
        lines += [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
        for row in result["optimizers"]:
            cells = [_label(row["optimizer"]), f"{row['ms']:.3f}", _or_dash(row["ratio"], "{:.2f}")]
            if cuda:
                cells += [
                    _or_dash(row.get("share_of_copy"), "{:.0%}"),
                    f"{row['host_us']:,.0f}",
                    _or_dash(row["state_bytes"], "{:,.0f}", 1e6),
                    _or_dash(row["peak_bytes"], "{:,.1f}", 1e6),
                ]
            if memory:
                each = _bytes_each(row, result)
                sizes = [each["state"], each["temporary"], sum(each.values())]
                cells = [cells[0], *(f"{size:.2f}" for size in sizes), cells[2]]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        lines += [f"Failed, {line}.\n" for line in result["failed"]]
    lines += [f"Left out, {line}." for line in report["left_out"]]
    return "\n".join(lines).rstrip()


def _bytes_each(row: dict[str, Any], result: dict[str, Any]) -> dict[str, float]:
    """Bytes a parameter, at the peak of a step."""
    import torch

    itemsize = getattr(torch, CASES[result["case"]].dtype).itemsize
    count = result["parameters"]
    return {
        "parameter": itemsize,
        "gradient": itemsize,
        "state": row["state_bytes"] / count,
        "temporary": row["peak_bytes"] / count,
    }


def _label(name: str) -> str:
    plain = name.removesuffix(_CLIPPED)
    what = CONTESTANTS[plain].what if plain in CONTESTANTS else plain
    return f"{what}, with clipping" if name.endswith(_CLIPPED) else what


def _or_dash(value: float | None, form: str, unit: float = 1.0) -> str:
    return "-" if value is None else form.format(value / unit)


def _draw(report: dict[str, Any], title: str, path: Path) -> None:
    """Bars of each optimizer's time as a share of torch's fused AdamW's, for every case."""
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    results = [r for r in report["results"] if any(row["ratio"] for row in r["optimizers"])]
    if not results:
        return
    heights = [len(result["optimizers"]) for result in results]
    style: dict[Any, Any] = {"font.size": 11, "axes.titlelocation": "left", "axes.titlesize": 12}
    with plt.rc_context(style):
        figure, panels = plt.subplots(
            len(results), 1, figsize=(8, 0.36 * sum(heights) + 0.8 * len(results) + 0.8), dpi=150,
            layout="constrained", gridspec_kw={"height_ratios": heights}, squeeze=False,
        )  # fmt: skip
        figure.suptitle(f"{title}\n1 = torch's fused AdamW, with or without clipping; shorter is faster")
        for axes, result in zip(panels[:, 0], results, strict=True):
            rows = result["optimizers"][::-1]
            ratios = [row["ratio"] or math.nan for row in rows]
            colours = ["#0072B2" if row["optimizer"].startswith("adamnx") else "#BBBBBB" for row in rows]
            bars = axes.barh([_label(row["optimizer"]) for row in rows], ratios, color=colours)
            texts = [f"{ratio:.2f}   ({row['ms']:,.2f} ms)" for ratio, row in zip(ratios, rows, strict=True)]
            axes.axvline(1, color="#444444", linewidth=1, linestyle=":", zorder=0)
            ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.bar_label(bars, texts, padding=5, fontsize=10, bbox=ground)
            case = CASES[result["case"]]
            axes.set_title(f"{case.what}, {result['parameters'] / 1e6:,.1f} M parameters")
            axes.set_xlim(0, max(ratios) * 1.25)
            axes.spines[["top", "right", "bottom"]].set_visible(False)
            axes.tick_params(bottom=False, labelbottom=False)
        figure.savefig(path, facecolor="white")
        plt.close(figure)


def _draw_memory(report: dict[str, Any], title: str, path: Path) -> None:
    """Bars of each optimizer's bytes a parameter, by what they are for; beside them its time."""
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    results = [result for result in report["results"] if result["optimizers"]]
    if not results:
        return
    colours = {"parameter": "#BBBBBB", "gradient": "#DDDDDD", "state": "#0072B2", "temporary": "#E69F00"}
    heights = [len(result["optimizers"]) for result in results]
    style: dict[Any, Any] = {"font.size": 11, "axes.titlelocation": "left", "axes.titlesize": 12}
    with plt.rc_context(style):
        figure, panels = plt.subplots(
            len(results), 1, figsize=(9, 0.36 * sum(heights) + 0.9 * len(results) + 1.0), dpi=150,
            layout="constrained", gridspec_kw={"height_ratios": heights}, squeeze=False, sharex=True,
        )  # fmt: skip
        figure.suptitle(
            f"{title}\nbytes a parameter at the peak of a step, and its time: 1 = torch's fused AdamW"
        )
        for axes, result in zip(panels[:, 0], results, strict=True):
            rows = result["optimizers"][::-1]
            labels = [_label(row["optimizer"]) for row in rows]
            parts = [_bytes_each(row, result) for row in rows]
            left = [0.0] * len(rows)
            for part, colour in colours.items():
                widths = [each[part] for each in parts]
                bars = axes.barh(labels, widths, left=left, color=colour, edgecolor="white", label=part)
                left = [start + width for start, width in zip(left, widths, strict=True)]
            texts = [
                f"{total:.1f} B   time {_or_dash(row['ratio'], '{:.2f}')}"
                for total, row in zip(left, rows, strict=True)
            ]
            axes.bar_label(bars, texts, padding=5, fontsize=10)
            case = CASES[result["case"]]
            axes.set_title(f"{case.what}, {result['parameters'] / 1e6:,.1f} M parameters, {case.dtype}")
            axes.margins(x=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, facecolor="white")
        plt.close(figure)


def _command(args: argparse.Namespace) -> str:
    words = ["adamnx-hf bench"]
    for flag in ("device", "cases", "optimizers", "rounds", "steps", "threads"):
        if value := getattr(args, flag):
            words.append(f"--{flag} {' '.join(value) if isinstance(value, list) else value}")
    return " ".join([*words, *(f"--{flag}" for flag in ("tune", "memory") if getattr(args, flag))])


def _environment(device: str) -> dict[str, str]:
    import torch

    from adamnx_hf import report

    known = report.environment()
    facts = {
        "adamnx-hf": f"{known['adamnx-hf']} (commit {known['commit'] or 'unknown'})",
        "torch": torch.__version__,
        "python": known["python"],
        "processor": f"{known['processor']}, {known['torch_threads']} threads",
    }
    if device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        facts |= {
            "card": f"{known['gpus'][0]}, {memory:.0f} GiB",
            "cuda": str(known["cuda"] or torch.version.hip),
        }
    for package in ("triton", "torch-optimi", "torchao", "bitsandbytes"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[package] = importlib.metadata.version(package)
    return facts
