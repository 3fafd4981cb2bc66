"""The engine "triton": our own kernel on CUDA, one launch and one pass over memory for all tensors.

The kernel is in :mod:`adamnx_hf.optim.engines.triton_kernel`, the tables in which it finds the tensors are in
:mod:`adamnx_hf.optim.engines.triton_tables`. This module prepares and makes the launches.

With TRITON_INTERPRET=1 in the environment the kernel runs on the CPU, slowly, for tests.
"""

from __future__ import annotations

import functools
import importlib
import operator
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamnx_hf.optim.engines import runtime
from adamnx_hf.optim.engines.contract import Abilities, Case, Extras, Rule
from adamnx_hf.optim.engines.triton_tables import Contents, provide_tables
from adamnx_hf.optim.formats import find_format, int8
from adamnx_hf.optim.layout import Columns, Layout, Memo, pick

__all__ = [
    "ABILITIES",
    "Tuning",
    "compute_norm",
    "step_",
    "tuning",
    "why_no_norm",
    "why_not",
]

ABILITIES = Abilities(
    dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8}),
    steps_may_differ=True,
    rounds=True,
    unscales=True,
    flag="fused",
    compiled="operator",
)

#: Elements of a program, and its warps: 8 elements to a thread, which are 2 accesses of 16 bytes a tensor.
BLOCK, WARPS = 1024, 4

#: Both for the norm: a thread keeps a single number, so 8 accesses of 16 bytes can be under way at once.
NORM_BLOCK, NORM_WARPS = 4096, 4


class Tuning(NamedTuple):
    """Settings of the kernel that results do not depend on."""

    block: int = BLOCK
    """How many elements a chunk has."""
    warps: int = WARPS
    """How many warps work on a chunk."""
    load: str = ""
    """The eviction policy of loads, as :func:`triton.language.load` takes it."""
    store: str = ""
    """The cache modifier of stores, as :func:`triton.language.store` takes it."""


#: Tunings that were faster than the default on an H200, by the dtypes of param and exp_avg: docs/results/gpu.
_TUNED = {
    (torch.float32, torch.bfloat16): Tuning(512, 4),
    (torch.bfloat16, torch.bfloat16): Tuning(512, 4, load="evict_first", store=".cs"),
    (torch.float32, torch.uint8): Tuning(512, 2),
    (torch.bfloat16, torch.uint8): Tuning(512, 2),
}


def tuning(kind: tuple[Any, ...], rounding: str = "nearest") -> Tuning:
    """Returns the tuning for a kind of launch.

    Args:
        kind: dtypes of param, grad, exp_avg and exp_avg_sq, and whether all are aligned.
        rounding: how parameters are stored, see :data:`adamnx_hf.optim.formats.PARAM_ROUNDINGS`.
    """
    if rounding == "kahan":  # residuals are a tensor more, with which the default is faster
        return Tuning()
    return _TUNED.get((kind[0], kind[2]), Tuning())


def why_not(case: Case) -> str | None:
    """Returns why the kernel cannot serve: it computes in float32, on CUDA or ROCm, if Triton works."""
    if case.differentiable:
        return "`fused` does not support `differentiable`"
    if case.dtype != torch.float32:
        return f"its arithmetic is float32's, not {str(case.dtype).removeprefix('torch.')}'s"
    if case.wrapped:
        return "it takes tensors by their addresses, which subclasses that wrap others do not have"
    if case.device == "cpu":
        return None if runtime.INTERPRETED else "Triton kernels run on the CPU only under TRITON_INTERPRET=1"
    if case.device != "cuda":
        return f"its kernel is written for CUDA, not for {case.device}"
    if torch.compiler.is_compiling():
        return None  # it could not compile without Triton itself
    if _must_not_be_tried(_why_not_compiled):
        # The capture would refuse the trial, and the refusal would stand for the whole process. Without a
        # trial no step has been taken yet, so `provide_tables` tells the user what to do first.
        return None if find_spec("triton") else "Triton is not installed"
    return _why_not_compiled()


