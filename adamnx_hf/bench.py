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
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from adamnx_hf.files import save_figure, write_text

if TYPE_CHECKING:
    import torch

    from adamnx_hf.optim.engines.triton import Tuning

__all__ = [
    "BASELINE",
    "CASES",
    "CONTESTANTS",
    "Case",
    "Contestant",
    "add_arguments",
    "context_is_lost",
    "run",
]

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
    gradients: str = "apart"
    """How gradients lie and what they are, see :func:`_gradients`."""
    default: bool = True
    """Whether it takes part where `--cases` names none."""


def _llama(layers: int, hidden: int, intermediate: int, key_value: int, vocabulary: int) -> Sequence[Shape]:
    """The parameters of a Llama whose output layer is its embedding."""
    attention = [(hidden, hidden), (key_value, hidden), (key_value, hidden), (hidden, hidden)]
    mlp = [(intermediate, hidden), (intermediate, hidden), (hidden, intermediate)]
    return [(vocabulary, hidden), *layers * [*attention, *mlp, (hidden,), (hidden,)], (hidden,)]


def _lora(layers: int, hidden: int, intermediate: int, rank: int) -> Sequence[Shape]:
    """LoRA's two matrices for each of the seven linear layers of a Llama block."""
    linears = [*4 * [(hidden, hidden)], *2 * [(intermediate, hidden)], (hidden, intermediate)]
    return layers * [shape for out, in_ in linears for shape in ((rank, in_), (out, rank))]


_TOY: Sequence[Shape] = [(5, 1030), (16, 64), (7,), ()]


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
    "lora-7b-zero": Case(
        "LoRA r = 16 on Llama-2-7B, gradients of 0",
        lambda: _lora(32, 4096, 11_008, 16),
        ("cuda",),
        gradients="zero",
    ),
    "llama-300m-ddp": Case(
        "a Llama of 300 M, gradients in one buffer as DDP's, off multiples of 16 bytes",
        lambda: _llama(18, 1024, 4096, 256, 32_000),
        ("cuda",),
        gradients="misaligned",
    ),
    "10x5m": Case("10 x 5 M", lambda: 10 * [(5_000_000,)], ("cpu",)),
    "400x8k": Case("400 x (8, 1024)", lambda: 400 * [(8, 1024)], ("cpu", "cuda")),
    "2000x1k": Case("2,000 x 1 k", lambda: 2000 * [(1000,)], ("cpu", "cuda")),
    # Many times what a card's caches hold.
    "8x34m": Case("8 x (16384, 2048)", lambda: 8 * [(16_384, 2048)], ("cuda",), default=False),
    # For trying the command out, also where Triton's interpreter runs the kernel.
    "toy": Case("four small tensors", lambda: _TOY, ("cpu",), memory=True, default=False),
    "toy-bf16": Case(
        "four small tensors in bfloat16", lambda: _TOY, ("cpu",), dtype="bfloat16", memory=True, default=False
    ),
    "toy-zero": Case(
        "four small tensors, gradients of 0", lambda: _TOY, ("cpu",), gradients="zero", default=False
    ),
    "toy-ddp": Case(
        "four small tensors, gradients off multiples of 16 bytes",
        lambda: _TOY,
        ("cpu",),
        gradients="misaligned",
        default=False,
    ),
}

