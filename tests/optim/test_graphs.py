"""CUDA graphs: what a capture may not do, emulated without a card.

A capture records launches and carries none out. It can neither wait nor take pinned memory from the system.
"""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adamnx_hf import AdamNX
from adamnx_hf.optim import clipping
from adamnx_hf.optim.engines import runtime, triton_tables
from adamnx_hf.optim.engines import triton as engine

pytest.importorskip("triton")
STEP_FIRST = "have not been stepped yet cannot be captured in a CUDA graph. Run a few whole training steps"


class Stream:
    """The current stream, as the engine sees it."""

    def __init__(self):
        self.capturing, self.pinned = False, []

    def pin(self, size):
        """Pinned memory, of which there is none to be had during a capture."""
        assert not self.capturing, "pinned memory was asked for during a capture"
        self.pinned.append(size)
        return torch.empty(size, dtype=torch.uint8)


@pytest.fixture
def stream(interpreted, monkeypatch):
    stream = Stream()
    monkeypatch.setattr(runtime, "current_stream", lambda device: ("a stream", stream.capturing))
    monkeypatch.setattr(runtime, "pin_memory", stream.pin)
    monkeypatch.setattr(runtime, "is_capturing", lambda: stream.capturing)
    return stream


def give_gradients(*optimizers, seed):
    torch.manual_seed(seed)
    kept = [param.grad for o in optimizers for param in o.param_groups[0]["params"]]
    for params in zip(*(o.param_groups[0]["params"] for o in optimizers), strict=True):
        grad = torch.randn_like(params[0])
        for param in params:
            param.grad = grad.clone()
    return kept  # so that new gradients lie elsewhere


def twins(**options):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(size)) for size in (1030, 5)]
    return AdamNX(copy.deepcopy(params), fused=True, **options), AdamNX(params, foreach=False, **options)


