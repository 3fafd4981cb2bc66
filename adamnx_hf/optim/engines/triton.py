"""Our own kernel on CUDA: one launch for all tensors, one pass over memory, mixed dtypes as they are.

The kernel is in :mod:`adamnx_hf.optim.engines.triton_kernel`; here is what the host has to do for it: look
at the tensors, and keep the tables in which it finds their addresses. What does not change from step to step
is not sent again, which with `zero_grad(set_to_none=True)` leaves at most the addresses of the gradients.

With TRITON_INTERPRET=1 in the environment the kernel runs on the CPU, slowly, for tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import operator
import os
import warnings
from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from adamnx_hf.optim import formats
from adamnx_hf.optim.layout import Layout

if TYPE_CHECKING:
    from adamnx_hf.optim.engines import Weight

MIXES = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8})
SCALES = True

#: Elements to a program and warps to work on them: 8 elements to a thread, 2 accesses of 16 bytes a tensor.
BLOCK, WARPS = 1024, 4

#: The same for the norm: a thread keeps a single number, so 8 accesses of 16 bytes can be under way at once.
NORM_BLOCK, NORM_WARPS = 4096, 4

#: How many CUDA graphs can be captured one after the other, without a step outside of a graph in between.
_CAPTURES = 16

#: Pinned memory is handed out in multiples of this many bytes.
_ALIGNMENT = 16


class Tuning(NamedTuple):
    """How the kernel goes about its work. Results do not depend on it."""

    block: int = BLOCK
    """Elements of a chunk."""
    warps: int = WARPS
    """Warps that work on a chunk."""
    load: str = ""
    """Eviction policy of what is read, as :func:`triton.language.load` takes it."""
    store: str = ""
    """Cache modifier of what is written, as :func:`triton.language.store` takes it."""


#: By the dtypes of param and exp_avg, what was faster than the default on an H200: docs/results/gpu.
_TUNED = {
    (torch.float32, torch.bfloat16): Tuning(512, 4),
    (torch.bfloat16, torch.bfloat16): Tuning(512, 4, load="evict_first", store=".cs"),
    (torch.float32, torch.uint8): Tuning(512, 2),
    (torch.bfloat16, torch.uint8): Tuning(512, 2),
}


def tuning(kind: tuple[Any, ...], rounding: str = "nearest") -> Tuning:
    """The tuning for a kind of launch.

    Args:
        kind: dtypes of param, grad, exp_avg and exp_avg_sq, and whether all are aligned.
        rounding: of parameters, see :data:`adamnx_hf.optim.formats.PARAM_ROUNDINGS`.
    """
    if rounding == "kahan":  # its residuals are a tensor more: there the default is faster
        return Tuning()
    return _TUNED.get((kind[0], kind[2]), Tuning())


#: Whether Triton interprets kernels, on the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def why_not(
    device: str, dtype: torch.dtype, *, host_schedule: bool, differentiable: bool, wrapped: bool
) -> str | None:
    """Applies on CUDA (and ROCm) where Triton can compile, to what is computed in float32."""
    if differentiable:
        return "`fused` does not support `differentiable`"
    if dtype != torch.float32:
        return f"its arithmetic is float32's, not {str(dtype).removeprefix('torch.')}'s"
    if wrapped:
        return "it takes tensors by their addresses, which subclasses that wrap others do not have"
    return _why_no_kernel(device)


def _why_no_kernel(device: str) -> str | None:
    if device == "cpu":
        return None if INTERPRETED else "Triton kernels run on the CPU only under TRITON_INTERPRET=1"
    if device != "cuda":
        return f"its kernel is written for CUDA, not for {device}"
    if torch.compiler.is_compiling():
        return None  # it could not compile without Triton itself
    if _must_not_be_tried(_why_not_compiled):
        # The capture would refuse the trial, and the refusal would stand for the whole process. Without a
        # trial no step has been taken yet, so that `_tables_for_graph` tells the user what to do first.
        return None if find_spec("triton") else "Triton is not installed"
    return _why_not_compiled()


def _must_not_be_tried(trial: Any) -> bool:
    """Whether a cached trial has not been made yet, and cannot be made now, as a CUDA graph is captured."""
    return not trial.cache_info().currsize and is_capturing()


def is_capturing() -> bool:
    """Whether the current stream's work is being captured in a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


