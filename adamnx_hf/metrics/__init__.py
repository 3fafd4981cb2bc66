"""Metrics as `evaluate` modules: `adamnx_hf.metrics.load(name)` loads one from the package, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["load"]


def load(name: str, **kwargs: Any) -> Any:
    """Loads the `evaluate.EvaluationModule` in the folder `name` beside this file.

    Each folder can be pushed to the Hub as it is, and then loads as `evaluate.load("user/name")`.

    Args:
        name: of the module.
        kwargs: passed to `evaluate.load`; by default predictions are kept in memory.

    Raises:
        ValueError: there is no such module.
    """
    folder = Path(__file__).parent / name
    script = folder / f"{name}.py"
    if not script.is_file():
        known = sorted(path.parent.name for path in Path(__file__).parent.glob("*/*.py"))
        raise ValueError(f"metric {name!r} is not known; choose one of {', '.join(known)}")
    import evaluate

    return evaluate.load(str(script), **{"keep_in_memory": True, **kwargs})
