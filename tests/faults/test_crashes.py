"""Training is killed (SIGKILL) at random moments, 28 times in all, and always ends with the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, to be fast")
@pytest.mark.parametrize("mode", ["trainer", "accelerate_loop"])
def test_killed_runs_end_with_the_same_bits(tmp_path, mode):
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("crash.py")), mode, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["kills"] == 14, result
    assert result["in_save"] >= 3, result  # every second kill is meant to be
    assert result["resumed"] >= 3, result
    assert result["runs"] >= 1, result
    assert result["same"] == result["runs"], (result, run.stderr)