def _must_not_be_tried(trial: Any) -> bool:
    """Returns whether a cached trial is still to be made but cannot be now, as a CUDA graph is captured."""
    return not trial.cache_info().currsize and runtime.is_capturing()


@functools.cache
def _why_not_compiled() -> str | None:
    """Tries the kernel out, once; returns why it fails, with a warning, or None."""
    rule, extras = Rule(1.0, 1.0, lr=0.0, weight_decay=0.0, eps=1.0), Extras({}, 1.0, [0])
    return _why_it_fails(
        lambda: step_(Columns(*[[torch.zeros(1, device="cuda")] for _ in range(4)]), rule, extras),
        "its Triton kernel",
        "torch's fused AdamW kernel",
    )


@functools.cache
def _why_no_norm_compiled() -> str | None:
    """Tries the norm's kernels out, once; returns why they fail, with a warning, or None."""
    return _why_it_fails(
        lambda: compute_norm([torch.zeros(1, device="cuda")], {}),
        "its Triton kernel for norms",
        "torch's norm",
    )


def why_no_norm(device: str) -> str | None:
    """Returns why :func:`compute_norm` cannot serve on a device where the step's kernel can, or None."""
    if device == "cpu":
        return None
    if _must_not_be_tried(_why_no_norm_compiled):
        return "it cannot be tried out while a CUDA graph is captured"
    return _why_no_norm_compiled()


def _why_it_fails(attempt: Callable[[], Any], what: str, instead: str) -> str | None:
    """Makes an attempt, and returns why it fails, or None.

    The warning of a failure says that `what` cannot be used, and that `instead` serves.
    """
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


def step_(columns: Columns, rule: Rule, extras: Extras) -> None:
    """Steps the parameters in place."""
    if torch.compiler.is_compiling():
        _step_within_compile(columns, rule, extras)
        return
    device = columns.params[0].device
    layout = Layout.read(columns) if extras.layout is None else extras.layout
    table = _tabulate(columns, layout, extras.numbers)
    arguments = _make_arguments(rule, extras, layout, device)
    if all(len(dtypes) == 1 for dtypes in layout.dtypes) and _are_all_aligned(table, extras.memo):
        kind = (*(dtype for dtypes in layout.dtypes for dtype in dtypes), True)
        places_of: dict[Any, Any] = {kind: range(len(columns.params))}
    else:  # one launch for each combination of dtypes, and one for what is not at multiples of 16 bytes
        places_of = defaultdict(list)
        for i, row in enumerate(zip(*columns.four(), strict=True)):
            aligned = _are_aligned([column[i] for column in table[:-2]])
            kind = (*(tensor.dtype for tensor in row), aligned)
            places_of[kind].append(i)
    for kind, places in places_of.items():
        _launch(kind, [pick(column, places) for column in table], places, arguments, device, extras.memo)


