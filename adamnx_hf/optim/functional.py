"""The functional form: lists of tensors in, one AdamNX step of all of them, in place.

This is where what users bring (complex numbers, half precision, strided views, several devices, `step`
counters that differ) is turned into what engines take.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from operator import is_
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.optim.optimizer import _to_scalar

from adamnx_hf.optim.engines import Engine, Weight, choose_engine
from adamnx_hf.optim.schedules import BETA2_SCHEDULES, Scalar, adam

__all__ = ["Memo", "adamnx", "moment_dtype", "pack_steps"]

#: What a caller keeps between steps so that known tensors are not examined again: by role, weak references
#: to those last found in order (the memory of moments that are taken out of the state is to be freed), or
#: for "step" the addresses.
Memo = dict[str, Any]

# Working copies are made for at most this many elements at a time (64 MiB in float32).
_WORKING_ELEMENTS = 2**24

_MEMORY_FORMATS = {4: (torch.channels_last,), 5: (torch.channels_last_3d,)}

_ROLES = ("param", "grad", "exp_avg", "exp_avg_sq")
_T = TypeVar("_T")


def adamnx(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    *,
    beta1: float | Tensor,
    beta2: float | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool = False,
    beta2_schedule: str = "adamnx",
    memo: Memo | None = None,
) -> None:
    """Functional API that performs one AdamNX step in place, beside :class:`adamnx_hf.AdamNX`.

    Args:
        params: θ. Floating-point or complex, any device, any strides; a list may mix them.
        grads: g, of the shapes of `params`; another floating dtype is converted.
        exp_avgs: m. float32 moments are kept beside float16 and bfloat16 parameters.
        exp_avg_sqs: v, likewise. For complex parameters it holds the squares of the real and the
            imaginary part.
        state_steps: 0-d tensors, steps done so far; each is raised by 1. On the parameter's device if
            `capturable`, else on the CPU (elsewhere costs a synchronisation each).
        foreach, fused: the implementation, as in torch.optim: both None picks the fastest that applies.
        capturable: keep the schedule on the device, so that a step can be captured in a CUDA graph.
        differentiable: let autograd through the step; `lr` and betas may be tensors that require grad.
        beta1, beta2, lr, weight_decay, eps, maximize, beta2_schedule: see :class:`adamnx_hf.AdamNX`.
        memo: an empty dict, to be passed again at each step of the same group: saves host time.

    Raises:
        RuntimeError: the implementation asked for cannot serve these tensors. Raised before any tensor
            is modified.
    """
    if not params:
        return
    memo = {} if memo is None else memo
    # Comprehensions, not map(): Dynamo has to trace this.
    dtypes = {param.dtype for param in params}
    if any(dtype.is_complex for dtype in dtypes):
        grads = [grad.resolve_conj() for grad in grads]
        params, grads, exp_avgs, exp_avg_sqs = (
            [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
            for tensors in (params, grads, exp_avgs, exp_avg_sqs)
        )
        dtypes = {param.dtype for param in params}

    lr, beta1, beta2 = _to_scalar(lr), _to_scalar(beta1), _to_scalar(beta2)
    host_schedule = True
    if capturable or torch.compiler.is_compiling():  # so phrased that Dynamo can trace it
        host_schedule = False
    if host_schedule and not differentiable:
        beta1, beta2 = float(beta1), float(beta2)
    schedule = BETA2_SCHEDULES[beta2_schedule]

    # Tensors go to an engine together if they agree in device, dtype and, where the host knows it, step.
    packed = _packed(state_steps, memo)
    if not host_schedule:
        steps = [0.0] * len(params)
    elif packed is not None:
        steps = packed.tolist()
    else:
        steps = [step.item() for step in state_steps]
    buckets: dict[tuple[float, torch.device, torch.dtype], Sequence[int]]
    if len(set(steps)) == len({param.device for param in params}) == len(dtypes) == 1:
        buckets = {(steps[0], params[0].device, params[0].dtype): range(len(params))}
    else:
        grouped = defaultdict(list)
        for i, (step, param) in enumerate(zip(steps, params, strict=True)):
            grouped[step, param.device, param.dtype].append(i)
        buckets = dict(grouped)
    engines = {
        (device, dtype): choose_engine(
            device.type,
            moment_dtype(dtype),
            foreach=foreach,
            fused=fused,
            host_schedule=host_schedule,
            differentiable=differentiable,
        )
        for _, device, dtype in buckets
    }

    if packed is not None:
        packed.add_(1)
    elif state_steps[0].is_cpu:
        # For steps on the CPU torch adds one by one, and would wrap a number in a tensor each time.
        torch._foreach_add_(state_steps, torch.tensor(1.0, device="cpu"), alpha=1.0)
    else:
        torch._foreach_add_(state_steps, 1)

    for (step, device, dtype), members in buckets.items():
        weights: list[Weight] = []
        for scheme, beta in ((adam, beta1), (schedule, beta2)):
            if host_schedule:
                weight = scheme(step + 1, beta.double() if isinstance(beta, Tensor) else beta)
                weights.append([weight] * len(members) if isinstance(weight, Tensor) else weight)
            else:
                weights.append(_device_weights(scheme, _pick(state_steps, members), beta, device))
        _step_bucket(
            engines[device, dtype],
            moment_dtype(dtype),
            *(_pick(tensors, members) for tensors in (params, grads, exp_avgs, exp_avg_sqs)),
            weight1=weights[0],
            weight2=weights[1],
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
            maximize=maximize,
            memo=memo if len(buckets) == 1 else {},
        )


def moment_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a parameter of `dtype` is updated and its moments are kept: at least float32.

    In bfloat16 v would freeze at about step 500, where its weight falls below the format's resolution.
    """
    return torch.promote_types(dtype, torch.float32)


