"""Batches of few elements: some parameters, or some rows of large ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from adamnx_hf.optim.formats import cut_rows, most_elements
from adamnx_hf.optim.layout import Columns, are_wrapped

__all__ = ["Batch", "cut"]


class Batch(NamedTuple):
    """The parameters at `places`, or of each the `rows`."""

    places: Any
    rows: Any = ()
    """An index for each parameter, `...` for all rows. Empty: all parameters are whole."""
    starts: Any = ()
    """How many of a parameter's elements come before its rows."""

    def of(self, columns: Columns) -> Columns:
        """Returns the part of `columns` that this batch has."""
        if not self.rows:
            return columns.pick(self.places)
        return Columns(
            *[
                [
                    tensors[place] if tensors[place] is None or rows is ... else tensors[place][rows]
                    for place, rows in zip(self.places, self.rows, strict=True)
                ]
                for tensors in columns.given()
            ]
        )


def cut(places: Sequence[int], columns: Columns, *, by_rows: bool = True) -> Iterator[Batch]:
    """Yields batches of few elements each, for parameters that are copied.

    A larger parameter is cut into batches of rows. If it cannot be cut, it is a batch by itself.

    Args:
        places: the places of the parameters.
        columns: the step's tensors.
        by_rows: whether parameters may be cut.
    """
    if not places:
        return
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or are_wrapped(*columns.four()):
        by_rows = False
    most = most_elements(columns.params[places[0]].device)
    batch, elements = Batch([], [], []), 0
    for place in places:
        param = columns.params[place]
        for rows, start, count in cut_rows(param, most) if by_rows else [(..., 0, param.numel())]:
            if batch.places and elements + count > most:
                yield batch
                batch, elements = Batch([], [], []), 0
            for column, entry in zip(batch, (place, rows, start), strict=True):
                column.append(entry)
            elements += count
    if batch.places:
        yield batch
