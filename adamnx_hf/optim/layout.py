"""The tensors of a step: whether their shapes fit, and how they lie in memory, known before one is changed.

A step has thousands of tensors. If all are as they were at the step before, none is asked anything again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.utils.weak import WeakTensorKeyDictionary

from adamnx_hf.optim.formats import find_format

try:  # torch's own, and not public: without these guards everything is asked at every step
    from torch._C._dynamo.guards import TensorGuards
except ImportError:
    TensorGuards = None  # type: ignore[assignment, misc]

__all__ = [
    "ROLES",
    "Columns",
    "Layout",
    "Memo",
    "are_wrapped",
    "check_tensors",
    "find_dtensors",
    "is_dense",
    "look_at",
    "pick",
]

#: A dict that a caller keeps between the steps of the same parameters. No tensor of the caller's is in it.
Memo = dict[Any, Any]

#: The role of a tensor of each of the :class:`Columns`.
ROLES = ("param", "grad", "exp_avg", "exp_avg_sq", "param_residual")

_MEMORY_FORMATS = {4: (torch.channels_last,), 5: (torch.channels_last_3d,)}

_NEW_STATE = "a parameter that is given another shape needs a new state: del optimizer.state[param]"
_MOVE_STATE = "optimizer.load_state_dict(optimizer.state_dict()) moves the state to the parameters"
_NEW_GRADIENTS = "zero_grad(), then compute the gradients anew"

# The parameter's shape for each packed moment, whose own shape does not tell it: rows are filled up.
_PACKED_FOR = WeakTensorKeyDictionary()


def pick(items: Any, places: Sequence[int]) -> Any:
    """Returns the `items` at `places`; the list itself where that is all of them."""
    return items if len(places) == len(items) else [items[i] for i in places]


class Columns(NamedTuple):
    """The tensors of a step in lists that have one entry for each parameter."""

    params: list[Any]
    grads: list[Any]
    exp_avgs: list[Any]
    exp_avg_sqs: list[Any]
    residuals: list[Any] | None = None
    """The parts that rounding cut off bfloat16 parameters, None for others. None: there are no such parts."""

    def four(self) -> list[list[Any]]:
        """Returns the lists that every engine works on: all but the residuals."""
        return [self.params, self.grads, self.exp_avgs, self.exp_avg_sqs]

    def given(self) -> list[list[Any]]:
        """Returns the lists that there are, in the order of :data:`ROLES`."""
        return self.four() if self.residuals is None else [*self.four(), self.residuals]

    def pick(self, places: Sequence[int]) -> Columns:
        """Returns the columns of the parameters at `places`."""
        return Columns(*[pick(column, places) for column in self.given()])


class Layout(NamedTuple):
    """Facts about all tensors of a step together."""

    dtypes: list[set[torch.dtype]]
    """The dtypes found among params, grads, exp_avgs and exp_avg_sqs, a set for each."""
    numels: list[int]
    """How many elements each parameter has. Do not write to this list."""
    devices: set[torch.device]
    """The devices of the parameters."""
    contiguous: bool
    """Whether all tensors are contiguous."""
    wrapped: bool
    """Whether some tensors wrap others, see :func:`are_wrapped`."""

    @classmethod
    def read(cls, columns: Columns) -> Layout:
        """Returns the layout of `columns`; residuals do not count."""
        # Comprehensions, not map(): Dynamo has to trace this.
        lists = columns.four()
        return cls(
            [{tensor.dtype for tensor in tensors} for tensors in lists],
            [param.numel() for param in columns.params],
            {param.device for param in columns.params},
            all(False not in [tensor.is_contiguous() for tensor in tensors] for tensors in lists),
            are_wrapped(*lists),
        )


def look_at(columns: Columns, memo: Memo | None = None, name: Callable[[int], str] | None = None) -> Layout:
    """Checks that the shapes and devices of a step's tensors fit, and returns their layout.

    Args:
        columns: the step's tensors.
        memo: the same dict at each step; None if there is one step only.
        name: gives the name of the parameter at a place. Default: the place.

    Raises:
        RuntimeError: a tensor has another shape than its parameter, or is on another device; sparse
            gradients.
        ValueError: the lists are of different lengths.
    """
    if torch.compiler.is_compiling():  # what Dynamo compiles is for these very shapes
        check_tensors(columns, name)
        return Layout.read(columns)
    lists, gaps = columns.given(), []
    if columns.residuals is not None:
        gaps = [place for place, residual in enumerate(columns.residuals) if residual is None]
        lists[-1] = [residual for residual in columns.residuals if residual is not None]
    # Guards compare the dtypes, devices, shapes and strides of a column with what they were, at once.
    sizes, guards, layout = (memo or {}).get("layout", (None, [], None))
    if sizes == [*map(len, lists), gaps] and all(
        guard.check(*tensors) for guard, tensors in zip(guards, lists, strict=True)
    ):
        return layout
    check_tensors(columns, name)
    layout = Layout.read(columns)
    if memo is not None and TensorGuards is not None:
        everything_static: dict[str, Any] = {"dynamic_dims_sizes": None, "dynamic_dims_strides": None}
        guards = [TensorGuards(*tensors, **everything_static) for tensors in lists]
        memo["layout"] = [*map(len, lists), gaps], guards, layout
    return layout


def check_tensors(columns: Columns, name: Callable[[int], str] | None = None) -> None:
    """Raises where tensors do not fit; :func:`look_at` has the same arguments and errors.

    Kernels walk memory by the parameter's shape, and some of torch's do not check other shapes. Any tensor
    but a parameter may be None.
    """
    lists = columns.given()
    lengths = [len(tensors) for tensors in lists]
    if len(set(lengths)) > 1:
        found = ", ".join(f"{length} of {role}" for role, length in zip(ROLES, lengths, strict=False))
        raise ValueError(f"AdamNX: lists of different lengths: {found}; each has one tensor for a parameter")
    if True in [grad is not None and grad.is_sparse for grad in columns.grads]:
        raise RuntimeError(
            "AdamNX does not support sparse gradients; use dense ones, as of torch.nn.Embedding(sparse=False)"
        )
    for i in range(1, len(lists)):  # no zip(strict=...), which Dynamo of torch 2.8 does not trace
        role = ROLES[i]
        for place, tensor in enumerate(lists[i]):
            if tensor is None:
                continue
            param = columns.params[place]
            shape, expected = tensor.shape, param.shape
            if role.startswith("exp_avg") and find_format(tensor.dtype).packed:
                expected = find_format(tensor.dtype).shape(param)
                if shape == expected and not torch.compiler.is_compiling():
                    shape, expected = _PACKED_FOR.setdefault(tensor, param.shape), param.shape
            if shape != expected or tensor.device != param.device:
                _refuse(role, place, name, tensor, param, shape, expected)


@_disable_dynamo  # older ones trip over what the error says
def _refuse(
    role: str,
    place: int,
    name: Callable[[int], str] | None,
    tensor: Tensor,
    param: Tensor,
    shape: torch.Size,
    expected: torch.Size,
) -> None:
    """Raises the error of a tensor whose `shape` is not the one `expected`, or that is on another device."""
    if shape != expected:
        packed = "" if expected == param.shape else f", packed {tuple(expected)}"
        difference = f"has shape {tuple(shape)}, the parameter {tuple(param.shape)}{packed}"
        remedy = _NEW_STATE
    else:
        difference = f"is on {tensor.device}, the parameter on {param.device}"
        remedy = _MOVE_STATE
    which = f"parameter {place}" if name is None else name(place)
    raise RuntimeError(
        f"AdamNX: {role} of {which} {difference}; {_NEW_GRADIENTS if role == 'grad' else remedy}"
    )


def are_wrapped(*columns: Sequence[Tensor]) -> bool:
    """Returns whether there are tensors that wrap others and have no memory of their own, as torchao's."""
    if torch.compiler.is_compiling():
        return False
    plain = Tensor.__torch_dispatch__
    return any(
        kind.__torch_dispatch__ is not plain for column in columns for kind in {type(t) for t in column}
    )


def find_dtensors(tensors: list[Any]) -> Any:
    """Returns the module torch.distributed.tensor if there are DTensors among `tensors`, else None."""
    # Whoever has a DTensor has imported its module.
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or not any(issubclass(kind, module.DTensor) for kind in {type(t) for t in tensors}):
        return None
    return module


def is_dense(*tensors: Tensor) -> bool:
    """Returns whether the elements of `tensors` fill memory without gaps, all in the same format."""
    return any(
        all(t.is_contiguous(memory_format=memory_format) for t in tensors)
        for memory_format in (torch.contiguous_format, *_MEMORY_FORMATS.get(tensors[0].ndim, ()))
    )
