"""The machine and the versions that a run was made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["describe_environment"]

_PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "pytorch-optimizer",
    "torchmetrics",
    "numpy",
    "pillow",
)


def describe_environment() -> dict[str, Any]:
    """Returns versions, hardware and, in a checkout, the commit, for JSON."""
    import torch

    import adamnx_hf

    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "adamnx-hf": adamnx_hf.__version__,
        "commit": _find_commit(),
        "python": platform.python_version(),
        "packages": packages,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _find_processor(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }


def _find_commit() -> str | None:
    """Returns the commit of the checkout that this package runs from; elsewhere GIT_COMMIT, or None."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return os.environ.get("GIT_COMMIT")

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return f"{commit} with changes" if commit and git("status", "--porcelain", "-uno") else commit or None


def _find_processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    if found := re.search(r"^model name[^:\n]*:(.*)", text, re.MULTILINE):
        return found[1].strip()
    return platform.processor() or platform.machine()