def check_equal(kernel, reference):
    for a, b in zip(kernel.param_groups[0]["params"], reference.param_groups[0]["params"], strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-6)
        for key, value in kernel.state[a].items():
            assert_close(value, reference.state[b][key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flags", [{"fused": True}, {"foreach": True}, {"foreach": False}, {}])
def test_a_refused_capture_leaves_no_state(flags, stream):
    param = nn.Parameter(torch.ones(3))
    refused = AdamNX([param], lr=0.5, weight_decay=0.0, **flags)
    param.grad = torch.ones(3)
    stream.capturing = True
    with pytest.raises(RuntimeError, match=STEP_FIRST):
        refused.step()
    assert not refused.state
    assert torch.equal(param, torch.ones(3))
    stream.capturing = False
    refused.step()
    assert_close(param.detach(), torch.full((3,), 0.5))
    stream.capturing = True
    refused.step()  # now it can be captured


def test_a_residual_is_not_made_during_a_capture(stream):
    param = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    kahan = AdamNX([param])
    param.grad = torch.ones_like(param)
    kahan.step()
    kahan.param_groups[0]["param_rounding"] = "kahan"
    stream.capturing = True
    with pytest.raises(RuntimeError, match=STEP_FIRST):
        kahan.step()
    assert "param_residual" not in kahan.state[param]


def test_captures_that_follow_one_another_need_no_pinned_memory(stream):
    kernel, reference = twins(max_grad_norm=1.0)
    kept = []
    for step in range(2 + triton_tables.CAPTURES):
        stream.capturing = step >= 2
        kept.append(give_gradients(kernel, reference, seed=step))
        kernel.step()
        reference.step()
        check_equal(kernel, reference)
    assert len(stream.pinned) == 3  # for the kernel's step, and for the norm of each of the two
    stream.capturing = False
    for step in range(3):
        kept.append(give_gradients(kernel, reference, seed=100 + step))
        kernel.step()
        reference.step()
    check_equal(kernel, reference)
    assert len(stream.pinned) == 6  # what the captures have taken is theirs for good


def test_tables_of_captures_do_not_overlap(stream):
    kernel, reference = twins()
    kept = []
    for step in range(5):
        stream.capturing = step >= 1
        kept.append(give_gradients(kernel, reference, seed=step))
        kernel.step()
    captured = kernel._memos[0][0][0]["captured"]
    addresses = [host.data_ptr() for _, host in captured]
    ends = [host.data_ptr() + len(host) for _, host in captured]
    assert len(captured) == 4
    assert all(end <= start for end, start in zip(ends, addresses[1:], strict=False))
    assert all(address % 16 == addresses[0] % 16 for address in addresses)
    for (tables, host), grads in zip(captured, [*kept[2:], None], strict=True):
        sent = host[: tables.grads.nbytes].view(torch.int64)
        assert torch.equal(sent, tables.grads)
        if grads is not None:
            mine = [grad.data_ptr() for grad in grads[: len(sent)]]
            assert sent.tolist() == mine


def test_a_norm_that_is_new_to_a_capture_is_torchs(stream):
    kernel, reference = twins()
    kept = [give_gradients(kernel, reference, seed=0)]
    kernel.step()
    reference.step()
    for clipped in (kernel, reference):
        clipped.max_grad_norm = 0.5
    stream.capturing = True
    kept.append(give_gradients(kernel, reference, seed=1))
    kernel.step()
    reference.step()
    check_equal(kernel, reference)
    assert_close(kernel.grad_norm, reference.grad_norm)


# ---------------------------------------------------------------- the trial of the kernel


def test_the_kernel_is_not_tried_during_a_capture(untried, chosen, monkeypatch):
    tried, captured = [], {"host_schedule": False}

    def step(*tensors, **options):
        if runtime.is_capturing():
            raise RuntimeError(runtime.STEP_FIRST)
        tried.append(tensors)

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: zeros(*args))  # there may be no card
    monkeypatch.setattr(engine, "step_", step)
    monkeypatch.setattr(runtime, "is_capturing", lambda: True)
    assert chosen(**captured) == "triton"
    assert not tried and engine._why_not_compiled.cache_info().currsize == 0
    monkeypatch.setattr(runtime, "is_capturing", lambda: False)
    assert chosen(**captured) == chosen(fused=True, **captured) == "triton"
    assert len(tried) == 1
    monkeypatch.setattr(runtime, "is_capturing", lambda: True)
    assert chosen(**captured) == "triton"


def test_a_capture_without_triton_goes_to_another_engine(untried, chosen, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(runtime, "is_capturing", lambda: True)
    assert chosen(host_schedule=False) == "foreach"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_a_process_that_captures_first_can_step_afterwards():
    program = """
import torch
from adamnx_hf import AdamNX
from adamnx_hf.optim.engines import triton
param = torch.nn.Parameter(torch.ones(3, device="cuda"))
param.grad = torch.ones(3, device="cuda")
optimizer = AdamNX([param], lr=0.5, weight_decay=0.0, capturable=True)
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
try:
    with torch.cuda.graph(graph):
        optimizer.step()
except RuntimeError as error:
    print(str(error)[:69], len(optimizer.state))
optimizer.step()
print(triton._why_not_compiled(), param.tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ})
    assert done.stdout.splitlines() == [
        "AdamNX: a step of parameters that have not been stepped yet cannot be 0",
        "None [0.5, 0.5, 0.5]",
    ], done.stderr


# ---------------------------------------------------------------- the norm


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, engine.NORM_BLOCK - 1, engine.NORM_BLOCK, engine.NORM_BLOCK + 1, 3 * engine.NORM_BLOCK + 7, 0]


@pytest.fixture
def norms(monkeypatch):
    """Counts the norms that the kernel computes."""
    counted = []
    norm = engine.compute_norm
    monkeypatch.setattr(engine, "compute_norm", lambda *args: (counted.append(len(args[0])), norm(*args))[1])
    return counted


def exact_norm(grads):
    return torch.stack([grad.detach().cpu().double().norm() for grad in grads]).norm().float()


@pytest.mark.parametrize("dtypes", [*([dtype] for dtype in DTYPES), DTYPES], ids=[*map(str, DTYPES), "mixed"])
def test_norm_of_sizes_around_a_chunk(dtypes, device, norms):
    torch.manual_seed(0)
    grads = [torch.randn(n, device=device).to(dtype) for n in SIZES for dtype in dtypes]
    found = clipping.compute_total_norm(grads)
    assert found.dtype == torch.float32 and found.shape == ()
    assert_close(found.cpu(), exact_norm(grads), rtol=1e-6, atol=0)
    assert norms == [len(grads)]


def test_norm_of_layouts(device, norms):
    torch.manual_seed(0)
    storage = torch.randn(9000, device=device)
    grads = [
        storage[1:5001],
        storage[:0],
        torch.randn(2, 3, 4, 4, device=device).to(memory_format=torch.channels_last),
        torch.randn(8, 6, device=device)[:, ::2],
        torch.ones(1, device=device).expand(7),
        torch._neg_view(torch.randn(5, device=device)),
        torch.randn((), device=device),
    ]
    memo = {}
    for _ in range(2):
        assert_close(clipping.compute_total_norm(grads, memo).cpu(), exact_norm(grads), rtol=1e-6, atol=0)
    assert norms == [len(grads)] * 2


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("place", [0, engine.NORM_BLOCK, -1])
def test_norm_of_what_is_not_finite(value, place, device, norms):
    grad = torch.ones(2 * engine.NORM_BLOCK + 3, device=device)
    grad[place] = value
    found = clipping.compute_total_norm([torch.ones(5, device=device), grad])
    assert_close(found.cpu(), torch.tensor(value), equal_nan=True)
    assert norms


def test_norms_that_the_kernel_leaves_to_torch(interpreted, norms):
    torch.manual_seed(0)
    wide = [torch.randn(7, dtype=torch.float64), torch.randn(5)]
    assert_close(clipping.compute_total_norm(wide), torch.stack([g.double().norm() for g in wide]).norm())
    assert norms == [1]
    both = [torch.randn(4, dtype=torch.complex64)]
    assert_close(clipping.compute_total_norm(both), both[0].norm())
    assert norms == [1]


@pytest.fixture
def norm_untried():
    engine._why_no_norm_compiled.cache_clear()
    yield
    engine._why_no_norm_compiled.cache_clear()


def test_a_norm_that_does_not_compile_is_torchs(norm_untried, chosen, monkeypatch):
    def fail(*args):
        raise RuntimeError("out of resource: threads\nor so")

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: zeros(*args))  # there may be no card
    monkeypatch.setattr(engine, "compute_norm", fail)
    with pytest.warns(RuntimeWarning, match=r"for norms cannot be used \(RuntimeError: out of resource: thr"):
        assert "out of resource" in engine.why_no_norm("cuda")
    monkeypatch.setattr(engine, "why_not", lambda *args, **kwargs: None)
    monkeypatch.setattr(engine, "why_no_norm", lambda device: engine._why_no_norm_compiled())
    assert clipping.compute_total_norm([torch.tensor([3.0, 4.0])]) == 5.0


def test_the_norm_is_not_tried_during_a_capture(norm_untried, chosen, monkeypatch):
    monkeypatch.setattr(runtime, "is_capturing", lambda: True)
    assert "while a CUDA graph is captured" in engine.why_no_norm("cuda")
    assert engine._why_no_norm_compiled.cache_info().currsize == 0


def test_the_norm_is_the_same_each_time(device):
    torch.manual_seed(0)
    grads = [torch.randn(n, device=device) for n in (100_000, 33)]
    first = clipping.compute_total_norm(grads)
    assert all(torch.equal(clipping.compute_total_norm(grads), first) for _ in range(3))
