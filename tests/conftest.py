import os
import subprocess
import sys

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker to a core: more threads would only get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing here may reach for the Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def precision_as_it_was():
    """Transformers 4.57 leaves bf16 in the environment, for all the TrainingArguments that come later."""
    before = {key: value for key, value in os.environ.items() if key.startswith("ACCELERATE_")}
    yield
    for key in [key for key in os.environ if key.startswith("ACCELERATE_")]:
        del os.environ[key]
    os.environ.update(before)


@pytest.fixture
def run_python(tmp_path):
    """Runs code in an interpreter of its own, for what depends on import order or patches globally."""

    def run(code: str, expect: int = 0) -> str:
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == expect, result.stderr
        return result.stdout + result.stderr

    return run
