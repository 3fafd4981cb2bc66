"""The functional form: lists of tensors in, one AdamNX step of all of them, in place.

This is where what users bring (complex numbers, half precision, strided views, several devices, `step`
counters that differ) is turned into what engines take.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import _to_scalar

from adamnx_hf.optim.engines import ENGINES, Engine, Weight, choose_engine
from adamnx_hf.optim.formats import (
    NARROW,
    PARAM_ROUNDINGS,
    RandomBits,
    join,
    load,
    most_elements,
    pieces,
    store,
    store_param,
)
from adamnx_hf.optim.layout import ROLES, Layout, Memo, look_at, wrapped
from adamnx_hf.optim.schedules import BETA2_SCHEDULES, Scalar, adam

__all__ = [
    "adamnx",
    "count_on_device",
    "dtensors_among",
    "is_dense",
    "moment_dtype",
    "pack_steps",
    "step_dtype",
]

# The next whole number is not one of float32's.
_LAST_IN_FLOAT32 = 2**24

_MEMORY_FORMATS = {4: (torch.channels_last,), 5: (torch.channels_last_3d,)}

_T = TypeVar("_T")
Schedule = Callable[[Scalar, Scalar], Scalar]


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
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    *,
    beta1: float | Tensor,
    beta2: float | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool = False,
    beta2_schedule: str = "adamnx",
    param_rounding: str = "nearest",
    param_residuals: list[Tensor | None] | None = None,
    numbers: Sequence[int] | None = None,
    memo: Memo | None = None,
    layout: Layout | None = None,
) -> None:
    """Functional API that performs one AdamNX step in place, beside :class:`adamnx_hf.AdamNX`.

    Args:
        params: θ. Floating-point or complex, any device, any strides, DTensors too; a list may mix them.
        grads: g, of the shapes of `params`; another floating dtype is converted.
        exp_avgs: m. float32 moments are kept beside float16 and bfloat16 parameters.
        exp_avg_sqs: v, likewise. For complex parameters it holds the squares of the real and the
            imaginary part.
        state_steps: 0-d tensors, steps done so far; each is raised by 1. float64 ones count for ever, those
            of float32 to 2^24. The schedule is computed where they are: on the CPU, or on the device
            without asking for their values.
        foreach, fused: the implementation, as in torch.optim: both None picks the fastest that applies.
        capturable: keep the schedule on the device, so that a step can be captured in a CUDA graph.
        differentiable: let autograd through the step; `lr` and betas may be tensors that require grad.
        grad_scale: a 0-d tensor; gradients count as divided by it. They are left as they are.
        found_inf: a 0-d tensor; where it is not 0 nothing is changed, `state_steps` neither. As
            :class:`torch.amp.GradScaler` has them.
        beta1, beta2, lr, weight_decay, eps, maximize, beta2_schedule, param_rounding: see
            :class:`adamnx_hf.AdamNX`.
        param_residuals: with param_rounding="kahan", for each bfloat16 parameter what it cannot hold, of its
            shape and dtype (:func:`adamnx_hf.optim.formats.split`); None for the others. They belong to the
            weights that the last step has left: set them to 0 where you set weights anew.
        numbers: one for each parameter, always the same, by which the random bits of different parameters
            differ where something is rounded stochastically. Default: their places in `params`.
        memo: an empty dict, to be passed again at each step of the same group: saves host time.
        layout: what :func:`adamnx_hf.optim.layout.look_at` has said of these tensors, where it has just been
            asked with this `memo`. None: it is asked here.

    Raises:
        ValueError: there is no such schedule or rounding; lists of different lengths; "kahan" without
            residuals; a `step` on the CPU that has come to the end of float32.
        TypeError: parameters of integers.
        RuntimeError: a tensor has another shape than its parameter, or is on another device; the
            implementation asked for cannot serve these tensors. Raised before any tensor is modified.
    """
    schedules = [*BETA2_SCHEDULES]  # a list, as what was given may have no hash
    if beta2_schedule not in schedules or param_rounding not in PARAM_ROUNDINGS:
        option, value, choices = (
            ("beta2_schedule", beta2_schedule, schedules)
            if beta2_schedule not in schedules
            else ("param_rounding", param_rounding, [*PARAM_ROUNDINGS])
        )
        raise ValueError(f"Invalid {option}: {value!r}; choose one of {', '.join(choices)}")
    if not any((params, grads, exp_avgs, exp_avg_sqs, state_steps)):
        return
    compiling = torch.compiler.is_compiling()
    columns: list[Any] = [
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        *([] if param_residuals is None else [param_residuals]),
    ]
    if layout is None:
        layout = look_at(columns, memo)
    memo = {} if memo is None else memo
    if len(state_steps) != len(params):
        raise ValueError(f"AdamNX: {len(state_steps)} state_steps for {len(params)} parameters")
    if numbers is not None and len(numbers) != len(params):
        raise ValueError(f"AdamNX: {len(numbers)} numbers for {len(params)} parameters")
    if param_rounding == "kahan" and param_residuals is None and torch.bfloat16 in layout.dtypes[0]:
        raise ValueError("AdamNX: param_rounding='kahan' needs param_residuals for bfloat16 parameters")
    given = columns
    if layout.wrapped and not differentiable:
        columns = _local_shards(columns)
    for dtype in layout.dtypes[0]:
        if not (dtype.is_floating_point or dtype.is_complex):
            raise TypeError(f"AdamNX steps parameters of floating-point or complex numbers, not {dtype}")
    if any(dtype.is_complex for dtype in layout.dtypes[0]):
        columns = [columns[0], [grad.resolve_conj() for grad in columns[1]], *columns[2:]]
        # A residual is bfloat16's.
        columns = [
            [torch.view_as_real(t) if t is not None and t.is_complex() else t for t in column]
            for column in columns
        ]
    if columns is not given:
        layout = look_at(columns, memo.setdefault("worked on", {}))
    params, grads, exp_avgs, exp_avg_sqs, *rest = columns
    param_residuals = rest[0] if rest else None
    dtypes = layout.dtypes[0]

    lr, beta1, beta2 = _to_scalar(lr), _to_scalar(beta1), _to_scalar(beta2)
    if compiling:
        # As a number, each value of a schedule would have the step compiled anew, but for products with a
        # tensor: there Dynamo has the number in a tensor itself.
        one = torch.ones((), dtype=torch.float64, device="cpu")
        lr, beta1, beta2 = (x if isinstance(x, Tensor) else one * x for x in (lr, beta1, beta2))
    packed = _packed(state_steps, memo)
    host_schedule = True
    if capturable or compiling or not _on_cpu(state_steps, packed):  # so phrased that Dynamo can trace it
        host_schedule = False
    if host_schedule and not differentiable:
        beta1, beta2 = float(beta1), float(beta2)

    kinds = {(device, dtype) for device in layout.devices for dtype in dtypes}
    if len(kinds) > 1:
        kinds = {(param.device, param.dtype) for param in params}
    engines = {
        (device, dtype): choose_engine(
            device.type,
            moment_dtype(dtype),
            foreach=foreach,
            fused=fused,
            host_schedule=host_schedule,
            differentiable=differentiable,
            wrapped=layout.wrapped,
        )
        for device, dtype in kinds
    }
    if found_inf is not None:
        found_inf = found_inf.reshape(())  # FSDP's ShardedGradScaler has it in one dimension
        if host_schedule:
            if found_inf.item():
                return
            found_inf = None
        elif not all(engine.SCALES for engine in engines.values()):
            raise RuntimeError("AdamNX: found_inf with `step` on the device needs fused=True on CUDA")

    # Tensors go to an engine together if they agree in what it does not mix: device, and dtype and step.
    steps: list[float] = []
    if host_schedule:
        steps = packed.tolist() if packed is not None else [step.item() for step in state_steps]
        if max(steps) >= _LAST_IN_FLOAT32 and any(step.dtype != torch.float64 for step in state_steps):
            raise ValueError(
                f"AdamNX: a step of float32 counts to {_LAST_IN_FLOAT32:,} and no further; make it float64"
            )
    buckets: list[Sequence[int]] = [range(len(params))]
    if len(kinds) > 1 or not (len(set(steps)) <= 1 or next(iter(engines.values())).MIXES):
        grouped = defaultdict(list)
        for i, param in enumerate(params):
            mixes = engines[param.device, param.dtype].MIXES
            step = steps[i] if steps else None
            grouped[(param.device,) if mixes else (param.device, param.dtype, step)].append(i)
        buckets = list(grouped.values())

    t: float | Tensor
    for number, members in enumerate(buckets):
        first = params[members[0]]
        if host_schedule:
            t = _next_step(_pick(steps, members))
        else:
            t = _next_step_on(first.device, _pick(state_steps, members), packed)
        weight1, weight2 = (
            _weights(scheme, t, beta, len(members))
            for scheme, beta in ((adam, beta1), (BETA2_SCHEDULES[beta2_schedule], beta2))
        )
        _step_bucket(
            engines[first.device, first.dtype],
            moment_dtype(first.dtype),
            *(_pick(tensors, members) for tensors in (params, grads, exp_avgs, exp_avg_sqs)),
            layout=layout if len(buckets) == 1 else None,
            numbers=_pick(range(len(params)) if numbers is None else numbers, members),
            residuals=param_residuals and _pick(param_residuals, members),
            rounding=param_rounding,
            step=t,
            weight1=weight1,
            weight2=weight2,
            grad_scale=grad_scale,
            found_inf=found_inf,
            memo=memo.setdefault(number, {}),
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
            maximize=maximize,
        )
    _count(state_steps, packed, found_inf)


def moment_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a parameter of `dtype` is updated and its moments are kept: at least float32.

    In bfloat16 v would freeze at about step 500, where its weight falls below the format's resolution.
    """
    return torch.promote_types(dtype, torch.float32)