def _tabulate(columns: Columns, layout: Layout, numbers: Sequence[int]) -> list[list[int]]:
    """Returns columns of the kernel's table, with a row for each parameter.

    Returns:
        Addresses of params, grads, exp_avgs, exp_avg_sqs and residuals (0: none), elements to a row where
        moments are packed, `numbers`, and numbers of elements, as if packed rows were filled up to blocks.
    """
    count, numels = len(columns.params), layout.numels
    addresses = [list(map(Tensor.data_ptr, tensors)) for tensors in columns.four()]
    rests = [0 if rest is None else rest.data_ptr() for rest in columns.residuals or [None] * count]
    row_lengths = [0] * count
    if torch.uint8 in layout.dtypes[2] | layout.dtypes[3]:  # rows share no exponents
        numels = [*numels]
        rows = zip(columns.params, columns.exp_avgs, columns.exp_avg_sqs, strict=True)
        for i, (param, *moments) in enumerate(rows):
            if torch.uint8 in {moment.dtype for moment in moments}:
                row_lengths[i] = param.shape[1:].numel()
                numels[i] = param.shape[0] * -(-row_lengths[i] // int8.BLOCK) * int8.BLOCK
    return [*addresses, rests, row_lengths, list(numbers), numels]


def _make_arguments(rule: Rule, extras: Extras, layout: Layout, device: torch.device) -> dict[str, Any]:
    """Returns the kernel's arguments that are the same for all launches of a step."""
    step: int | float | Tensor = 0
    rounds_params = extras.rounding == "stochastic" and torch.bfloat16 in layout.dtypes[0]
    if rounds_params or any(find_format(dtype).narrow for dtype in layout.dtypes[2] | layout.dtypes[3]):
        t = extras.step  # seeds the rounding
        step = int(t) if isinstance(t, float) else _move_number(t, device, torch.float64)
    grad_scale, found_inf = extras.grad_scale, extras.found_inf
    return {
        "step": step,
        "weight1": _move_number(rule.weight1, device, torch.float64),
        "weight2": _move_number(rule.weight2, device, torch.float64),
        "lr": _move_number(rule.lr, device),
        "weight_decay": float(rule.weight_decay),
        "eps": float(rule.eps),
        "grad_scale": None if grad_scale is None else grad_scale.to(device, non_blocking=True),
        "found_inf": None if found_inf is None else found_inf.to(device, non_blocking=True),
        "MAXIMIZE": rule.maximize,
        "ROUNDING": extras.rounding,
    }


def _are_aligned(addresses: list[int]) -> bool:
    return functools.reduce(operator.or_, addresses) % 16 == 0


def _are_all_aligned(table: list[list[int]], memo: Memo) -> bool:
    """Returns whether all columns but the last two, numbers and elements, hold multiples of 16.

    Only the gradients' addresses are looked at each time: the others seldom change.
    """
    params, grads, *others, _, _ = table
    fixed = [params, *others]
    if memo.get("aligned", (None,))[0] != fixed:
        memo["aligned"] = fixed, all(map(_are_aligned, fixed))
    return memo["aligned"][1] and _are_aligned(grads)


def _move_number(
    value: float | Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> float | Tensor:
    if not isinstance(value, Tensor) or (value.is_cpu and value.ndim == 0 and device.type != "cpu"):
        return float(value)  # known on the host: nothing to wait for
    if value.is_cpu:
        return runtime.send(value.to(dtype), device)
    return value.to(device, dtype, non_blocking=True)


def _launch(
    kind: tuple[Any, ...],
    table: list[list[int]],
    places: range | list[int],
    arguments: dict[str, Any],
    device: torch.device,
    memo: Memo,
) -> None:
    """Launches the kernel once, for parameters of a `kind`.

    Args:
        kind: the dtypes of their four tensors, and whether all are aligned.
        table: see :func:`_tabulate`.
        places: places of the parameters in the lists of weights.
        arguments: see :func:`_make_arguments`.
        device: the device of the tensors.
        memo: a dict that is the same at each step.
    """
    from adamnx_hf.optim.engines import triton_kernel as kernel

    params, grads, *others = table
    if kind[0] != torch.bfloat16:  # those of other dtypes are rounded to nearest
        arguments = arguments | {"ROUNDING": "nearest"}
    block, warps, load, store = tuning(kind, arguments["ROUNDING"])
    with runtime.select(device):
        tables = provide_tables(Contents([params, *others], places, block), grads, kind, device, memo)
        if not len(tables.chunks):
            return
        names = ("PARAM", "GRAD", "EXP_AVG", "EXP_AVG_SQ")
        kernel.step_kernel[(len(tables.chunks),)](
            tables.parameters,
            tables.grads,
            tables.chunks,
            **arguments,
            COLUMNS=kernel.COLUMNS,
            **{name: _find_dtype(dtype) for name, dtype in zip(names, kind, strict=False)},
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


def compute_norm(grads: list[Tensor], memo: Memo) -> Tensor | None:
    """Returns the 2-norm of all gradients together, by a launch over them all and one over its sums.

    Args:
        grads: tensors of float32, bfloat16 or float16 on one device, each dense in memory (in any order).
        memo: a dict that is the same at each step.

    Returns:
        A float32 0-d tensor on the gradients' device. None if a CUDA graph is being captured and there was
        no norm of these gradients before: their tables cannot be sent then.
    """
    from adamnx_hf.optim.engines import triton_kernel as kernel

    device = grads[0].device
    addresses = list(map(Tensor.data_ptr, grads))
    numels = list(map(Tensor.numel, grads))
    dtypes = {grad.dtype for grad in grads}
    if len(dtypes) == 1 and _are_aligned(addresses):
        places_of: dict[Any, Any] = {("norm", *dtypes, True): range(len(grads))}
    else:
        places_of = defaultdict(list)
        for i, (grad, address) in enumerate(zip(grads, addresses, strict=True)):
            places_of["norm", grad.dtype, address % 16 == 0].append(i)
    with runtime.select(device):
        if runtime.current_stream(device)[1] and any(kind not in memo for kind in places_of):
            return None
        launches = {
            kind: provide_tables(
                Contents([pick(numels, places)], places, NORM_BLOCK),
                pick(addresses, places),
                kind,
                device,
                memo,
            )
            for kind, places in places_of.items()
        }
        counts = [len(tables.chunks) for tables in launches.values()]
        sums = torch.empty(sum(counts), dtype=torch.float32, device=device)
        result = torch.empty((), dtype=torch.float32, device=device)
        for (kind, tables), part in zip(launches.items(), sums.split(counts), strict=True):
            if len(part):
                kernel.squares_kernel[(len(part),)](
                    tables.parameters,
                    tables.grads,
                    tables.chunks,
                    part,
                    GRAD=_find_dtype(kind[1]),
                    ALIGNED=kind[2],
                    BLOCK=NORM_BLOCK,
                    num_warps=NORM_WARPS,
                )
        warps = 16 if torch.version.hip else 32  # of 64 threads or of 32: a program has at most 1,024
        kernel.root_kernel[(1,)](sums, result, len(sums), BLOCK=8192, num_warps=warps)
    return result


def _find_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return getattr(tl, str(dtype).removeprefix("torch."))


def _step_within_compile(columns: Columns, rule: Rule, extras: Extras) -> None:
    """Calls the operator below, with arguments of types that its schema knows."""
    weight1, weight2, lr, weight_decay, eps, maximize = rule
    step = extras.step
    assert isinstance(weight1, Tensor) and isinstance(weight2, Tensor)  # the schedule is on the device
    assert isinstance(step, Tensor) and isinstance(lr, Tensor)
    residuals = [rest for rest in columns.residuals or [] if rest is not None]
    _opaque_step(
        *columns.four(), step, list(extras.numbers), weight1, weight2, lr, weight_decay, eps, maximize,
        extras.rounding, residuals, extras.grad_scale, extras.found_inf,
    )  # fmt: skip


# torch.compile must not put this in CUDA graphs: it would have to know what to keep for the replays.
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
    """Steps as :func:`step_` does, as an operator that torch.compile calls and does not look into.

    A schema has neither tuples nor lists with gaps. So the arguments come one by one, and `residuals` are
    those of the bfloat16 parameters, or none at all.
    """
    rests = iter(residuals)
    known = [next(rests) if p.dtype == torch.bfloat16 else None for p in params] if residuals else None
    columns = Columns(params, grads, exp_avgs, exp_avg_sqs, known)
    rule = Rule(weight1, weight2, lr, weight_decay, eps, maximize)
    step_(columns, rule, Extras({}, step, numbers, rounding, grad_scale, found_inf))
