"""Recipes' runs are ended at random moments through the command line, and always end with the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forks import lean

pytest.importorskip("torchvision")


def ended(folder, plan):
    if not hasattr(os, "fork"):
        pytest.skip("forks, to be fast")
    environment = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_DATASETS_CACHE": str(folder)}
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("crash_recipe.py")), str(folder), json.dumps(plan)],
        env={**lean(), **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr[-6000:]
    result = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith('{"seed"')))
    assert result["ended"] == {way: count for way, count in plan.items() if way != "jumps"}, result
    assert result["runs"] >= 1 and result["same"] == result["runs"], result
    return result


def test_killed_runs_end_with_the_same_bits(tmp_path):
    ended(tmp_path, {"kill": 2, "kill in a save": 2})


@pytest.mark.slow
def test_whatever_ends_a_run_it_goes_on_to_the_same_bits(tmp_path):
    """Kills and signals, in a save or not, while the clock jumps by up to a day, forward and back."""
    signals = ("SIGTERM", "SIGINT", "SIGINT twice")
    plan = {"kill": 8, "kill in a save": 8}
    plan |= {way: 3 for signal in signals for way in (signal, f"{signal} in a save")}
    result = ended(tmp_path, plan | {"jumps": True})
    assert result["incomplete"] >= 3, result  # kills that a save was cut short by
    assert result["resumed"] >= 10, result
