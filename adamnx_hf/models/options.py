"""The options of a network that a recipe may change."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any

from adamnx_hf.common.errors import nearest

__all__ = ["check_options"]


def check_options(
    network: str, options: Iterable[str], make: Callable[..., Any], reserved: Collection[str] = ()
) -> None:
    """Checks that a network has every option.

    Args:
        network: the name of the network, for the message.
        options: names of options.
        make: takes the network's options as keywords.
        reserved: parameters of `make` that are not options.

    Raises:
        ValueError: the network lacks an option. The message names the nearest one.
    """
    reserved = {"self", "kwargs", *reserved}
    valid = [name for name in inspect.signature(make).parameters if name not in reserved]
    for option in options:
        if option not in valid:
            raise ValueError(f"architecture_options: {network} has no {option!r}{nearest(option, valid)}")
