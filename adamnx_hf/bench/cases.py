"""The parameters that are stepped, and the gradients they are stepped with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from adamnx_hf.bench.device import free_memory

if TYPE_CHECKING:
    import torch

__all__ = ["CASES", "TUNED", "Case", "allocate_parameters", "list_default_cases", "make_gradients"]

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """Parameters to step, all in one group."""

    what: str
    shapes: Callable[[], Sequence[Shape]]
    devices: tuple[str, ...]
    dtype: str = "float32"
    needs: str | None = None
    memory: bool = False
    """Whether the case takes part with `--memory`. On the CPU such a case takes part in nothing else."""
    gradients: str = "apart"
    """How the gradients are made, see :func:`make_gradients`."""
    default: bool = True
    """Whether the case takes part where `--cases` names none."""


def _llama(layers: int, hidden: int, intermediate: int, key_value: int, vocabulary: int) -> Sequence[Shape]:
    """Returns the parameters of a Llama whose output layer is its embedding."""
    attention = [(hidden, hidden), (key_value, hidden), (key_value, hidden), (hidden, hidden)]
    mlp = [(intermediate, hidden), (intermediate, hidden), (hidden, intermediate)]
    return [(vocabulary, hidden), *layers * [*attention, *mlp, (hidden,), (hidden,)], (hidden,)]


def _lora(layers: int, hidden: int, intermediate: int, rank: int) -> Sequence[Shape]:
    """Returns LoRA's two matrices for each of the seven linear layers of a Llama block."""
    linears = [*4 * [(hidden, hidden)], *2 * [(intermediate, hidden)], (hidden, intermediate)]
    return layers * [shape for out, in_ in linears for shape in ((rank, in_), (out, rank))]


def _torchvision(name: str) -> Sequence[Shape]:
    import torch
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=100)
    return [tuple(param.shape) for param in model.parameters()]


_LLAMA_1B = Case("Llama-3.2-1B", lambda: _llama(16, 2048, 8192, 512, 128_256), ("cuda",), memory=True)
_LLAMA_5M = Case("a small Llama", lambda: _llama(4, 256, 704, 256, 8192), ("cpu",), memory=True)
_TOY = Case(
    "four small tensors", lambda: [(5, 1030), (16, 64), (7,), ()], ("cpu",), memory=True, default=False
)


def _in_bfloat16(case: Case) -> Case:
    return dataclasses.replace(case, what=f"{case.what} in bfloat16", dtype="bfloat16")


#: The cases, by the name that `--cases` takes.
CASES: dict[str, Case] = {
    "llama-1b": _LLAMA_1B,
    "llama-1b-bf16": _in_bfloat16(_LLAMA_1B),
    "llama-5m": _LLAMA_5M,
    "llama-5m-bf16": _in_bfloat16(_LLAMA_5M),
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
    # Many times larger than a card's caches.
    "8x34m": Case("8 x (16384, 2048)", lambda: 8 * [(16_384, 2048)], ("cuda",), default=False),
    # For trying the command out, also where Triton's interpreter runs the kernel.
    "toy": _TOY,
    "toy-bf16": _in_bfloat16(_TOY),
    "toy-zero": Case(
        "four small tensors, gradients of 0", _TOY.shapes, ("cpu",), gradients="zero", default=False
    ),
    "toy-ddp": Case(
        "four small tensors, gradients off multiples of 16 bytes",
        _TOY.shapes,
        ("cpu",),
        gradients="misaligned",
        default=False,
    ),
}

#: The case that `--tune` takes where none is named, by device.
TUNED = {"cuda": "8x34m", "cpu": "toy"}


def list_default_cases(device: str, *, memory: bool) -> list[str]:
    """Returns the cases for `device` that take part where none is named, with or without `--memory`."""
    return [
        name
        for name, case in CASES.items()
        if case.default
        and device in case.devices
        and (case.memory if memory else device == "cuda" or not case.memory)
    ]


@contextlib.contextmanager
def allocate_parameters(case: Case, device: str) -> Iterator[list[torch.nn.Parameter]]:
    """Yields the case's parameters with gradients, and frees their memory afterwards."""
    import torch

    dtype = getattr(torch, case.dtype)
    params = [torch.nn.Parameter(torch.randn(s, device=device, dtype=dtype)) for s in case.shapes()]
    for param, grad in zip(params, make_gradients(params, case.gradients), strict=True):
        param.grad = grad
    try:
        yield params
    finally:
        del params
        free_memory(device)


def make_gradients(params: list[Any], how: str) -> list[torch.Tensor]:
    """Returns new gradients for `params`, of their shapes and dtype.

    Args:
        params: parameters on one device, of one dtype.
        how: `"apart"`: each is a random tensor of its own. `"zero"`: each is a tensor of zeros.
            `"misaligned"`: they are views into one random buffer, as in DistributedDataParallel's buckets,
            and none begins at a multiple of 16 bytes.
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
