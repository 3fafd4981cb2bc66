import contextlib
import dataclasses
import importlib

import numpy as np
import pytest
import torch
import torch._dynamo

from adamnx_hf.optim.engines import choose_engine, runtime, triton
from adamnx_hf.optim.engines.contract import Case


def replace_language_once_a_launch(interpreter, patch):
    """Functions that a kernel calls have all of triton.language replaced anew, at each call: once will do."""
    launch, call = interpreter.GridExecutor.__call__, interpreter.InterpretedFunction.__call__
    replaced = set()

    def launch_anew(self, *args, **kwargs):
        replaced.clear()
        replaced.add(id(self.fn.__globals__))
        return launch(self, *args, **kwargs)

    def call_as_it_is(self, *args, **kwargs):
        module = id(self.fn.__globals__)
        if module in replaced:
            return self.rewrite()(*args, **kwargs)
        replaced.add(module)
        return call(self, *args, **kwargs)

    patch.setattr(interpreter.GridExecutor, "__call__", launch_anew)
    patch.setattr(interpreter.InterpretedFunction, "__call__", call_as_it_is)


@pytest.fixture
def interpreted(monkeypatch):
    """Has Triton interpret the kernel on the CPU, as TRITON_INTERPRET=1 does from the start of a process."""
    if torch.cuda.is_available():  # older Tritons cannot do both in one process
        pytest.skip("there is a card, which runs the kernel itself")
    interpreter = importlib.import_module("triton.runtime.interpreter")
    kernel = importlib.import_module("adamnx_hf.optim.engines.triton_kernel")
    language = importlib.import_module("triton.language")
    standard = importlib.import_module("triton.language.standard")  # of functions that are kernels' own
    convert = interpreter._convert_float

    def convert_rounding(values, source, target, mode):
        """The interpreter cuts float32 off where it makes bfloat16 of it; cards round, as torch does."""
        if str(source) == "fp32" and str(target) == "bf16":
            rounded = torch.from_numpy(np.array(values)).to(torch.bfloat16)
            return rounded.view(torch.uint16).numpy()
        return convert(values, source, target, mode)

    builder = interpreter.interpreter_builder
    with monkeypatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", convert_rounding)
        # Integers that overflow would be looked for at length, and found for nobody: that takes debug=True.
        assert not builder.options.debug
        patch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
        replace_language_once_a_launch(interpreter, patch)
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(runtime, "INTERPRETED", True)
        importlib.reload(standard)
        for name in ("cdiv", "max", "sum"):
            patch.setattr(language, name, getattr(standard, name))
        importlib.reload(kernel)
        yield kernel
    importlib.reload(standard)
    importlib.reload(kernel)


@pytest.fixture
def device(request):
    """Where the kernel runs: on a card, and where there is none on the CPU, interpreted."""
    if torch.cuda.is_available():
        return "cuda"
    request.getfixturevalue("interpreted")
    return "cpu"


@pytest.fixture
def tried():
    """Has the kernel tried out before, which on a card is a launch of its own, once in a process."""
    if torch.cuda.is_available():
        triton._why_not_compiled()


@pytest.fixture
def untried():
    """Has the kernel not tried out yet, as in a fresh process; before the test and after it."""
    triton._why_not_compiled.cache_clear()
    yield
    triton._why_not_compiled.cache_clear()


@pytest.fixture
def chosen():
    """The name of the engine for float32 tensors on CUDA: a function of flags and of what else a case has."""

    def choose(foreach=None, fused=None, **situation):
        case = Case("cuda", torch.float32, **situation)
        return choose_engine(case, foreach=foreach, fused=fused).__name__.rpartition(".")[2]

    return choose


@pytest.fixture
def fresh_dynamo():
    """Recompilations count by code, for the whole process: at the limit nothing is compiled any more."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def lacks_the_kernel(request):
    """Whether a test's id says triton, but not that its tensors are on a card."""
    parts = request.node.callspec.id.split("-") if hasattr(request.node, "callspec") else []
    return "cuda" not in parts and any(part.split(" ")[0] == "triton" for part in parts)


@pytest.fixture
def on_a_card(request):
    """Has tests whose id says triton make their tensors on a card, where there is one.

    Random numbers that are to be the same on the CPU need `device="cpu"`, as generators are a device's own.
    """
    moved = lacks_the_kernel(request) and torch.cuda.is_available()
    with torch.device("cuda") if moved else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def interpret_where_asked(request):
    """Tests whose id says triton use the kernel on the CPU too, but for those that move to a card."""
    moved = torch.cuda.is_available() and "on_a_card" in request.fixturenames
    if lacks_the_kernel(request) and not moved:
        request.getfixturevalue("interpreted")
