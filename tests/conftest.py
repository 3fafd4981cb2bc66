import os
import subprocess
import sys

import pytest

# Nothing here may reach for the Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


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
