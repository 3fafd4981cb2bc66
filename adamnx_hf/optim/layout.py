"""What a step has to know of its tensors before it touches one: that their shapes fit, and how they lie.

It is asked of thousands of tensors at every step, so what was as it is now at the step before is not asked
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.utils.weak import WeakTensorKeyDictionary

from adamnx_hf.optim.formats import packed_shape

try:  # torch's own, and not public: without it everything is asked at every step
    from torch._C._dynamo.guards import TensorGuards
except ImportError:
    TensorGuards = None  # type: ignore[assignment, misc]

__all__ = ["ROLES", "Layout", "Memo", "check_tensors", "look_at", "wrapped"]

#: What a caller keeps between the steps of the same parameters. Never a tensor of the caller's.
Memo = dict[Any, Any]

#: What the columns of tensors are, one row for each parameter.
ROLES = ("param", "grad", "exp_avg", "exp_avg_sq", "param_residual")

#: How many of them an engine works on.
_WORKED_ON = 4

_NEW_STATE = "a parameter that is given another shape needs a new state: del optimizer.state[param]"
_MOVE_STATE = "optimizer.load_state_dict(optimizer.state_dict()) moves the state to the parameters"
_REMEDIES = dict.fromkeys(ROLES, _NEW_STATE) | {"grad": "zero_grad(), then compute the gradients anew"}

# The shape of whose elements a packed moment holds. Its own does not tell: rows are filled up.
_PACKED_FOR = WeakTensorKeyDictionary()


class Layout(NamedTuple):
    """What holds of all of a step's tensors together."""

    dtypes: list[set[torch.dtype]]
    """Those found among params, grads, exp_avgs and exp_avg_sqs."""
    numels: list[int]
    """Elements of each of params. Not to be written to."""
    devices: set[torch.device]
    """Of params."""
    contiguous: bool
    """Whether all of them are."""
    wrapped: bool
    """See :func:`wrapped`."""

    @classmethod
    def of(cls, columns: Sequence[Sequence[Tensor]]) -> Layout:
        """The layout of `columns`: params, grads, exp_avgs and exp_avg_sqs."""
        # Comprehensions, not map(): Dynamo has to trace this.
        return cls(
            [{tensor.dtype for tensor in column} for column in columns],
            [param.numel() for param in columns[0]],
            {param.device for param in columns[0]},
            all(False not in [tensor.is_contiguous() for tensor in column] for column in columns),
            wrapped(*columns),
        )


class _Kept(NamedTuple):
    """The layout of the last step, and what tells whether tensors still have it."""

    sizes: list[int]
    """Tensors in each column."""
    guards: list[Any]
    """Each compares a column's dtypes, devices, shapes and strides with what they were, at once."""
    gaps: list[int]
    """Places where there is no residual."""
    layout: Layout


def look_at(
    columns: Sequence[Sequence[Tensor | None]],
    memo: Memo | None = None,
    name: Callable[[int], str] | None = None,
) -> Layout:
    """Looks at a step's tensors and returns their layout. Their shapes and devices fit then.

    Args:
        columns: params, grads, exp_avgs, exp_avg_sqs, and maybe param_residuals, which may hold None.
        memo: the same dict at each step, or None where there are no others.
        name: of a parameter, by its place. Default: its place.

    Raises:
        RuntimeError: a tensor has another shape than its parameter, or is on another device; sparse
            gradients.
        ValueError: the lists are of different lengths.
    """
    if torch.compiler.is_compiling():  # what Dynamo compiles is for these very shapes
        check_tensors(columns, name)
        return Layout.of(columns[:_WORKED_ON])  # type: ignore[arg-type]
    given, gaps = columns, []
    if len(columns) > _WORKED_ON:
        *others, residuals = columns
        gaps = [place for place, residual in enumerate(residuals) if residual is None]
        columns = [*others, [residual for residual in residuals if residual is not None]]
    sizes = list(map(len, columns))
    kept: _Kept | None = None if memo is None else memo.get("layout")
    if kept is not None and kept.sizes == sizes and kept.gaps == gaps:
        for guard, column in zip(kept.guards, columns, strict=True):
            if not guard.check(*column):
                break
        else:
            return kept.layout
    check_tensors(given, name)
    layout = Layout.of(columns[:_WORKED_ON])  # type: ignore[arg-type]
    if memo is not None and TensorGuards is not None:
        everything_static: dict[str, Any] = {"dynamic_dims_sizes": None, "dynamic_dims_strides": None}
        guards = [TensorGuards(*column, **everything_static) for column in columns]
        memo["layout"] = _Kept(sizes, guards, gaps, layout)
    return layout