#: What to do where a CUDA graph is captured too early.
STEP_FIRST = (
    "AdamNX: a step of parameters that have not been stepped yet cannot be captured in a CUDA graph. "
    "Run a few whole training steps first, as torch.cuda.graph's documentation asks"
)


@functools.cache
def _why_not_compiled() -> str | None:
    """Tries the kernel out, once. A failure is told once, here."""

    def step() -> None:
        tensors = [[torch.zeros(1, device="cuda")] for _ in range(4)]
        step_(*tensors, weight1=1.0, weight2=1.0, lr=0.0, weight_decay=0.0, eps=1.0, maximize=False)

    return _why_it_fails(step, "its Triton kernel", "torch's fused AdamW kernel")


@functools.cache
def _why_no_norm_compiled() -> str | None:
    """Tries the norm's kernels out, once."""
    return _why_it_fails(
        lambda: norm([torch.zeros(1, device="cuda")], {}), "its Triton kernel for norms", "torch's norm"
    )


def why_no_norm(device: str) -> str | None:
    """The reason why :func:`norm` cannot serve on a type of device where the step's kernel can, or None."""
    if device == "cpu":
        return None
    if _must_not_be_tried(_why_no_norm_compiled):
        return "it cannot be tried out while a CUDA graph is captured"
    return _why_no_norm_compiled()


def _why_it_fails(attempt: Callable[[], Any], what: str, instead: str) -> str | None:
    """Makes an attempt. If it fails, warns that `what` cannot be used and what serves instead."""
    reason = None
    try:
        importlib.import_module("triton")
        attempt()
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        reason = "Triton is not installed"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no C compiler, a card too old, ...: whatever Triton may raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if reason is not None:
        warnings.warn(
            f"AdamNX: {what} cannot be used ({reason}). {instead} serves instead, with the same results to "
            "rounding",
            RuntimeWarning,
            stacklevel=3,
        )
    return reason


