"""The contract of a format of the state, and two plain formats: tensors of floating-point numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from adamnx_hf.optim.formats.rounding import RandomBits, round_stochastically

__all__ = ["BFloat16", "StateFormat"]


class StateFormat:
    """A way to store the moments of a parameter. This one keeps numbers of a dtype; others derive from it.

    A format is known by its dtype, so each in :data:`adamnx_hf.optim.formats.FORMATS` has its own. The name
    is in checkpoints: a released name stands for its layout for good, and another layout takes another name,
    which older versions refuse.

    Args:
        dtype: the dtype of the tensors that hold the moments.
    """

    #: Whether `store` rounds stochastically. No gradient flows through that.
    narrow = False

    #: Whether the elements are codes, which `load` alone can read. Rows of the parameter are rows of these.
    packed = False

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def fits(self, param: Tensor) -> bool:
        """Returns whether moments of `param` can have this format. If not, float32 takes its place."""
        return True

    def shape(self, param: Tensor) -> torch.Size:
        """Returns the shape of a moment of `param`."""
        return param.shape

    def zeros(self, param: Tensor) -> Tensor:
        """Returns a new moment of `param` that stands for zeros; a DTensor if `param` is one."""
        return torch.zeros_like(param, dtype=self.dtype, memory_format=torch.preserve_format)

    def load(self, moment: Tensor, param: Tensor, role: str) -> Tensor:
        """Returns a moment's numbers, in the shape of `param`. Neither may be a DTensor.

        Args:
            moment: a moment in this format.
            param: the parameter, or the rows of it that `moment` has.
            role: `"exp_avg"` or `"exp_avg_sq"`.
        """
        return moment

    def store(self, moment: Tensor, values: Tensor, bits: RandomBits, role: str) -> None:
        """Writes `values` into a moment.

        Args:
            moment: a moment in this format, of any strides.
            values: contiguous floating-point numbers in the parameter's shape.
            bits: the random bits of the parameter.
            role: `"exp_avg"` or `"exp_avg_sq"`.
        """
        moment.copy_(values)


class BFloat16(StateFormat):
    """Moments in bfloat16, rounded stochastically: half the memory of float32."""

    narrow = True

    def store(self, moment: Tensor, values: Tensor, bits: RandomBits, role: str) -> None:
        """Writes `values`, each rounded to one of its two neighbours."""
        moment.copy_(round_stochastically(values.float(), bits.draw_half(values, role)))