def check_tensors(
    columns: Sequence[Sequence[Tensor | None]], name: Callable[[int], str] | None = None
) -> None:
    """Raises where tensors do not fit; arguments and errors are those of :func:`look_at`.

    Kernels walk memory by the parameter's shape, and some of torch's do not ask for the others'. Any tensor
    but a parameter may be None.
    """
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        found = ", ".join(f"{length} of {role}" for role, length in zip(ROLES, lengths, strict=False))
        raise ValueError(f"AdamNX: lists of different lengths: {found}; each has one tensor for a parameter")
    if True in [grad is not None and grad.is_sparse for grad in columns[1]]:
        raise RuntimeError(
            "AdamNX does not support sparse gradients; use dense ones, as of torch.nn.Embedding(sparse=False)"
        )
    params: Sequence[Any] = columns[0]
    for i in range(1, len(columns)):  # no zip(strict=...), which Dynamo of torch 2.8 does not trace
        role = ROLES[i]
        for place, tensor in enumerate(columns[i]):
            if tensor is None:
                continue
            param = params[place]
            shape, expected = tensor.shape, param.shape
            if tensor.dtype == torch.uint8 and role.startswith("exp_avg") and param.ndim > 1:
                expected = torch.Size(packed_shape(expected))
                if shape == expected and not torch.compiler.is_compiling():
                    shape, expected = _PACKED_FOR.setdefault(tensor, param.shape), param.shape
            if shape != expected:
                _refuse(role, place, name, shape, param, expected)
            if tensor.device != param.device:
                _refuse_device(role, place, name, tensor, param)


@_disable_dynamo  # older ones trip over what the error says
def _refuse(
    role: str,
    place: int,
    name: Callable[[int], str] | None,
    shape: torch.Size,
    param: Tensor,
    expected: torch.Size,
) -> None:
    """Raises: a tensor has a `shape`, and not the one `expected` for `param`."""
    which = _which(place, name)
    packed = "" if expected == param.shape else f", packed {tuple(expected)}"
    shapes = f"{role} of {which} has shape {tuple(shape)}, the parameter {tuple(param.shape)}{packed}"
    raise RuntimeError(f"AdamNX: {shapes}; {_REMEDIES[role]}")


@_disable_dynamo
def _refuse_device(
    role: str, place: int, name: Callable[[int], str] | None, tensor: Tensor, param: Tensor
) -> None:
    """Raises: a tensor is on another device than `param`."""
    devices = f"{role} of {_which(place, name)} is on {tensor.device}, the parameter on {param.device}"
    remedy = _REMEDIES[role] if role == "grad" else _MOVE_STATE
    raise RuntimeError(f"AdamNX: {devices}; {remedy}")


def _which(place: int, name: Callable[[int], str] | None) -> str:
    return f"parameter {place}" if name is None else name(place)


def wrapped(*columns: Sequence[Tensor]) -> bool:
    """Whether there are tensors whose memory is not their own: subclasses that wrap others, as torchao's."""
    if torch.compiler.is_compiling():
        return False
    plain = Tensor.__torch_dispatch__
    return any(
        kind.__torch_dispatch__ is not plain for column in columns for kind in {type(t) for t in column}
    )
