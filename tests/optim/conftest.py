import importlib

import pytest

from adamnx_hf.optim.engines import triton


@pytest.fixture
def interpreted(monkeypatch):
    """Has Triton interpret the kernel on the CPU, as TRITON_INTERPRET=1 does from the start of a process."""
    kernel = importlib.import_module("adamnx_hf.optim.engines.triton_kernel")
    with monkeypatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(triton, "INTERPRETED", True)
        importlib.reload(kernel)
        yield kernel
    importlib.reload(kernel)


@pytest.fixture(autouse=True)
def interpret_where_asked(request):
    """Tests whose id says triton use the kernel on the CPU too."""
    parts = request.node.callspec.id.split("-") if hasattr(request.node, "callspec") else []
    if "cuda" not in parts and any(part.split(" ")[0] == "triton" for part in parts):
        request.getfixturevalue("interpreted")
