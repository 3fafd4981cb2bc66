"""Names of a package that are imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["import_on_access"]


def import_on_access(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a package whose names live in modules that are slow to import.

    Args:
        package: the package's `__name__`.
        homes: the module that each name lives in, seen from the package.

    Examples:
        >>> __getattr__ = import_on_access(__name__, {"AdaX": "adax"})
    """

    def get(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