def pack_steps(states: Sequence[dict[str, Any]]) -> None:
    """Lays the `step` tensors of `states` out in one, of which each becomes a 0-d view.

    Each parameter still has its own, to be read, written, saved and replaced; but while all of them
    step together, that is one addition instead of thousands.
    """
    devices = {state["step"].device for state in states}
    if len(states) > 1 and len(devices) == 1:
        packed = torch.stack([state["step"] for state in states])
        for state, step in zip(states, packed.unbind(), strict=True):
            state["step"] = step


def _packed(state_steps: list[Tensor], memo: Memo) -> Tensor | None:
    """The tensor whose elements, all of them and in this order, are `state_steps`; None if there is none."""
    packed = state_steps[0]._base
    if packed is None or torch.compiler.is_compiling():
        return None
    # By address: `.data` of a view may have become another tensor.
    addresses = [step.data_ptr() for step in state_steps]
    if (packed.data_ptr(), addresses) != memo.get("step"):
        first, size = packed.data_ptr(), packed.element_size()
        if (
            packed.ndim != 1
            or any(step._base is not packed for step in state_steps)
            or addresses != list(range(first, first + packed.numel() * size, size))
        ):
            return None
        memo["step"] = first, addresses
    return packed


def _same(tensors: list[Tensor], others: list[Tensor]) -> bool:
    return len(tensors) == len(others) and all(map(is_, tensors, others))


def _device_weights(
    scheme: Callable[[Scalar, Scalar], Scalar],
    state_steps: list[Tensor],
    beta: Scalar,
    device: torch.device,
) -> list[Tensor]:
    """`scheme` at each of `state_steps` without asking the host for their values: 0-d tensors on `device`."""
    # MPS has no float64; the schedules' forms are right to float32's last digits too.
    precision = torch.float32 if device.type == "mps" else torch.float64
    steps = torch.stack(state_steps).to(device, precision)
    if isinstance(beta, Tensor):
        beta = beta.to(device, precision)
    return list(cast(Tensor, scheme(steps, beta)).unbind())


def _step_bucket(
    engine: Engine,
    dtype: torch.dtype,
    *columns: list[Tensor],
    weight1: Weight,
    weight2: Weight,
    memo: Memo,
    **hyperparameters: Any,
) -> None:
    """Calls the engine: at once on the parameters it can take as they are, on copies of the others.

    `columns` are params, grads, exp_avgs and exp_avg_sqs. The copies are made in batches.
    """
    everyone = range(len(columns[0]))
    if all(_ready(tensors, dtype, memo, role) for role, tensors in zip(_ROLES, columns, strict=True)):
        alike: Sequence[int] = everyone
    else:
        alike = [i for i in everyone if _alike([tensors[i] for tensors in columns], dtype)]
    others = sorted(set(everyone).difference(alike)) if len(alike) < len(everyone) else []

    for batch in (alike, *_batches(others, columns[0])):
        if not batch:
            continue
        originals = [_pick(tensors, batch) for tensors in columns]
        if batch is alike:
            working = originals
        else:  # both conversions are no-ops on a tensor that is right already
            working = [[t.to(dtype).contiguous() for t in tensors] for tensors in originals]
        engine.step_(
            *working,
            weight1=weight1 if isinstance(weight1, float) else _pick(weight1, batch),
            weight2=weight2 if isinstance(weight2, float) else _pick(weight2, batch),
            **hyperparameters,
        )
        if batch is not alike:
            for role, old, new in zip(_ROLES, originals, working, strict=True):
                for tensor, copy in zip(old, new, strict=True):
                    if copy is not tensor and role != "grad":
                        tensor.copy_(copy)


def _pick(items: list[_T], members: Sequence[int]) -> list[_T]:
    return items if len(members) == len(items) else [items[i] for i in members]


def _ready(tensors: list[Tensor], dtype: torch.dtype, memo: Memo, role: str) -> bool:
    """Whether all tensors are contiguous and of `dtype`: the common case, found out fast."""
    # Gradients are new at each step, and `.data` of a parameter may be another one: these are not skipped.
    skippable = role in ("exp_avg", "exp_avg_sq")
    if skippable and tensors[0].dtype == dtype and _same(tensors, [ref() for ref in memo.get(role, [])]):
        return True
    ready = {t.dtype for t in tensors} == {dtype} and False not in [t.is_contiguous() for t in tensors]
    if ready and skippable:
        memo[role] = [weakref.ref(tensor) for tensor in tensors]
    return ready


def _alike(row: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether one parameter's tensors share `dtype` and a dense layout, as kernels that walk memory need.

    torch's fused AdamW does not check this on the CPU: it computes nonsense for strided views.
    """
    formats = (torch.contiguous_format, *_MEMORY_FORMATS.get(row[0].ndim, ()))
    return all(t.dtype == dtype for t in row) and any(
        all(t.is_contiguous(memory_format=memory_format) for t in row) for memory_format in formats
    )


def _batches(members: list[int], params: list[Tensor]) -> Iterator[list[int]]:
    batch: list[int] = []
    elements = 0
    for i in members:
        if batch and elements + params[i].numel() > _WORKING_ELEMENTS:
            yield batch
            batch, elements = [], 0
        batch.append(i)
        elements += params[i].numel()
    if batch:
        yield batch