def step_dtype(device: torch.device) -> torch.dtype:
    """The dtype of `step` on a device: float64, as 2^24 + 1 is 2^24 in float32, where counting would end.

    MPS has no float64.
    """
    return torch.float32 if device.type == "mps" else torch.float64


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


def count_on_device(params: list[Tensor], states: Sequence[dict[str, Any]]) -> None:
    """Moves `step` to its parameter's device, where an engine can there decide whether a step counts.

    For steps with `found_inf`, whose value the host is not to wait for.
    """
    for kind in {(param.device.type, moment_dtype(param.dtype.to_real())) for param in params}:
        reasons = [
            engine.why_not(*kind, host_schedule=False, differentiable=False, wrapped=False)
            for engine in ENGINES.values()
            if engine.SCALES
        ]
        if None not in reasons:
            return  # then the host has to ask, for all of them
    moving = [(s, p.device) for p, s in zip(params, states, strict=True) if s["step"].device != p.device]
    for state, device in moving:
        state["step"] = state["step"].to(step_dtype(device)).to(device, non_blocking=True)
    if moving:
        pack_steps(states)


def _packed(state_steps: list[Tensor], memo: Memo) -> Tensor | None:
    """The tensor whose elements, all of them and in this order, are `state_steps`; None if there is none."""
    packed = state_steps[0]._base
    if packed is None or torch.compiler.is_compiling():
        return None
    # By address: `.data` of a view may have become another tensor.
    addresses = list(map(Tensor.data_ptr, state_steps))
    if (packed.data_ptr(), packed.shape, addresses) != memo.get("step"):
        first, size = packed.data_ptr(), packed.element_size()
        if (
            packed.ndim != 1
            or any(step._base is not packed for step in state_steps)
            or addresses != list(range(first, first + packed.numel() * size, size))
        ):
            return None
        memo["step"] = first, packed.shape, addresses
    return packed


