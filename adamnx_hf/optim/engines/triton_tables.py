"""The tables in which a launch of the Triton kernel finds tensors by their addresses.

What does not change from step to step is not sent to the device again. With `zero_grad(set_to_none=True)` at
most the addresses of the gradients are left.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamnx_hf.optim.engines import runtime
from adamnx_hf.optim.layout import Memo

__all__ = ["CAPTURES", "Contents", "Tables", "provide_tables"]

#: How many CUDA graphs can be captured one after the other, without a step outside of a graph in between.
CAPTURES = 16

#: Pinned memory is handed out in multiples of this many bytes.
_ALIGNMENT = 16


class Contents(NamedTuple):
    """The contents of tables besides the addresses of gradients: lists with an entry for each parameter."""

    columns: list[list[int]]
    """Columns of the table, see :data:`adamnx_hf.optim.engines.triton_kernel.COLUMNS`, up to elements."""
    places: Sequence[int]
    """Places in the lists of weights."""
    block: int
    """How many elements a chunk has."""

    def make_tables(self, grads: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the tables of parameters, gradients and chunks, on the host."""
        counts = (_make_int64(self.columns[-1]) + self.block - 1) // self.block
        firsts = (counts.cumsum(0) - counts).tolist()
        rows = torch.tensor([*self.columns, firsts, list(self.places)], dtype=torch.int64, device="cpu").t()
        indices = torch.arange(len(counts), dtype=torch.int32, device="cpu")
        return rows.contiguous(), _make_int64(grads), indices.repeat_interleave(counts)


@dataclasses.dataclass
class Tables:
    """Tables on the device that a launch looks up, with what they were made from."""

    contents: Contents
    #: The stream on which the tables were sent. A kernel on another stream might look before they arrive.
    stream: Any
    #: See `step_kernel` for these three.
    parameters: Tensor
    grads: Tensor
    chunks: Tensor
    #: The contents of `grads`.
    grad_addresses: list[int]
    #: Pinned memory that captures send new tables from.
    spare: Tensor | None = None

    def nbytes(self) -> int:
        """Returns the bytes of pinned memory that all tables together take."""
        return sum(_round_up(table.nbytes) for table in (self.parameters, self.grads, self.chunks))

    def provide(self) -> None:
        """Makes sure that there is pinned memory for :data:`CAPTURES` captures.

        The gradients of each may lie elsewhere; all tables are sent anew once at most.
        """
        if self.spare is None or len(self.spare) < self.nbytes():
            addresses = _round_up(self.grads.nbytes)
            self.spare = runtime.pin_memory(self.nbytes() + (CAPTURES - 1) * addresses)

    def take(self, size: int) -> Tensor:
        """Gives away `size` bytes of pinned memory, for good."""
        if self.spare is None or len(self.spare) < size:
            return runtime.pin_memory(size)  # torch may not have any left to give during a capture
        taken, self.spare = self.spare[:size], self.spare[size:]
        return taken


def provide_tables(
    contents: Contents, grads: list[int], kind: tuple[Any, ...], device: torch.device, memo: Memo
) -> Tables:
    """Returns the tables for a launch. Only what has changed since the last one is sent to the device.

    Args:
        contents: the contents of the tables.
        grads: addresses of the gradients.
        kind: the kind of the launch, which tells it from the other launches of a step.
        device: the device of the kernel.
        memo: a dict that is the same at each step.

    Raises:
        RuntimeError: a CUDA graph is captured, and there has been no such launch before.
    """
    stream, capturing = runtime.current_stream(device)
    kept: Tables | None = memo.get(kind)
    if capturing:
        return _provide_for_graph(kept, contents, grads, memo)
    if kept is None or (kept.contents, kept.stream) != (contents, stream):
        rows, addresses, chunks = (runtime.send(table, device) for table in contents.make_tables(grads))
        spare = None if kept is None else kept.spare
        kept = memo[kind] = Tables(contents, stream, rows, addresses, chunks, grads, spare)
    elif kept.grad_addresses != grads:
        sent = runtime.send(_make_int64(grads), device)
        kept = memo[kind] = dataclasses.replace(kept, grads=sent, grad_addresses=grads)
    if stream is not None:
        kept.provide()
    return kept


def _provide_for_graph(kept: Tables | None, contents: Contents, grads: list[int], memo: Memo) -> Tables:
    """Returns tables for a launch that is captured in a CUDA graph, which are kept for as long as `memo` is.

    Each replay reads the tables again. It also copies again, from the host's memory, those that were sent
    during the capture: the addresses of gradients that autograd made in the graph's own memory, say.
    """
    if kept is None:
        raise RuntimeError(runtime.STEP_FIRST)
    tables, host = kept, None
    if kept.contents != contents or kept.grad_addresses != grads:
        new = contents.make_tables(grads) if kept.contents != contents else (_make_int64(grads),)
        sizes = [_round_up(table.nbytes) for table in new]
        host = kept.take(sum(sizes))
        staged = [
            part[: table.nbytes].view(table.dtype).view(table.shape).copy_(table)
            for table, part in zip(new, host.split(sizes), strict=True)
        ]
        sent = [table.to(kept.grads.device, non_blocking=True, copy=True) for table in staged]
        rows, addresses, chunks = sent if len(sent) == 3 else (kept.parameters, *sent, kept.chunks)
        tables = Tables(contents, kept.stream, rows, addresses, chunks, grads)
    memo.setdefault("captured", []).append((tables, host))
    return tables


def _round_up(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _make_int64(numbers: list[int]) -> Tensor:
    # This takes half the time of torch.tensor.
    return torch.frombuffer(array("q", numbers), dtype=torch.int64)