#: The case of `--tune`, where none is named.
_TUNED = {"cuda": "8x34m", "cpu": "toy"}


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
    compiles_each_shape: bool = False
    """Whether it compiles once for each shape: it then takes part only in the cases that `--memory` looks at,
    which have few, unless `--optimizers` names it."""


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
        compiles_each_shape=True,
    ),
    "adamw_torchao_stochastic": Contestant(
        "torchao AdamW, stochastic",
        _from("torchao.optim", "_AdamW", bf16_stochastic_round=True),
        _BOTH,
        needs="torchao",
        dtype="bfloat16",
        compiles_each_shape=True,
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
                        help=f"of {_names(CONTESTANTS)} (default: all that are installed; those of torchao, "
                        "which compiles for each shape, only in the cases of --memory, on a card "
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
    """Runs the benchmark; returns the exit status."""
    start = time.monotonic()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell that there is no card to profile
    import torch

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    names = args.optimizers or [n for n, c in CONTESTANTS.items() if args.memory or device in c.timed]
    cases = args.cases or ([_TUNED[device]] if args.tune else _default_cases(device, memory=args.memory))
    suffixes = (".json", ".md", ".jsonl" if args.tune else ".png")
    outputs = [args.output.with_suffix(s) for s in suffixes] if args.output else []
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

    kernel, reason = _kernel(device)
    report: dict[str, Any] = {
        "command": _command(args),
        "environment": _environment(device),
        "kernel": kernel,
        "why_not_triton": reason,
    }
    if device == "cuda":
        report["copy_gb_per_s"] = _copy_bandwidth()
    report |= {"complete": False, "results": [], "left_out": left_out}
    title = _title(report, args)
    if outputs:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.tune:
        deadline = None if args.seconds is None else start + args.seconds
        results = _tune(cases, args, device, report.get("copy_gb_per_s"), deadline, *outputs[2:])
    else:
        results = _compare(cases, names, args, device, report.get("copy_gb_per_s"))
    for result in results:
        report["results"].append(result)
        if outputs:  # at once: what ends this process later takes nothing of it
            _write(report, title, outputs, memory=args.memory)
    report["complete"] = not any(result.get("stopped") for result in report["results"])
    print(_tables(report, memory=args.memory))
    if outputs:
        _write(report, title, outputs, memory=args.memory)
        if not args.tune:
            (_draw_memory if args.memory else _draw)(report, title, outputs[2])
        print(f"written: {', '.join(str(path) for path in outputs if path.exists())}")
    return _status(report, device)


def _default_cases(device: str, *, memory: bool) -> list[str]:
    return [
        name
        for name, case in CASES.items()
        if case.default
        and device in case.devices
        and (case.memory if memory else device == "cuda" or not case.memory)
    ]


def _kernel(device: str) -> tuple[str, str | None]:
    """The engine that serves AdamNX on `device`, and why that is not our own kernel, if it is not."""
    import torch

    from adamnx_hf.optim.engines import ENGINES, choose_engine
    from adamnx_hf.optim.engines.contract import Case

    serves: dict[str, Any] = {"host_schedule": True, "differentiable": False, "wrapped": False}
    engine = choose_engine(device, torch.float32, foreach=None, fused=None, **serves)
    name = next(name for name, known in ENGINES.items() if known is engine)
    reason = ENGINES["triton"].why_not(Case(device, torch.float32))
    return name, None if name == "triton" else reason


def _status(report: dict[str, Any], device: str) -> int:
    """The exit status, with a line on stderr if it is not 0. On the CPU torch's kernel is expected."""
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


def _write(report: dict[str, Any], title: str, outputs: list[Path], *, memory: bool) -> None:
    from adamnx_hf.report import write_json

    write_json(outputs[0], report)
    facts = [f"- {key}: {value}" for key, value in report["environment"].items()]
    write_text(outputs[1], "\n".join([f"# {title}", "", _tables(report, memory=memory), "", *facts, ""]))


def _title(report: dict[str, Any], args: argparse.Namespace) -> str:
    what = "Memory of optimizers" if args.memory else "Tuning of a step" if args.tune else "Time of a step"
    return f"{what}: {report['environment'].get('card') or report['environment']['processor']}"


def _problem(args: argparse.Namespace, device: str, outputs: list[Path]) -> str | None:
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
    if args.tune and _kernel(device)[0] != "triton":
        why = f"; here it cannot be used: {_kernel(device)[1]}" if device == "cuda" else ""
        return f"--tune is for the Triton kernel, which needs a CUDA card{why}"
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
    from tqdm import tqdm

    with tqdm(total=len(cases) * args.rounds, desc="bench", unit="round", leave=False) as progress:
        for case in cases:
            progress.set_postfix_str(case)
            failures: list[str] = []
            rows: list[dict[str, Any]] = []
            count = 0
            with (
                _noting_failures(case, device, failures) as lost,
                _parameters(CASES[case], device) as params,
            ):
                fitting = [n for n in names if _fits(n, case, args)]
                runners = dict(_runners(fitting, params, device, failures, clip=not args.memory))
                _warm_up(runners, device, failures)
                gradients = CASES[case].gradients
                rows = _time(
                    runners, params, args.rounds, args.steps, device, progress.update, gradients=gradients
                )
                count = sum(param.numel() for param in params)
                runners.clear()
            _add_shares(rows, copy_gb_per_s)
            result = {"case": case, "parameters": count, "optimizers": rows, "failed": failures}
            yield result | ({"stopped": True, **lost} if lost else {})
            if lost:
                return


@contextlib.contextmanager
def _noting_failures(what: str, device: str, failures: list[str]) -> Iterator[dict[str, str]]:
    """Adds to `failures` that memory ran out or that the card's context was lost; other errors are raised.

    Args:
        what: is measured, for the line in `failures`.
        device: "cuda" or "cpu".
        failures: gets a line.

    Yields:
        A dict that gets the error as `lost`, if the context was lost.
    """
    import torch

    lost: dict[str, str] = {}
    try:
        yield lost
    except Exception as error:
        line = _one_line(error)
        if not isinstance(error, torch.OutOfMemoryError):
            if not context_is_lost(device):
                raise
            lost["lost"] = line
        failures.append(f"{what}: {line}")


def _fits(name: str, case: str, args: argparse.Namespace) -> bool:
    """Whether an optimizer takes part in a case."""
    contestant = CONTESTANTS[name]
    if contestant.compiles_each_shape and not args.optimizers and not CASES[case].memory:
        return False
    return contestant.dtype in (None, CASES[case].dtype)


def context_is_lost(device: str) -> bool:
    """Whether the card refuses all further work of this process, as after an illegal access."""
    import torch

    if device != "cuda":
        return False
    for _ in range(2):  # an error that concerns one call alone is told once
        try:
            torch.cuda.synchronize()
        except Exception:
            continue
        return False
    return True


def _add_shares(rows: list[dict[str, Any]], copy_gb_per_s: float | None) -> None:
    """Adds the bytes moved in a second, also as a share of what a copy moves, where both are known."""
    for row in rows:
        if copy_gb_per_s and row["bytes"]:
            row["gb_per_s"] = row["bytes"] / (row["ms"] * 1e-3) / 1e9
            row["share_of_copy"] = row["gb_per_s"] / copy_gb_per_s


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextlib.contextmanager
def _parameters(case: Case, device: str) -> Iterator[list[torch.nn.Parameter]]:
    """The case's parameters, with gradients; gives their memory back."""
    import torch

    dtype = getattr(torch, case.dtype)
    params = [torch.nn.Parameter(torch.randn(s, device=device, dtype=dtype)) for s in case.shapes()]
    for param, grad in zip(params, _gradients(params, case.gradients), strict=True):
        param.grad = grad
    try:
        yield params
    finally:
        del params
        _give_back(device)


def _gradients(params: list[Any], how: str) -> list[torch.Tensor]:
    """New gradients of `params`.

    Args:
        params: on one device, of one dtype.
        how: "apart", each a tensor of its own; "zero", the same, all of them 0; "misaligned", views into one
            buffer, as the buckets of DistributedDataParallel have them, of which none begins at a multiple of
            16 bytes.
    """
    import torch

    if how != "misaligned":
        make = {"apart": torch.randn_like, "zero": torch.zeros_like}[how]
        return [make(param.detach()) for param in params]
    to_align = 16 // params[0].element_size()
    starts, end = [], 0
    for param in params:
        starts.append(-(-end // to_align) * to_align + 1)
        end = starts[-1] + param.numel()
    buffer = torch.randn(end, device=params[0].device, dtype=params[0].dtype)
    return [
        buffer[start : start + param.numel()].view(param.shape)
        for start, param in zip(starts, params, strict=True)
    ]


@dataclasses.dataclass
class _Runner:
    """What takes turns: a call, and the memory it needed."""

    step: Callable[[], Any]
    moved: int | None
    state_bytes: int
    peak_bytes: int | None = None


def _stepped(name: str, params: list[Any], failures: list[str]) -> Any:
    """The optimizer `name` after its first step; None, and a line in `failures`, if it cannot."""
    device = params[0].device.type
    try:
        optimizer = CONTESTANTS[name].make(params)
        optimizer.step()
        _wait(device)  # so that what fails on the card is not taken for the next one's failure
    except Exception as error:  # another package's, or too little memory beside the others
        failures.append(f"{name}: {_one_line(error)}")
        if context_is_lost(device):
            raise
        return None
    return optimizer


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


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
    """Compiles what there is to compile, and measures memory; leaves out what fails, for want of it say."""
    for name, runner in list(runners.items()):
        try:
            runner.step()
            runner.peak_bytes = _temporary_bytes(runner.step, device)
            _wait(device)
        except Exception as error:
            failures.append(f"{name}: {_one_line(error)}")
            if context_is_lost(device):
                raise
            del runners[name], runner
            _give_back(device)


def _time(
    runners: dict[str, _Runner],
    params: list[Any],
    rounds: int,
    steps: int,
    device: str,
    tick: Callable[[], Any],
    *,
    gradients: str = "apart",
    note: Callable[[str, int, float], Any] = lambda name, turn, ms: None,
    deadline: float | None = None,
) -> list[dict[str, Any]]:
    """Medians of all runners, which take turns.

    Args:
        runners: by name.
        params: what they step.
        rounds: turns of each.
        steps: timed steps in a turn.
        device: "cuda" or "cpu".
        tick: is called after each round.
        gradients: what `params` have, see :func:`_gradients`.
        note: is told each measurement: runner, turn, milliseconds.
        deadline: of `time.monotonic`, after which no measurement begins.
    """
    cuda = device == "cuda"
    sets = [[param.grad for param in params]]
    if sum(param.grad.nbytes for param in params) < _SECOND_GRADIENTS:
        sets.append(_gradients(params, gradients))

    times: dict[str, list[float]] = {name: [] for name in runners}
    host: dict[str, list[float]] = {name: [] for name in runners}
    moves = 0
    for turn in range(rounds):
        # The order alternates, and a turn's first step, which finds the other's data in the caches, is not
        # timed.
        for name, runner in list(runners.items())[:: -1 if turn % 2 else 1]:
            if deadline is not None and time.monotonic() > deadline:
                break
            runner.step()
            times[name].append(_milliseconds(runner.step, steps, cuda))
            note(name, turn, times[name][-1])
            if cuda:
                moves += 1  # where there are two sets, a step finds its gradients where they were not before
                for param, grad in zip(params, sets[moves % len(sets)], strict=True):
                    param.grad = grad
                _wait(device)
                start = time.perf_counter()
                runner.step()
                host[name].append((time.perf_counter() - start) * 1e6)
                _wait(device)
        tick()
    baseline = {clip: times.get(BASELINE + clip) for clip in ("", _CLIPPED)}
    rows = []
    for name, runner in runners.items():
        if not times[name]:  # there was no time for it
            continue
        reference = baseline[_CLIPPED if name.endswith(_CLIPPED) else ""]
        p10, *quartiles, p90 = _quantiles(times[name], (0.1, 0.25, 0.75, 0.9))
        rows.append(
            {
                "optimizer": name,
                "ms": median(times[name]),
                "ratio": median(times[name]) / median(reference) if reference else None,
                "p10_ms": p10,
                "p90_ms": p90,
                "quartiles_ms": quartiles,
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


def _quantiles(values: list[float], shares: Iterable[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered[round(share * (len(ordered) - 1))] for share in shares]


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


#: What `--tune` looks at: the parameters' dtype and how AdamNX stores its state.
_STATES: dict[str, tuple[str, dict[str, str]]] = {
    "float32": ("float32", {}),
    "float32, bfloat16 state": ("float32", {"state_dtype": "bfloat16"}),
    "bfloat16, bfloat16 state, stochastic": (
        "bfloat16",
        {"state_dtype": "bfloat16", "param_rounding": "stochastic"},
    ),
    "float32, 8-bit state": ("float32", {"state_dtype": "int8"}),
    "bfloat16": ("bfloat16", {}),
}

# Of the time for a kind of state, for compiling; what is left is for measuring.
_WARM_UP_SHARE = 0.7


def _candidates(shipped: Tuning) -> list[Tuning]:
    """What to try beside the tuning that is shipped, which comes first; then the likeliest to win."""
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


def _tuning_name(tuning: Tuning) -> str:
    return ", ".join(filter(None, (f"{tuning.block} x {tuning.warps}", tuning.load, tuning.store)))


def _tune(
    cases: list[str],
    args: argparse.Namespace,
    device: str,
    copy_gb_per_s: float | None,
    deadline: float | None,
    lines: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """AdamNX's kernel with each tuning, in turns, for each kind of state.

    Args:
        cases: whose shapes are stepped.
        args: of the command.
        device: "cuda" or, where Triton interprets kernels, "cpu".
        copy_gb_per_s: what a copy moves.
        deadline: of `time.monotonic`. What is left until then is shared by the kinds that are left.
        lines: a file for each measurement as a line of JSON.
    """
    from tqdm import tqdm

    kinds = list(itertools.product(cases, _STATES))
    with (
        lines.open("w") if lines else contextlib.nullcontext() as file,
        tqdm(total=len(kinds) * args.rounds, desc="tune", unit="round", leave=False) as progress,
    ):
        for number, (case, state) in enumerate(kinds):
            share = None
            if deadline is not None:
                share = (deadline - time.monotonic()) / (len(kinds) - number)
                if share <= 0:
                    return
            progress.set_postfix_str(f"{case}, {state}")

            def note(facts: dict[str, Any]) -> None:
                if file is not None:
                    file.write(json.dumps(facts) + "\n")
                    file.flush()

            result = _tune_state(case, state, args, device, copy_gb_per_s, share, note, progress.update)
            yield result
            if "lost" in result:
                return


def _tune_state(
    case: str,
    state: str,
    args: argparse.Namespace,
    device: str,
    copy_gb_per_s: float | None,
    seconds: float | None,
    note: Callable[[dict[str, Any]], Any],
    tick: Callable[[], Any],
) -> dict[str, Any]:
    """One kind of state under each tuning; within `seconds`, between measurements."""
    from adamnx_hf.optim.engines import triton as engine

    dtype, options = _STATES[state]
    tunings: dict[str, Tuning] = {}
    failures: list[str] = []
    rows: list[dict[str, Any]] = []
    count, deadline = 0, None
    own = engine.tuning
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, engine, "tuning", own)
        lost = stack.enter_context(_noting_failures(f"{case}, {state}", device, failures))
        with _parameters(dataclasses.replace(CASES[case], dtype=dtype), device) as params:
            count = sum(param.numel() for param in params)
            optimizer = _adamnx(params, **options)
            optimizer.step()
            _wait(device)
            start = time.monotonic()
            deadline = None if seconds is None else start + seconds
            moved = _bytes_moved(params, optimizer)
            held = _state_bytes(optimizer)
            first = params[0]
            moments = [optimizer.state[first][key].dtype for key in ("exp_avg", "exp_avg_sq")]
            kind = (first.dtype, first.dtype, *moments, True)
            shipped = own(kind, options.get("param_rounding", "nearest"))

            def step(tuning: Tuning, memos: Any) -> None:
                engine.tuning = lambda *_: tuning
                optimizer._memos = memos  # tables are for one size of chunk
                optimizer.step()

            runners: dict[str, _Runner] = {}
            candidates = _candidates(shipped)
            for number, tuning in enumerate(candidates):
                if seconds is not None and time.monotonic() - start > seconds * _WARM_UP_SHARE:
                    failures.append(f"{len(candidates) - number} tunings: there was no time to compile them")
                    break
                name, memos = _tuning_name(tuning), type(optimizer._memos)(dict)
                began = time.monotonic()
                try:
                    step(tuning, memos)
                    _wait(device)
                except Exception as error:  # too many registers or too much shared memory, say
                    failures.append(f"{name}: {_one_line(error)}")
                    if context_is_lost(device):
                        raise
                    continue
                tunings[name] = tuning
                runners[name] = _Runner(functools.partial(step, tuning, memos), moved, held)
                note(
                    {"case": case, "state": state, **tuning._asdict(), "compile_s": time.monotonic() - began}
                )

            def told(name: str, turn: int, ms: float) -> None:
                line = {"case": case, "state": state, **tunings[name]._asdict(), "turn": turn, "ms": ms}
                if copy_gb_per_s and moved:
                    line["share_of_copy"] = moved / (ms * 1e-3) / 1e9 / copy_gb_per_s
                note(line)

            rows = _time(
                runners, params, args.rounds, args.steps, device, tick,
                gradients=CASES[case].gradients, note=told, deadline=deadline,
            )  # fmt: skip
            runners.clear()
    _add_shares(rows, copy_gb_per_s)
    for row in rows:
        row["tuning"] = tunings[row["optimizer"]]._asdict()
        row["shipped"] = tunings[row["optimizer"]] == shipped
    stopped = deadline is not None and time.monotonic() > deadline
    return {
        "case": case,
        "state": state,
        "dtype": dtype,
        "parameters": count,
        "optimizers": sorted(rows, key=lambda row: row["ms"]),
        "failed": failures,
        **({"stopped": True} if stopped or lost else {}),
        **lost,
    }


# ---------------------------------------------------------------- reporting


def _tables(report: dict[str, Any], *, memory: bool = False) -> str:
    lines = [f"Command: `{report['command']}`", ""]
    if "kernel" in report:
        why = f", for the Triton kernel cannot serve: {report['why_not_triton']}"
        lines += [f"AdamNX's kernel: {report['kernel']}{why if report['why_not_triton'] else ''}.", ""]
    if bandwidth := report.get("copy_gb_per_s"):
        lines += [f"A copy within the card's memory moves {bandwidth:,.0f} GB/s.", ""]
    for result in report["results"]:
        case = CASES[result["case"]]
        stored = result.get("state", case.dtype)
        lines += [f"## {case.what}: {result['parameters'] / 1e6:,.1f} M parameters, {stored}", ""]
        cuda = result["optimizers"][0]["host_us"] is not None if result["optimizers"] else False
        first = "tuning" if "state" in result else "optimizer"
        head = [first, "ms", "p10 to p90", "of torch fused"]
        speeds = ["GB/s", "share of copy bandwidth"]
        head += [*speeds, "host µs", "state MB", "temporary MB"] if cuda else []
        if memory:
            head = ["optimizer", "state", "temporary", "parameter, gradient and both", "time, of torch fused"]
            head += ["ms", "p10 to p90", *speeds] if cuda else []
            lines += ["Bytes a parameter:", ""]
        lines += [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
        for row in result["optimizers"]:
            times = [f"{row['ms']:.3f}", f"{row['p10_ms']:.3f} to {row['p90_ms']:.3f}"]
            ratio = _or_dash(row["ratio"], "{:.2f}")
            rates = [_or_dash(row.get("gb_per_s"), "{:,.0f}"), _or_dash(row.get("share_of_copy"), "{:.0%}")]
            cells = [_label(row["optimizer"]) + (" (shipped)" if row.get("shipped") else ""), *times, ratio]
            if cuda:
                cells += [
                    *rates,
                    f"{row['host_us']:,.0f}",
                    _or_dash(row["state_bytes"], "{:,.0f}", 1e6),
                    _or_dash(row["peak_bytes"], "{:,.1f}", 1e6),
                ]
            if memory:
                each = _bytes_each(row, result)
                sizes = [each["state"], each["temporary"], sum(each.values())]
                cells = [
                    cells[0],
                    *(f"{size:.2f}" for size in sizes),
                    ratio,
                    *(times + rates if cuda else []),
                ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        lines += [f"Failed, {line}.\n" for line in result["failed"]]
    lines += [f"Left out, {line}." for line in report["left_out"]]
    return "\n".join(lines).rstrip()


def _bytes_each(row: dict[str, Any], result: dict[str, Any]) -> dict[str, float]:
    """Bytes a parameter, at the peak of a step."""
    import torch

    itemsize = getattr(torch, result.get("dtype") or CASES[result["case"]].dtype).itemsize
    count = result["parameters"]
    return {
        "parameter": itemsize,
        "gradient": itemsize,
        "state": row["state_bytes"] / count,
        "temporary": (row["peak_bytes"] or 0) / count,  # what is tuned is not asked
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
            title = f"{case.what}, {result['parameters'] / 1e6:,.1f} M parameters"
            axes.set_title(textwrap.fill(title, 58))
            axes.set_xlim(0, max(ratios) * 1.25)
            axes.spines[["top", "right", "bottom"]].set_visible(False)
            axes.tick_params(bottom=False, labelbottom=False)
        save_figure(figure, path, facecolor="white")


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
        save_figure(figure, path, facecolor="white")


def _command(args: argparse.Namespace) -> str:
    words = ["adamnx-hf bench"]
    for flag in ("device", "cases", "optimizers", "rounds", "steps", "threads", "seconds"):
        if value := getattr(args, flag):
            words.append(f"--{flag} {' '.join(value) if isinstance(value, list) else value}")
    return " ".join([*words, *(f"--{flag}" for flag in ("tune", "memory") if getattr(args, flag))])


def _driver() -> str | None:
    """The version of NVIDIA's driver, which torch does not tell; None where nvidia-smi does not either."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return told[0] if told else None


def _environment(device: str) -> dict[str, str]:
    import torch

    from adamnx_hf import report

    known = report.environment()
    facts = {
        # Of a copy of the tree, on another machine say, only the environment knows the commit.
        "adamnx-hf": f"{known['adamnx-hf']} (commit "
        f"{os.environ.get('GIT_COMMIT') or known['commit'] or 'unknown'})",
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
        if driver := _driver():
            facts["driver"] = driver
    for package in ("triton", "torch-optimi", "torchao", "bitsandbytes"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[package] = importlib.metadata.version(package)
    return facts