def _on_cpu(state_steps: list[Tensor], packed: Tensor | None) -> bool:
    return packed.is_cpu if packed is not None else all(step.is_cpu for step in state_steps)


def _count(state_steps: list[Tensor], packed: Tensor | None, found_inf: Tensor | None) -> None:
    """Raises the counters by 1, or where `found_inf` is not 0 by nothing."""
    if found_inf is not None:
        one = (found_inf == 0).float()
        if packed is not None:
            packed.add_(one.to(packed.device, non_blocking=True))
            return
        for device in {step.device for step in state_steps}:
            there = [step for step in state_steps if step.device == device]
            # Without alpha the tensor would be taken for a number, which the host would wait for.
            torch._foreach_add_(there, one.to(device, non_blocking=True), alpha=1.0)
    elif packed is not None:
        packed.add_(1)
    elif state_steps[0].is_cpu:
        # For steps on the CPU torch adds one by one, and would wrap a number in a tensor each time.
        torch._foreach_add_(state_steps, torch.tensor(1.0, device="cpu"), alpha=1.0)
    else:
        torch._foreach_add_(state_steps, 1)


def _next_step(steps: list[float]) -> float | Tensor:
    """The next t after `steps` steps: a number if they agree, else a float64 tensor on the CPU."""
    if len(set(steps)) == 1:
        return steps[0] + 1
    return torch.tensor(steps, dtype=torch.float64, device="cpu") + 1


def _next_step_on(device: torch.device, state_steps: list[Tensor], packed: Tensor | None) -> Tensor:
    """The next t after each of `state_steps`, which the host does not ask for: a tensor on `device`."""
    # The schedules' forms are right to float32's last digits too.
    precision = step_dtype(device)
    if packed is not None and len(packed) == len(state_steps):
        return packed.to(precision).to(device) + 1
    return torch.stack([step.to(precision).to(device) for step in state_steps]) + 1


