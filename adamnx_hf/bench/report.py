"""A benchmark from its plan to its report."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.bench import charts, timing
from adamnx_hf.bench.device import measure_copy
from adamnx_hf.bench.plan import Plan
from adamnx_hf.bench.tables import format_report
from adamnx_hf.common.files import write_json, write_text
from adamnx_hf.runs.environment import describe_environment

__all__ = ["describe_machine", "draw_report", "find_kernel", "run_plan"]


def run_plan(plan: Plan, command: str, outputs: Sequence[Path] = ()) -> dict[str, Any]:
    """Measures what `plan` asks for.

    Args:
        plan: the cases and contestants.
        command: the command line, for the report.
        outputs: files for JSON, Markdown and, with tuning, a line for each measurement. The first two are
            written after each case, so that they hold what is done when the process ends too early.

    Returns:
        The report: the content of the JSON.
    """
    kernel, reason = find_kernel(plan.device)
    report: dict[str, Any] = {
        "command": command,
        "environment": describe_machine(plan.device),
        "kernel": kernel,
        "why_not_triton": reason,
    }
    if plan.device == "cuda":
        report["copy_gb_per_s"] = measure_copy()
    report |= {"complete": False, "results": [], "left_out": list(plan.left_out)}
    if outputs:
        outputs[0].parent.mkdir(parents=True, exist_ok=True)
    if plan.tune:
        from adamnx_hf.bench.tuning import tune

        results = tune(plan, report.get("copy_gb_per_s"), *outputs[2:])
    else:
        results = timing.compare_contestants(plan, report.get("copy_gb_per_s"))
    for result in results:
        report["results"].append(result)
        _write(report, plan, outputs)
    report["complete"] = not any(result.get("stopped") for result in report["results"])
    _write(report, plan, outputs)
    return report


def draw_report(report: Mapping[str, Any], plan: Plan, path: Path) -> None:
    """Draws the report's times or, if the plan is about memory, its bytes; nothing if it has none."""
    draw = charts.draw_memory if plan.memory else charts.draw_times
    draw(report, _title(report, plan), path)


def _write(report: Mapping[str, Any], plan: Plan, outputs: Sequence[Path]) -> None:
    if outputs:
        write_json(outputs[0], report)
        facts = [f"- {key}: {value}" for key, value in report["environment"].items()]
        text = format_report(report, memory=plan.memory)
        write_text(outputs[1], "\n".join([f"# {_title(report, plan)}", "", text, "", *facts, ""]))


def _title(report: Mapping[str, Any], plan: Plan) -> str:
    what = "Memory of optimizers" if plan.memory else "Tuning of a step" if plan.tune else "Time of a step"
    return f"{what}: {report['environment'].get('card') or report['environment']['processor']}"


def find_kernel(device: str) -> tuple[str, str | None]:
    """Returns the engine that serves AdamNX on `device`, and why that is not our own kernel, if it is not."""
    import torch

    from adamnx_hf.optim.engines import ENGINES, choose_engine
    from adamnx_hf.optim.engines.contract import Case

    case = Case(device, torch.float32)
    engine = choose_engine(case, foreach=None, fused=None)
    name = next(name for name, known in ENGINES.items() if known is engine)
    reason = ENGINES["triton"].why_not(case)
    return name, None if name == "triton" else reason


def describe_machine(device: str) -> dict[str, str]:
    """Returns versions and hardware, as the report names them."""
    import torch

    known = describe_environment()
    facts = {
        # A copy of the tree, on another machine say, has no checkout that would tell the commit.
        "adamnx-hf": f"{known['adamnx-hf']} (commit "
        f"{os.environ.get('GIT_COMMIT') or known['commit'] or 'unknown'})",
        "torch": torch.__version__,
        "python": known["python"],
        "processor": f"{known['processor']}, {known['torch_threads']} threads",
    }
    if device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        facts |= {
            "card": f"{known['gpus'][0]}, {memory:.0f} GiB",
            "cuda": str(known["cuda"] or torch.version.hip),
        }
        if driver := _read_driver_version():
            facts["driver"] = driver
    for package in ("triton", "torch-optimi", "torchao", "bitsandbytes"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[package] = importlib.metadata.version(package)
    return facts


def _read_driver_version() -> str | None:
    """Returns the version of NVIDIA's driver, which nvidia-smi tells; None where that is missing."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return lines[0] if lines else None
