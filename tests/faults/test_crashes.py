"""Training is killed (SIGKILL) at random moments, 28 times in all, and always ends with the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forks import lean

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By mode, of one process that has killed both."""
    if not hasattr(os, "fork"):
        pytest.skip("forks, to be fast")
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("crash.py")), str(tmp_path_factory.mktemp("crash"))],
        env={**lean(), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    return {result["mode"]: result for result in map(json.loads, run.stdout.splitlines()[-2:])}


@pytest.mark.parametrize("mode", ["trainer", "accelerate_loop"])
def test_killed_runs_end_with_the_same_bits(results, mode):
    result = results[mode]
    assert result["kills"] == 14, result
    assert result["in_save"] >= 3, result  # every second kill is meant to be
    assert result["resumed"] >= 3, result
    assert result["runs"] >= 1, result
    assert result["same"] == result["runs"], result