def _weights(scheme: Schedule, step: float | Tensor, beta: Scalar, count: int) -> Weight:
    """`scheme` at `step`: a number, or a tensor with one element for each of `count` parameters."""
    if isinstance(beta, Tensor):
        beta = beta.to(step.device, step.dtype) if isinstance(step, Tensor) else beta.double()
    weight = scheme(step, beta)
    return weight.expand(count) if isinstance(weight, Tensor) else weight


def dtensors_among(tensors: list[Any]) -> Any:
    """torch.distributed.tensor if there are DTensors among `tensors`, else None."""
    # Whoever has a DTensor has imported its module.
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or not any(issubclass(kind, module.DTensor) for kind in {type(t) for t in tensors}):
        return None
    return module


def _local_shards(columns: list[Any]) -> list[Any]:
    """This rank's part of DTensors, for kernels to work on; other tensors as they are.

    `columns` are params, grads, exp_avgs, exp_avg_sqs and maybe param_residuals.
    """
    distributed = dtensors_among(columns[0])
    if distributed is None:
        return columns
    rows = [list(row) for row in zip(*columns, strict=True)]
    for row in rows:
        if not isinstance(param := row[0], distributed.DTensor):
            continue
        for i, (role, tensor) in enumerate(zip(ROLES, row, strict=False)):
            if tensor is None:
                continue
            placements = getattr(tensor, "placements", None)
            if placements is not None and placements != param.placements and role == "grad":
                tensor = tensor.redistribute(placements=param.placements)
            elif placements != param.placements:
                raise RuntimeError(
                    f"AdamNX: {role} of a DTensor parameter is placed {placements or 'as a plain tensor'}, "
                    f"the parameter {param.placements}. Load the state with torch.distributed.checkpoint or "
                    "set_optimizer_state_dict, which place it as the parameters are"
                )
            row[i] = tensor.to_local()
    return [list(column) for column in zip(*rows, strict=True)]


def _step_bucket(
    engine: Engine,
    dtype: torch.dtype,
    *columns: list[Tensor],
    layout: Layout | None,
    numbers: Sequence[int],
    residuals: list[Tensor | None] | None,
    rounding: str,
    step: float | Tensor,
    weight1: Weight,
    weight2: Weight,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    memo: Memo,
    **hyperparameters: Any,
) -> None:
    """Calls the engine: at once on the parameters it can take as they are, on copies of the others.

    `columns` are params, grads, exp_avgs and exp_avg_sqs, `layout` is theirs if it is known. The copies are
    made of few elements at a time, of a large parameter's of some rows. What is stored in a narrow format is
    rounded here, unless the engine takes it as it is and does so itself.
    """
    everyone = range(len(columns[0]))
    taken = engine.MIXES or {dtype}
    layout = Layout.of(columns) if layout is None else layout
    if layout.contiguous and all(dtype in taken for kinds in layout.dtypes for dtype in kinds):
        alike: Sequence[int] = everyone
    else:
        alike = [i for i in everyone if _alike([tensors[i] for tensors in columns], taken)]
    others = sorted(set(everyone).difference(alike)) if len(alike) < len(everyone) else []

    batches = [(_Batch(alike), False)]
    if engine.SCALES:
        hyperparameters |= {"grad_scale": grad_scale, "found_inf": found_inf}
    elif grad_scale is not None:
        batches = [(batch, False) for batch in _batches(alike, columns)]
    # An engine that rounds has the random bits from where an element is in the whole parameter.
    batches += [(batch, True) for batch in _batches(others, columns, cuts=len(engine.MIXES) == 0)]
    for number, (batch, copied) in enumerate(batches):
        if not batch.places:
            continue
        originals = working = [batch.of(tensors) for tensors in columns]
        if copied:  # both conversions are no-ops on a tensor that is right already
            working = [
                [_working_copy(t, p, role, taken, dtype) for t, p in zip(tensors, originals[0], strict=True)]
                for role, tensors in zip(ROLES, originals, strict=False)
            ]
        rests = kept = residuals and batch.of(residuals)
        if copied and rests:
            rests = [rest if rest is None else rest.contiguous() for rest in rests]
            if not engine.MIXES:
                pairs = zip(originals[0], working[0], rests, strict=True)
                working[0] = [copy if rest is None else join(p, rest) for p, copy, rest in pairs]
        if not torch.compiler.is_compiling():
            working = [working[0], _resolved(working[1]), *working[2:]]
        if engine.SCALES:
            hyperparameters["memo"] = memo.setdefault(number, {})
            hyperparameters["layout"] = layout if batch.places is everyone else None
            hyperparameters["step"] = _pick_weights(step, batch.places)
            hyperparameters["numbers"] = _pick(numbers, batch.places)
            hyperparameters["rounding"] = rounding
            hyperparameters["residuals"] = rests
        elif grad_scale is not None:
            scale = grad_scale.to(working[1][0].device, non_blocking=True)
            working = [working[0], list(torch._foreach_div(working[1], scale)), *working[2:]]
        engine.step_(
            *working,
            weight1=_pick_weights(weight1, batch.places),
            weight2=_pick_weights(weight2, batch.places),
            **hyperparameters,
        )
        if not copied:
            continue
        for i, place in enumerate(batch.places):
            t = step if isinstance(step, float) else step[place]
            bits = RandomBits(t, numbers[place], batch.starts[i])
            for role, old, new in zip(ROLES, originals, working, strict=False):
                tensor, copy = old[i], new[i]
                if copy is tensor or role == "grad":
                    continue
                by_chance = role != "param" or rounding != "nearest"
                if not (by_chance and tensor.dtype in NARROW and tensor.dtype != copy.dtype):
                    tensor.copy_(copy)
                elif role == "param":
                    store_param(tensor, copy, bits, kept[i] if kept else None)
                else:
                    store(tensor, copy, bits, role)
            if engine.MIXES and kept and rests:
                residual, rest = kept[i], rests[i]
                if residual is not None and rest is not None and rest is not residual:
                    residual.copy_(rest)


