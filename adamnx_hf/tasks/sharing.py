"""Decoded images, which the runs of a comparison share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

__all__ = ["decode_once", "share_decoded"]

_T = TypeVar("_T")

#: The images that were decoded within :func:`share_decoded`; None outside of it.
_DECODED: dict[Any, Any] | None = None


@contextlib.contextmanager
def share_decoded() -> Iterator[None]:
    """Makes runs within it decode the same rows once: they keep them in memory until it ends."""
    global _DECODED
    before, _DECODED = _DECODED, {} if _DECODED is None else _DECODED
    try:
        yield
    finally:
        _DECODED = before


def decode_once(decode: Callable[[], _T], data: Any, split: str, *settings: Any) -> _T:
    """Returns what `decode` returns, or within :func:`share_decoded` what it returned for the same rows.

    Args:
        decode: decodes all rows. Nobody may write to what it returns.
        data: the `datasets` data set of the rows, whose fingerprint tells equal ones.
        split: the name of their split. Fingerprints that users write themselves may be those of two splits.
        settings: hashable values that `decode` depends on.
    """
    if _DECODED is None:
        return decode()
    key = (data._fingerprint, split, *settings)
    if key not in _DECODED:
        _DECODED[key] = decode()
    return _DECODED[key]
