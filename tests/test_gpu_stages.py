"""`.ci/gpu`: its stages at toy size, and what becomes of those that fail."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent


def gpu(out, *words, **environment):
    """What `bash .ci/gpu` returns and prints."""
    environment = {"OUT": str(out), "PYTHON": sys.executable, "TRITON_INTERPRET": "1", **environment}
    done = subprocess.run(
        ["bash", ROOT / ".ci" / "gpu", *words], capture_output=True, text=True, timeout=300,
        env=os.environ | environment,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def archived(out):
    with tarfile.open(out / "all.tgz") as archive:
        return {name.removeprefix("./") for name in archive.getnames()}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """A rehearsal of some stages, in which one ends at its limit."""
    out = tmp_path_factory.mktemp("rehearsal") / "new" / "results"
    stages = "machine check llama tune tests"  # check takes longer than its limit
    status, stdout, stderr = gpu(out, "--rehearse", STAGES=stages, LIMITS="check=2", REHEARSE_TUNE="4")
    return out, status, stdout, stderr


def test_results_are_few_files_and_all_in_one(rehearsal):
    out, *_ = rehearsal
    assert {path.name for path in out.iterdir()} == {
        "all.tgz", "summary.txt", "llama.md", "tune.jsonl"
    }  # fmt: skip
    logs = {f"logs/{name}.log" for name in ("machine", "check", "llama", "tune", "tests")}
    results = {"llama.json", "tune.json", "tune.jsonl", "stages.tsv", "summary.txt"}
    assert archived(out) >= logs | results


def test_the_table_comes_last(rehearsal):
    out, _, stdout, stderr = rehearsal
    summary = (out / "summary.txt").read_text()
    assert stdout.endswith(summary), stderr
    assert "toy: adamnx + clip" in summary


def test_what_ends_at_its_limit_loses_itself_alone(rehearsal):
    out, status, *_ = rehearsal
    summary = (out / "summary.txt").read_text()
    assert status == 1
    assert "PROBLEM stage check: ended at its limit of 2 s\n1 problems" in summary, summary
    for stage in ("machine", "llama", "tune", "tests"):
        assert any(line.split()[:2] == [stage, "ok"] for line in summary.splitlines()), summary


def test_when_all_is_well_the_status_is_0(tmp_path):
    status, stdout, stderr = gpu(tmp_path, "first", "--rehearse", STAGES="check")
    assert (status, stdout.splitlines()[-1]) == (0, "all is well"), stdout + stderr
    checks = json.loads((tmp_path / "check.json").read_text())
    assert all(check["ok"] for check in checks)
    assert f"checks: {len(checks)} passed, 0 failed" in stdout


def test_a_lost_context_stops_everything(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *check.py*) exit 3 ;; esac\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    out = tmp_path / "out"
    status, stdout, stderr = gpu(out, "--rehearse", PYTHON=str(python), STAGES="check llama tests")
    assert status == 3
    assert "gpu: stopped, for the card's context was lost in check" in stderr
    assert "PROBLEM stage check: failed, status 3\n1 problems" in stdout
    assert "logs/check.log" in archived(out) and "logs/llama.log" not in archived(out)


def test_a_kernel_that_is_not_ours_fails_the_visit(tmp_path):
    status, stdout, _ = gpu(tmp_path, "first", "--rehearse", STAGES="llama", TRITON_INTERPRET="0")
    assert status == 1
    assert "PROBLEM llama: AdamNX was served by aten, not by its own kernel" in stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_the_rehearsal_is_named(tmp_path):
    status, _, stderr = gpu(tmp_path)
    assert status == 1
    assert (
        "finds no torch with a CUDA card here; bash .ci/gpu --rehearse tries the stages without one" in stderr
    )


def test_stages_for_which_no_time_is_left_are_told(tmp_path):
    status, stdout, _ = gpu(tmp_path, "first", "3", "--rehearse", STAGES="machine llama")
    assert status == 1
    assert "PROBLEM stage machine: no time left\nPROBLEM stage llama: no time left" in stdout


def test_arguments_that_cannot_be_are_told_in_one_line(tmp_path):
    status, _, stderr = gpu(tmp_path, "third")
    assert status == 2
    assert (
        stderr
        == "gpu: unknown argument 'third'; choose of first, second, both, SECONDS, --rehearse, --help\n"
    )
    status, stdout, _ = gpu(tmp_path, "--help")
    assert status == 0 and "bash .ci/gpu [first|second|both] [SECONDS]" in stdout and "set -" not in stdout
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the summary


def summary(folder, *stages, check=None, **reports):
    """The status and the table of a visit that left these."""
    lines = ["\t".join(map(str, stage)) + "\n" for stage in stages]
    (folder / "stages.tsv").write_text("".join(lines))
    if check is not None:
        (folder / "check.json").write_text(json.dumps(check))
    for name, report in reports.items():
        (folder / f"{name}.json").write_text(report if isinstance(report, str) else json.dumps(report))
    command = [sys.executable, ROOT / ".ci" / "card" / "summary.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


ROW = {"optimizer": "adamnx", "ms": 12.5, "ratio": 0.9, "share_of_copy": 0.925}
LLAMA = {
    "kernel": "triton",
    "results": [{"case": "llama-1b", "parameters": 1, "optimizers": [ROW], "failed": []}],
}


def test_figures_of_the_benchmarks(tmp_path):
    status, text = summary(tmp_path, ("llama", 0, 20, 60), llama=LLAMA)
    assert status == 0, text
    assert ["llama", "llama-1b:", "adamnx", "12.500", "0.90", "92.5%"] in [
        line.split() for line in text.split("\n")
    ]


def test_a_kernel_that_is_not_ours_is_a_problem(tmp_path):
    report = LLAMA | {"kernel": "aten", "why_not_triton": "RuntimeError: no compiler"}
    status, text = summary(tmp_path, ("llama", 0, 20, 60), llama=report)
    assert status == 1
    assert (
        "PROBLEM llama: AdamNX was served by aten, not by its own kernel: RuntimeError: no compiler" in text
    )


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        (("llama", 124, 60, 60), "stage llama: ended at its limit of 60 s"),
        (("llama", 137, 65, 60), "stage llama: ended at its limit of 60 s"),
        (("llama", 2, 3, 60), "stage llama: failed, status 2"),
        (("llama", "no time left", 0, 4), "stage llama: no time left"),
    ],
)
def test_stages_that_fail_are_problems(stage, problem, tmp_path):
    status, text = summary(tmp_path, ("machine", 0, 1, 25), stage, llama="half of a re")
    assert status == 1
    assert f"PROBLEM {problem}\n1 problems" in text


def test_a_tool_that_is_missing_is_told_and_is_no_problem(tmp_path):
    status, text = summary(tmp_path, ("ncu", "left out: there is no ncu on this machine", 0, 0))
    assert status == 0
    assert "left out: there is no ncu on this machine" in text


def test_checks_and_optimizers_of_ours_that_fail_are_problems(tmp_path):
    check = [{"check": "a", "ok": True, "detail": ""}, {"check": "b", "ok": False, "detail": "1e-3"}]
    failed = ["adamnx_int8: RuntimeError: spills", "adamw_torchao_8bit: theirs"]
    report = {"kernel": "triton", "results": [LLAMA["results"][0] | {"failed": failed}]}
    status, text = summary(tmp_path, ("peers", 0, 9, 60), check=check, peers=report)
    assert status == 1
    assert "checks: 1 passed, 1 failed" in text
    assert (
        "PROBLEM check b: 1e-3\nPROBLEM peers, llama-1b: adamnx_int8: RuntimeError: spills\n2 problems"
        in text
    )


def test_nothing_is_a_problem_too(tmp_path):
    assert summary(tmp_path)[0] == 1