def _working_copy(
    tensor: Tensor, param: Tensor, role: str, dtypes: Collection[torch.dtype], dtype: torch.dtype
) -> Tensor:
    """`tensor` as an engine can take it: itself where it is right already."""
    if role in ("exp_avg", "exp_avg_sq") and tensor.dtype not in dtypes:
        tensor = load(tensor, param, role)
    return (tensor if tensor.dtype in dtypes else tensor.to(dtype)).contiguous()


def _pick_weights(weights: Weight, members: Sequence[int]) -> Weight:
    if isinstance(weights, float) or isinstance(members, range):  # a range is that of all parameters
        return weights
    if [*members] == [*range(len(weights))]:
        return weights
    return torch.stack([weights[i] for i in members])  # an index would have to be sent to the device


def _pick(items: Any, members: Sequence[int]) -> Any:
    return items if len(members) == len(items) else [items[i] for i in members]


def _resolved(grads: list[Tensor]) -> list[Tensor]:
    """`grads` without a sign that is only noted down."""
    return [grad.resolve_neg() for grad in grads] if any(map(Tensor.is_neg, grads)) else grads


def is_dense(*tensors: Tensor) -> bool:
    """Whether the elements of `tensors` fill memory without gaps, all in the same one of torch's formats."""
    return any(
        all(t.is_contiguous(memory_format=memory_format) for t in tensors)
        for memory_format in (torch.contiguous_format, *_MEMORY_FORMATS.get(tensors[0].ndim, ()))
    )


def _alike(row: Sequence[Tensor], dtypes: Collection[torch.dtype]) -> bool:
    """Whether one parameter's tensors share a dense layout, as kernels that walk memory need, and `dtypes`.

    torch's fused AdamW does not check this on the CPU: it computes nonsense for strided views.
    """
    return all(t.dtype in dtypes for t in row) and is_dense(*row)


class _Batch(NamedTuple):
    """What an engine is given at a time: the parameters at `places`, or of each the `rows` (an index).

    `starts`: how many of a parameter's elements come before its rows.
    """

    places: Any
    rows: Any = ()
    starts: Any = ()

    def of(self, tensors: list[_T]) -> list[_T]:
        """What this batch has of `tensors`, which hold one for each parameter, or None."""
        if not self.rows:
            return _pick(tensors, self.places)
        chosen: list[Any] = [tensors[place] for place in self.places]
        return [
            tensor if tensor is None or rows is ... else tensor[rows]
            for tensor, rows in zip(chosen, self.rows, strict=True)
        ]


def _batches(members: Sequence[int], columns: Sequence[list[Tensor]], cuts: bool = True) -> Iterator[_Batch]:
    """Batches of few elements each. A parameter with more of them is cut, or where it cannot be, a batch."""
    if not members:
        return
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or wrapped(*columns):
        cuts = False
    most = most_elements(columns[0][members[0]].device)
    batch, elements = _Batch([], [], []), 0
    for place in members:
        param = columns[0][place]
        for rows, start, count in pieces(param, most) if cuts else [(..., 0, param.numel())]:
            if batch.places and elements + count > most:
                yield batch
                batch, elements = _Batch([], [], []), 0
            for column, entry in zip(batch, (place, rows, start), strict=True):
                column.append(entry)
            elements += count
    if batch.places:
        yield batch