def step_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    weight1: Weight,
    weight2: Weight,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
    step: float | Tensor = 1.0,
    numbers: Sequence[int] | None = None,
    rounding: str = "nearest",
    residuals: list[Tensor | None] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    memo: dict[Any, Any] | None = None,
    layout: Layout | None = None,
) -> None:
    """One step in place; see :mod:`adamnx_hf.optim.engines`."""
    if torch.compiler.is_compiling():
        assert isinstance(weight1, Tensor) and isinstance(weight2, Tensor)  # the schedule is on the device
        assert isinstance(step, Tensor) and isinstance(lr, Tensor)
        _opaque_step(
            params, grads, exp_avgs, exp_avg_sqs, step, list(numbers or range(len(params))),
            weight1, weight2, lr,
            weight_decay, eps, maximize, rounding, [rest for rest in residuals or [] if rest is not None],
            grad_scale, found_inf,
        )  # fmt: skip
        return

    memo = {} if memo is None else memo
    device = params[0].device
    columns = (params, grads, exp_avgs, exp_avg_sqs)
    addresses = [list(map(Tensor.data_ptr, tensors)) for tensors in columns]
    kept = [0 if rest is None else rest.data_ptr() for rest in residuals] if residuals else [0] * len(params)
    dtypes, numels, *_ = Layout.of(columns) if layout is None else layout

    row_lengths = [0] * len(params)
    if torch.uint8 in dtypes[2] | dtypes[3]:  # rows share no exponents: each is filled up to whole blocks
        numels = [*numels]
        for i, (param, *moments) in enumerate(zip(params, exp_avgs, exp_avg_sqs, strict=True)):
            if torch.uint8 in {moment.dtype for moment in moments}:
                row_lengths[i] = param.shape[1:].numel()
                numels[i] = param.shape[0] * -(-row_lengths[i] // formats.BLOCK) * formats.BLOCK
    numbers = list(range(len(params)) if numbers is None else numbers)
    table = [*addresses, kept, row_lengths, numbers]

    t: int | float | Tensor = 0
    by_chance = dtypes[2] | dtypes[3] if rounding != "stochastic" else set().union(*dtypes)
    if by_chance & formats.NARROW:  # it seeds the rounding, and is not needed otherwise
        t = int(step) if isinstance(step, float) else _number_or_address(step, device, torch.float64)
    arguments: dict[str, Any] = {
        "step": t,
        "weight1": _number_or_address(weight1, device, torch.float64),
        "weight2": _number_or_address(weight2, device, torch.float64),
        "lr": _number_or_address(lr, device),
        "weight_decay": float(weight_decay),
        "eps": float(eps),
        "grad_scale": None if grad_scale is None else grad_scale.to(device, non_blocking=True),
        "found_inf": None if found_inf is None else found_inf.to(device, non_blocking=True),
        "MAXIMIZE": maximize,
        "ROUNDING": rounding,
    }
    if all(len(kinds) == 1 for kinds in dtypes) and _all_aligned(table, memo):
        kind = (*(dtype for kinds in dtypes for dtype in kinds), True)
        _launch(kind, table, numels, range(len(params)), arguments, device, memo)
        return
    # One launch for each combination of dtypes, and one for what does not lie at multiples of 16 bytes.
    kinds_of = defaultdict(list)
    for i, row in enumerate(zip(*columns, strict=True)):
        aligned = _aligned([column[i] for column in table[:-1]])
        kind = (*(tensor.dtype for tensor in row), aligned)
        kinds_of[kind].append(i)
    for kind, members in kinds_of.items():
        picked = [[column[i] for i in members] for column in table]
        _launch(kind, picked, [numels[i] for i in members], members, arguments, device, memo)


def _aligned(addresses: list[int]) -> bool:
    return functools.reduce(operator.or_, addresses) % 16 == 0


def _all_aligned(table: list[list[int]], memo: dict[Any, Any]) -> bool:
    """Whether all columns but the last, the parameters' numbers, hold multiples of 16.

    Only the gradients' addresses are looked at each time: the others seldom change.
    """
    params, grads, *others, _ = table
    fixed = [params, *others]
    if memo.get("aligned", (None,))[0] != fixed:
        memo["aligned"] = fixed, all(map(_aligned, fixed))
    return memo["aligned"][1] and _aligned(grads)


def _number_or_address(
    value: float | Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> float | Tensor:
    if not isinstance(value, Tensor) or (value.is_cpu and value.ndim == 0 and device.type != "cpu"):
        return float(value)  # known on the host: nothing to wait for
    if value.is_cpu:
        return _send(value.to(dtype), device)
    return value.to(device, dtype, non_blocking=True)


def _launch(
    kind: tuple[Any, ...],
    addresses: list[list[int]],
    numels: list[int],
    places: range | list[int],
    arguments: dict[str, Any],
    device: torch.device,
    memo: dict[Any, Any],
) -> None:
    """One launch for parameters of a `kind`: the dtypes of their four tensors, and if all are aligned.

    `addresses` are those of params, grads, exp_avgs, exp_avg_sqs and residuals, then what else the table has
    of each parameter, see `triton_kernel.COLUMNS`.
    """
    from adamnx_hf.optim.engines import triton_kernel as kernel

    params, grads, *others = addresses
    if kind[0] != torch.bfloat16:  # stored as ever
        arguments = arguments | {"ROUNDING": "nearest"}
    block, warps, load, store = tuning(kind, arguments["ROUNDING"])
    with _on(device):
        tables = _tables([params, *others, numels], grads, places, block, device, kind, memo)
        if not len(tables.chunks):
            return
        names = ("PARAM", "GRAD", "EXP_AVG", "EXP_AVG_SQ")
        kernel.step_kernel[(len(tables.chunks),)](
            tables.parameters,
            tables.grads,
            tables.chunks,
            **arguments,
            COLUMNS=kernel.COLUMNS,
            **{name: _triton_dtype(dtype) for name, dtype in zip(names, kind, strict=False)},
            STEPS_IN_MEMORY=isinstance(arguments["step"], Tensor),
            WEIGHTS_IN_MEMORY=isinstance(arguments["weight1"], Tensor),
            LR_IN_MEMORY=isinstance(arguments["lr"], Tensor),
            ALIGNED=kind[-1],
            LOAD=load,
            STORE=store,
            BLOCK=block,
            num_warps=warps,
            enable_fp_fusion=True,
        )


def norm(grads: list[Tensor], memo: dict[Any, Any]) -> Tensor | None:
    """The 2-norm of all gradients together, in two launches: one over them all, one over its sums.

    Args:
        grads: float32, bfloat16 or float16, of one device, each dense in memory (in any order).
        memo: a dict that is the same at each step.

    Returns:
        A float32 0-d tensor on their device. None while a CUDA graph is captured and no norm of these
        gradients has been asked for before: the tables cannot be sent then.
    """
    from adamnx_hf.optim.engines import triton_kernel as kernel

    device = grads[0].device
    addresses = list(map(Tensor.data_ptr, grads))
    numels = list(map(Tensor.numel, grads))
    dtypes = {grad.dtype for grad in grads}
    if len(dtypes) == 1 and _aligned(addresses):
        kinds_of: dict[Any, Any] = {("norm", *dtypes, True): range(len(grads))}
    else:
        kinds_of = defaultdict(list)
        for i, (grad, address) in enumerate(zip(grads, addresses, strict=True)):
            kinds_of["norm", grad.dtype, address % 16 == 0].append(i)
    with _on(device):
        if _stream(device)[1] and any(kind not in memo for kind in kinds_of):
            return None
        launches = [
            (
                kind,
                _tables(
                    [[numels[i] for i in members]], [addresses[i] for i in members], members, NORM_BLOCK,
                    device, kind, memo,
                ),
            )
            for kind, members in kinds_of.items()
        ]  # fmt: skip
        counts = [len(tables.chunks) for _, tables in launches]
        sums = torch.empty(sum(counts), dtype=torch.float32, device=device)
        result = torch.empty((), dtype=torch.float32, device=device)
        for (kind, tables), count, part in zip(launches, counts, sums.split(counts), strict=True):
            if count:
                kernel.squares_kernel[(count,)](
                    tables.parameters,
                    tables.grads,
                    tables.chunks,
                    part,
                    GRAD=_triton_dtype(kind[1]),
                    ALIGNED=kind[2],
                    BLOCK=NORM_BLOCK,
                    num_warps=NORM_WARPS,
                )
        warps = 16 if torch.version.hip else 32  # of 64 threads or of 32: a program has at most 1,024
        kernel.root_kernel[(1,)](sums, result, len(sums), BLOCK=8192, num_warps=warps)
    return result


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes `device` the current one, where Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _triton_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return getattr(tl, str(dtype).removeprefix("torch."))


@dataclasses.dataclass
class _Tables:
    """What a launch looks up, on the device; see `step_kernel` for what they hold."""

    parameters: Tensor
    grads: Tensor
    chunks: Tensor
    #: What `grads` holds.
    grad_addresses: list[int]


@dataclasses.dataclass
class _Kept:
    """The tables of the last launch, what they were made for, and pinned memory for those of captures."""

    made_for: tuple[Any, ...]
    tables: _Tables
    spare: Tensor | None = None

    def nbytes(self) -> int:
        """Bytes of pinned memory that all tables together take."""
        tables = (self.tables.parameters, self.tables.grads, self.tables.chunks)
        return sum(_rounded_up(table.nbytes) for table in tables)

    def provide(self) -> None:
        """Sees to it that there is pinned memory for :data:`_CAPTURES` captures.

        The gradients of each may lie elsewhere; all tables are sent anew once at most.
        """
        if self.spare is None or len(self.spare) < self.nbytes():
            addresses = _rounded_up(self.tables.grads.nbytes)
            self.spare = _pinned(self.nbytes() + (_CAPTURES - 1) * addresses)

    def take(self, size: int) -> Tensor:
        """`size` bytes of pinned memory, for good."""
        if self.spare is None or len(self.spare) < size:
            return _pinned(size)  # torch may not have any left to give during a capture
        taken, self.spare = self.spare[:size], self.spare[size:]
        return taken


def _tables(
    columns: list[list[int]],
    grads: list[int],
    places: range | list[int],
    block: int,
    device: torch.device,
    kind: tuple[Any, ...],
    memo: dict[Any, Any],
) -> _Tables:
    """The tables for a launch. Only what has changed since the last one is sent to the device."""
    # Sent on one stream, they may not have arrived when a kernel on another one looks.
    stream, capturing = _stream(device)
    kept: _Kept | None = memo.get(kind)
    if capturing:
        return _tables_for_graph(kept, columns, grads, places, block, memo)
    if kept is None or kept.made_for != (columns, places, block, stream):
        rows, addresses, chunks = (_send(t, device) for t in _new_tables(columns, grads, places, block))
        spare = None if kept is None else kept.spare
        kept = _Kept((columns, places, block, stream), _Tables(rows, addresses, chunks, grads), spare)
        memo[kind] = kept
    elif kept.tables.grad_addresses != grads:
        kept.tables = dataclasses.replace(
            kept.tables, grads=_send(_int64(grads), device), grad_addresses=grads
        )
    if stream is not None:
        kept.provide()
    return kept.tables


def _new_tables(
    columns: list[list[int]], grads: list[int], places: range | list[int], block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The tables of parameters, gradients and chunks, on the host."""
    counts = (_int64(columns[-1]) + block - 1) // block
    firsts = counts.cumsum(0) - counts
    rows = torch.tensor([*columns, firsts.tolist(), list(places)], dtype=torch.int64, device="cpu").t()
    indices = torch.arange(len(counts), dtype=torch.int32, device="cpu")
    return rows.contiguous(), _int64(grads), indices.repeat_interleave(counts)


def _tables_for_graph(
    kept: _Kept | None,
    columns: list[list[int]],
    grads: list[int],
    places: range | list[int],
    block: int,
    memo: dict[Any, Any],
) -> _Tables:
    """Tables for a launch that is captured in a CUDA graph, which are kept for as long as `memo` is.

    Each replay reads them again, and copies again, from the host's memory, what had to be sent during the
    capture: the addresses of gradients that autograd made in the graph's own memory, say.
    """
    if kept is None:
        raise RuntimeError(STEP_FIRST)
    tables, host = kept.tables, None
    if kept.made_for[:3] != (columns, places, block) or tables.grad_addresses != grads:
        new: tuple[Tensor, ...] = (_int64(grads),)
        if kept.made_for[:3] != (columns, places, block):
            new = _new_tables(columns, grads, places, block)
        host = kept.take(sum(_rounded_up(table.nbytes) for table in new))
        sent, start = [], 0
        for table in new:
            staged = host[start : start + table.nbytes].view(table.dtype).view(table.shape).copy_(table)
            sent.append(staged.to(tables.grads.device, non_blocking=True, copy=True))
            start += _rounded_up(table.nbytes)
        if len(sent) == 1:
            tables = dataclasses.replace(tables, grads=sent[0], grad_addresses=grads)
        else:
            tables = _Tables(sent[0], sent[1], sent[2], grads)
    memo.setdefault("captured", []).append((tables, host))
    return tables


def _rounded_up(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _stream(device: torch.device) -> tuple[Any, bool]:
    """The current stream of a CUDA device, and whether a CUDA graph is being captured on it."""
    if device.type != "cuda":
        return None, False
    return torch.cuda.current_stream(device), torch.cuda.is_current_stream_capturing()


def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)


def _int64(numbers: list[int]) -> Tensor:
    # Half the time of torch.tensor.
    return torch.frombuffer(array("q", numbers), dtype=torch.int64)


def _send(table: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return table
    return table.pin_memory().to(device, non_blocking=True)


# Not in CUDA graphs that torch.compile makes: it would have to know what to keep for the replays.
@torch.library.custom_op(
    "adamnx_hf::triton_step",
    mutates_args=("params", "exp_avgs", "exp_avg_sqs", "residuals"),
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _opaque_step(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    step: Tensor,
    numbers: list[int],
    weight1: Tensor,
    weight2: Tensor,
    lr: Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
    rounding: str,
    residuals: list[Tensor],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """:func:`step_` as torch.compile sees it: an operator that it calls and does not look into.

    `residuals` are those of the parameters in bfloat16, or none: its schema knows no lists with gaps.
    """
    rests = iter(residuals)
    step_(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        step=step,
        numbers=numbers,
        weight1=weight1,
        weight2=weight2,
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=maximize,
        rounding=rounding,
        residuals=[next(rests) if p.dtype == torch.bfloat16 else None for p in params] if residuals else None,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
