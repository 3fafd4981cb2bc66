"""The Triton kernel: what the other engine tests, which run it too, do not reach.

On the CPU it is interpreted (conftest.py), and compiled ahead of time for cards that are not there.
"""

import copy
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import mpmath
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from adamnx_hf import AdamNX, adamnx
from adamnx_hf.optim import formats
from adamnx_hf.optim.engines import runtime
from adamnx_hf.optim.engines import triton as engine
from adamnx_hf.optim.formats import FORMATS, RandomBits
from adamnx_hf.optim.step.clock import Clock

triton = pytest.importorskip("triton")
tl = triton.language
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")


@pytest.fixture
def launches(tried, monkeypatch):
    """The kinds of the launches made, in order."""
    kinds = []
    launch = engine._launch
    monkeypatch.setattr(engine, "_launch", lambda kind, *args: (kinds.append(kind), launch(kind, *args))[1])
    return kinds


def twins(params, **options):
    """AdamNX by the kernel, and by the reference on copies of `params`."""
    kernel = [nn.Parameter(param.clone(memory_format=torch.preserve_format)) for param in params]
    reference = [nn.Parameter(param.clone(memory_format=torch.preserve_format)) for param in params]
    return AdamNX(kernel, fused=True, **options), AdamNX(reference, foreach=False, **options)


def give_gradients(*optimizers, seed, only=None):
    torch.manual_seed(seed)
    for i, params in enumerate(zip(*(o.param_groups[0]["params"] for o in optimizers), strict=True)):
        grad = torch.randn(params[0].shape, device=params[0].device).to(params[0].dtype)
        for param in params:
            param.grad = grad.clone() if only is None or i in only else None


def check_equal(kernel, reference):
    for a, b in zip(kernel.param_groups[0]["params"], reference.param_groups[0]["params"], strict=True):
        # Half precision may round the other way.
        tolerance = {torch.bfloat16: 8e-3, torch.float16: 1e-3}.get(a.dtype, 1e-5)
        assert_close(a, b, rtol=tolerance, atol=tolerance / 10)
        assert kernel.state[a].keys() == reference.state[b].keys()
        for key, value in kernel.state[a].items():
            assert_close(value, reference.state[b][key], rtol=1e-5, atol=1e-6, check_device=False)


# ---------------------------------------------------------------- sizes, dtypes, alignment, launches


def test_sizes_around_a_chunk_in_one_launch(device, launches):
    sizes = [engine.BLOCK - 1, engine.BLOCK, engine.BLOCK + 1, 3 * engine.BLOCK, 1, 0, 2 * engine.BLOCK + 7]
    kernel, reference = twins([torch.randn(size, device=device) for size in sizes], lr=0.1)
    for step in range(3):
        give_gradients(kernel, reference, seed=step)
        kernel.step()
        reference.step()
    check_equal(kernel, reference)
    assert len(launches) == 3


def test_steps_that_differ_in_one_launch(device, launches):
    kernel, reference = twins([torch.randn(5, device=device) for _ in range(4)], lr=0.1)
    for step, only in enumerate([(0, 1, 2, 3), (0, 2), (0,), (0, 1, 2, 3), (3, 1)]):
        give_gradients(kernel, reference, seed=step, only=only)
        kernel.step()
        reference.step()
    check_equal(kernel, reference)
    assert [int(kernel.state[p]["step"]) for p in kernel.param_groups[0]["params"]] == [4, 3, 3, 3]
    assert len(launches) == 5


def test_dtypes_mixed_in_one_group(device, launches):
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float32, torch.bfloat16]
    kernel, reference = twins([torch.randn(1030, device=device, dtype=dtype) for dtype in dtypes], lr=0.01)
    for step in range(3):
        give_gradients(kernel, reference, seed=step)
        kernel.step()
        reference.step()
    check_equal(kernel, reference)
    assert len(launches) == 3 * len(set(dtypes))
    assert all(state["exp_avg_sq"].dtype == torch.float32 for state in kernel.state.values())


HALF = torch.bfloat16


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grads", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("params", [torch.float32, torch.bfloat16])
def test_dtypes_of_param_grad_and_moments_are_independent(params, grads, moments, device, launches):
    torch.manual_seed(0)
    p, g = torch.randn(1030, device=device).to(params), torch.randn(1030, device=device).to(grads)
    m, v = torch.rand(1030, device=device).to(moments), torch.rand(1030, device=device).to(moments)
    ours, theirs = [p.clone(), m.clone(), v.clone()], [p.float(), m.float(), v.float()]
    numbers = {"beta1": 0.9, "beta2": 0.99, "lr": 0.1, "weight_decay": 0.1, "eps": 1e-8}
    for (param, exp_avg, exp_avg_sq), grad, fused in ((ours, g, True), (theirs, g.float(), False)):
        adamnx([param], [grad], [exp_avg], [exp_avg_sq], [torch.tensor(4.0)], fused=fused, **numbers)
    for our, their in zip(ours, theirs, strict=True):
        tolerance = {torch.bfloat16: 1e-2, torch.float16: 1e-3}.get(our.dtype, 1e-5)
        assert_close(our.float(), their, rtol=tolerance, atol=tolerance / 10)
    assert launches == [(params, grads, moments, moments, True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_misaligned_storage_has_a_launch_of_its_own(dtype, device, launches):
    def build():
        torch.manual_seed(0)
        storage = torch.randn(4000, device=device).to(dtype)
        return [storage[:1500], storage[1501:3001], torch.randn(1030, device=device).to(dtype)]

    kernel = AdamNX([nn.Parameter(param) for param in build()], fused=True, lr=0.1)
    reference = AdamNX([nn.Parameter(param) for param in build()], foreach=False, lr=0.1)
    for step in range(2):
        give_gradients(kernel, reference, seed=step)
        kernel.step()
        reference.step()
    check_equal(kernel, reference)
    assert [kind[-1] for kind in launches] == [True, False] * 2


def test_layouts_that_cannot_be_walked_are_copied(device, launches):
    def build():
        torch.manual_seed(0)
        dense = torch.randn(2, 3, 4, 4, device=device).to(memory_format=torch.channels_last)
        return [dense, torch.randn(8, 6, device=device)[:, ::2], torch.randn(5, device=device)]

    kernel = AdamNX([nn.Parameter(param) for param in build()], fused=True, lr=0.1)
    reference = AdamNX([nn.Parameter(param) for param in build()], foreach=False, lr=0.1)
    for step in range(2):
        give_gradients(kernel, reference, seed=step)
        for optimizer in (kernel, reference):
            first = optimizer.param_groups[0]["params"][0]
            first.grad = first.grad.to(memory_format=torch.channels_last)
        kernel.step()
        reference.step()
    check_equal(kernel, reference)
    assert len(launches) == 2 * 2  # the slice goes alone


def test_only_what_has_changed_is_sent_to_the_device(device, monkeypatch):
    sent = []
    send = runtime.send
    monkeypatch.setattr(
        runtime, "send", lambda table, *args: (sent.append(table.shape), send(table, *args))[1]
    )
    kernel, reference = twins([torch.randn(1030, device=device) for _ in range(3)])
    params = kernel.param_groups[0]["params"]

    def step(seed, **kwargs):
        sent.clear()
        keep = [param.grad for param in params]  # so that new gradients lie elsewhere
        give_gradients(kernel, reference, seed=seed, **kwargs)
        kernel.step()
        reference.step()
        del keep
        return list(sent)

    assert step(0) == [(3, 9), (3,), (6,)]  # parameters, gradients, chunks
    assert step(1) == [(3,)]
    sent.clear()
    kernel.step()
    reference.step()
    assert not sent  # zero_grad(set_to_none=False) keeps the gradients where they are
    assert step(2, only=(0, 2)) == [(2, 9), (2,), (4,)]
    # The steps differ from now on, so two weights for each parameter are sent too, at each step.
    assert step(3) == [(3,), (3,), (3, 9), (3,), (6,)]
    with torch.no_grad():
        for a, b in zip(params, reference.param_groups[0]["params"], strict=True):
            a.data = a.data.clone()  # as moving a model does
            b.data = b.data.clone()
    assert step(4) == [(3,), (3,), (3, 9), (3,), (6,)]
    check_equal(kernel, reference)


def test_tables_of_a_capture_are_its_own_and_kept(interpreted, monkeypatch):
    # Without a card: what is sent while a graph is captured must survive later steps, for the replays.
    stream = ["the default", False]
    monkeypatch.setattr(runtime, "current_stream", lambda device: tuple(stream))
    monkeypatch.setattr(runtime, "pin_memory", lambda size: torch.empty(size, dtype=torch.uint8))
    seen = []
    provide = engine.provide_tables
    monkeypatch.setattr(engine, "provide_tables", lambda *args: (seen.append(provide(*args)), seen[-1])[1])
    kernel, reference = twins([torch.randn(1030), torch.randn(5)])
    params = kernel.param_groups[0]["params"]
    kept = []

    def step(seed):
        kept.append([param.grad for param in params])  # so that new gradients lie elsewhere
        give_gradients(kernel, reference, seed=seed)
        kernel.step()
        reference.step()
        check_equal(kernel, reference)
        return seen[-1]

    stream[1] = True
    give_gradients(kernel, seed=0)
    with pytest.raises(RuntimeError, match="Run a few whole training steps first"):
        kernel.step()
    assert all(state["step"] == 0 for state in kernel.state.values())
    stream[1] = False
    warmup = step(0)
    stream[:] = "the capture's", True
    captured = step(1)
    assert captured is not warmup
    assert captured.parameters is warmup.parameters
    addresses = captured.grads.clone()
    assert addresses.tolist() == [param.grad.data_ptr() for param in params] == captured.grad_addresses
    again = step(2)  # a second graph
    stream[:] = "the default", False
    later = step(3)
    assert later.parameters is warmup.parameters
    assert torch.equal(captured.grads, addresses)
    assert len({table.grads.data_ptr() for table in (captured, again, later)}) == 3
    memo = kernel._memos[0][0][0]
    assert [entry[0] for entry in memo["captured"]] == [captured, again]
    stream[0] = "another"
    assert (
        step(4).parameters is not warmup.parameters
    )  # sent anew: on another stream the old tables may not have arrived


def test_copies_of_strided_parameters_can_be_captured(interpreted, monkeypatch):
    stream = ["the default", False]
    monkeypatch.setattr(runtime, "current_stream", lambda device: tuple(stream))
    monkeypatch.setattr(runtime, "pin_memory", lambda size: torch.empty(size, dtype=torch.uint8))
    params = [nn.Parameter(torch.randn(8, 6)[:, ::2]), nn.Parameter(torch.randn(5))]
    kernel, reference = AdamNX(params, fused=True), AdamNX(copy.deepcopy(params), foreach=False)
    for step, capturing in enumerate([False, True, True, False]):
        stream[1] = capturing
        give_gradients(kernel, reference, seed=step)
        kernel.step()
        reference.step()
        check_equal(kernel, reference)


class Wrapper(torch.Tensor):
    """A tensor that has no memory of its own, as torchao's quantized weights."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        unwrap = lambda x: x.inner if isinstance(x, cls) else x  # noqa: E731
        result = function(*torch.utils._pytree.tree_map(unwrap, args), **(kwargs or {}))
        if function is torch.ops.aten.detach.default or "empty_like" in str(function):
            return cls(result)
        return args[0] if function._schema.is_mutable and isinstance(args[0], cls) else result


def test_tensors_without_memory_of_their_own_go_to_another_engine(device, launches):
    param, grad = (Wrapper(torch.ones(3, device=device)) for _ in range(2))
    moments = [torch.zeros(3, device=device) for _ in range(2)]
    numbers = {"beta1": 0.9, "beta2": 0.99, "lr": 0.5, "weight_decay": 0.0, "eps": 1e-8}
    step = torch.tensor(0.0)
    adamnx([param], [grad], *([m] for m in moments), [step], foreach=False, **numbers)
    assert_close(param.inner, torch.full((3,), 0.5, device=device))
    with pytest.raises(RuntimeError, match="triton: it takes tensors by their addresses"):
        adamnx([param], [grad], *([m] for m in moments), [step], fused=True, capturable=True, **numbers)
    assert step == 1
    assert not launches


def test_tensors_that_do_not_fit_are_refused_before_anything_is_touched(device):
    storage = torch.zeros(8, device=device)
    numbers = {"beta1": 0.9, "beta2": 0.99, "lr": 0.5, "weight_decay": 0.0, "eps": 1e-8}
    param, grad = (torch.ones(4, device=device) for _ in range(2))
    moments, step = [storage[:1], storage[4:]], torch.tensor(0.0)
    with pytest.raises(RuntimeError, match=r"exp_avg of parameter 0 has shape \(1,\), the parameter \(4,\)"):
        adamnx([param], [grad], *([m] for m in moments), [step], fused=True, **numbers)
    moments = [torch.zeros_like(param), torch.zeros(4, device="meta")]
    with pytest.raises(
        RuntimeError,
        match=f"exp_avg_sq of parameter 0 is on meta, the parameter on {param.device}; optim",
    ):
        adamnx([param], [grad], *([m] for m in moments), [step], fused=True, **numbers)
    assert not storage.any()
    assert torch.equal(param, torch.ones_like(param))
    assert step == 0


def test_pruned_in_place(device):
    # The same address, fewer elements.
    kernel, reference = twins([torch.randn(1030, device=device)])
    for seed, keep in ((0, 1030), (1, 1024), (2, 10)):
        for optimizer in (kernel, reference):
            (param,) = optimizer.param_groups[0]["params"]
            param.grad = None
            param.data = param.data[:keep]
            for name in ("exp_avg", "exp_avg_sq"):
                if optimizer.state[param]:
                    optimizer.state[param][name] = optimizer.state[param][name][:keep]
        give_gradients(kernel, reference, seed=seed)
        kernel.step()
        reference.step()
        check_equal(kernel, reference)


def test_lazily_negated_gradients(device):
    param = nn.Parameter(torch.ones(3, device=device))
    param.grad = torch._neg_view(torch.ones(3, device=device))
    AdamNX([param], fused=True, lr=0.5, weight_decay=0.0).step()
    assert_close(param.detach(), torch.full((3,), 1.5, device=device))


def test_more_than_2_to_the_31_elements(interpreted):
    # Addresses of which only the last chunk is real: nothing else of them may be touched.
    block, elements = 16, 2**31 + 40
    chunks = -(-elements // block)
    start = (chunks - 1) * block
    torch.manual_seed(0)
    real = [torch.rand(elements - start) for _ in range(4)]
    expected = [tensor.clone() for tensor in real]
    addresses = [tensor.data_ptr() - start * 4 for tensor in real]
    table = torch.tensor([[addresses[0], *addresses[2:], 0, 0, 0, elements, 1 - chunks, 0]])
    interpreted.step_kernel[(1,)](
        table, torch.tensor([addresses[1]]), torch.zeros(1, dtype=torch.int32), 1,
        0.5, 0.25, 0.1, 0.01, 1e-8, None, None, COLUMNS=interpreted.COLUMNS,
        **dict.fromkeys(("PARAM", "GRAD", "EXP_AVG", "EXP_AVG_SQ"), triton.language.float32),
        STEPS_IN_MEMORY=False, WEIGHTS_IN_MEMORY=False, LR_IN_MEMORY=False, MAXIMIZE=False, ALIGNED=False,
        ROUNDING="nearest", LOAD="", STORE="", BLOCK=block,
    )  # fmt: skip
    param, grad, exp_avg, exp_avg_sq = expected
    exp_avg = exp_avg + 0.5 * (grad - exp_avg)
    exp_avg_sq = exp_avg_sq + 0.25 * (grad * grad - exp_avg_sq)
    param = param * (1 - 0.001) - 0.1 * exp_avg / (exp_avg_sq.sqrt() + 1e-8)
    assert len(real[0]) == 8
    assert_close(real, [param, grad, exp_avg, exp_avg_sq])


@needs_cuda
def test_more_than_2_to_the_31_elements_for_real():
    elements = 2**31 + 1000
    free, _ = torch.cuda.mem_get_info()
    if free < elements * 13:
        pytest.skip("needs 28 GB of device memory")
    p, g = (torch.ones(elements, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    m, v = (torch.zeros(elements, device="cuda") for _ in range(2))
    numbers = {"beta1": 0.9, "beta2": 0.99, "lr": 0.5, "weight_decay": 0.0, "eps": 0.0}
    adamnx([p], [g], [m], [v], [torch.tensor(0.0)], fused=True, **numbers)
    for tensor, value in ((p, 0.5), (m, 1.0), (v, 1.0)):
        assert tensor.min() == tensor.max() == value


# ---------------------------------------------------------------- 8 bits

#: Rows of whole blocks, of blocks and a rest, of a rest of 16 or of any length; more blocks than a chunk has.
SHAPES_OF_8_BITS = [(33, 128), (40, 3, 50), (5, 1030), (64, 80)]


def moments_of_8_bits(params):
    return [[FORMATS["int8"].zeros(param) for param in params] for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_8_bits_are_those_of_the_twin_to_the_last(dtype, device):
    # The same float32 arithmetic: the kernel's, on moments that torch unpacks and packs.
    torch.manual_seed(0)
    ours = [torch.randn(shape, device=device).to(dtype) for shape in SHAPES_OF_8_BITS]
    twins = [param.clone() for param in ours]
    packed, kept = moments_of_8_bits(ours), moments_of_8_bits(ours)
    numbers = {"beta1": 0.9, "beta2": 0.99, "lr": 0.01, "weight_decay": 0.1, "eps": 1e-8, "fused": True}
    steps = [[torch.zeros((), device=device) for _ in ours] for _ in range(2)]
    for t in range(1, 5):
        grads = [torch.randn_like(param) * 10.0 ** (t - 3) for param in ours]
        adamnx(ours, grads, *packed, steps[0], **numbers)
        wide = [
            [FORMATS["int8"].load(moment, param, role) for moment, param in zip(moments, twins, strict=True)]
            for role, moments in zip(("exp_avg", "exp_avg_sq"), kept, strict=True)
        ]
        adamnx(twins, grads, *wide, steps[1], **numbers)
        for role, moments, values in zip(("exp_avg", "exp_avg_sq"), kept, wide, strict=True):
            for number, (moment, value) in enumerate(zip(moments, values, strict=True)):
                FORMATS["int8"].store(moment, value, RandomBits(t, number), role)
        for a, b in zip([*packed[0], *packed[1]], [*kept[0], *kept[1]], strict=True):
            assert torch.equal(a, b)
        for a, b in zip(ours, twins, strict=True):
            if device == "cpu":
                assert torch.equal(a, b)
            else:  # for packed moments the kernel is compiled apart, and may round the last bit otherwise
                tolerance = {torch.bfloat16: 8e-3}.get(dtype, 1e-6)
                assert_close(a, b, rtol=tolerance, atol=tolerance / 10)
    assert all(moment.any() for moments in packed for moment in moments)


def divided(numbers, divisor, quotients, rests):
    """A kernel: what `divide` makes of 8 numbers."""
    places = tl.arange(0, 8)
    quotient, rest = divide(tl.load(numbers + places), tl.load(divisor))  # noqa: F821, set by the test
    tl.store(quotients + places, quotient)
    tl.store(rests + places, rest)


def test_rows_and_blocks_come_from_one_reciprocal(interpreted, monkeypatch):
    # All numbers a program may meet, at the edges of rows; no tensor could be as large as the last.
    monkeypatch.setitem(globals(), "divide", interpreted.divide)
    for divisor in (1, 2, 3, 7, 16, 127, 1001, 2**16 + 1, 2**24 - 1):
        most = (2**31 - 1) // divisor * divisor
        numbers = torch.tensor([0, 1, divisor - 1, divisor, divisor + 1, most - 1, most, 2**31 - 1])
        found = [torch.empty(8, dtype=torch.int32) for _ in range(2)]
        triton.jit(divided)[(1,)](numbers.int(), torch.tensor([divisor], dtype=torch.int32), *found)
        assert torch.equal(found[0].long(), numbers // divisor)
        assert torch.equal(found[1].long(), numbers % divisor)


def drawn(start, seeds, bits):
    """A kernel: the random bits of 16 elements from `start` on."""
    places = tl.arange(0, 16)
    index = fold(tl.load(start), places)  # noqa: F821, set by the test
    tl.store(bits + places, draw_bits(index, tl.load(seeds), tl.load(seeds + 1)))  # noqa: F821


def test_random_bits_beyond_2_to_the_32(interpreted, monkeypatch):
    monkeypatch.setitem(globals(), "fold", interpreted.fold)
    monkeypatch.setitem(globals(), "draw_bits", interpreted.random_bits)
    for start in (0, 1024, 2**31 - 1024, 2**32, 5 * 2**32 + 3 * 1024, 2**40 + 2**31):
        found = torch.empty(16, dtype=torch.int32)
        triton.jit(drawn)[(1,)](torch.tensor([start]), torch.tensor([7, 3]), found)
        assert torch.equal(found, formats.random_bits(16, 7, 3, torch.device("cpu"), start))


def check_8_bits(kernel, reference):
    """Equal but for what float32's last bit tips to the other neighbour: hardly ever, and by 1."""
    check_params = zip(kernel.param_groups[0]["params"], reference.param_groups[0]["params"], strict=True)
    for a, b in check_params:
        assert_close(a, b, rtol=1e-4, atol=1e-3)
        for key in ("exp_avg", "exp_avg_sq"):
            x, y = kernel.state[a][key].float(), reference.state[b][key].float()
            if kernel.state[a][key].dtype == torch.uint8:
                assert (x != y).sum() <= 1e-3 * x.numel()
            else:
                assert_close(x, y, rtol=1e-5, atol=1e-6)


OPTIONS_OF_8_BITS = {
    "plain": {},
    "capturable": {"capturable": True},
    "clipped": {"max_grad_norm": 0.5, "maximize": True},
    "lr on the device": {"lr": torch.tensor(0.01)},
}


@pytest.mark.parametrize("options", OPTIONS_OF_8_BITS.values(), ids=OPTIONS_OF_8_BITS)
def test_8_bits_among_small_tensors_and_with_options(options, device, launches):
    shapes = [(64, 80), (7,), (40, 3, 50), (3, 4)]
    params = [torch.randn(shape, device=device) for shape in shapes]
    kernel, reference = twins(params, **{"lr": 0.01, "state_dtype": "int8", **options})
    for step, only in enumerate([None, (0, 1, 3), None]):  # then the steps differ
        give_gradients(kernel, reference, seed=step, only=only)
        kernel.step()
        reference.step()
        check_8_bits(kernel, reference)
    assert {kind[2] for kind in launches} == {torch.uint8, torch.float32}
    # Rows of 80 elements can be read 16 bytes at a time, of 150 not.
    assert {kind[-1] for kind in launches if kind[2] == torch.uint8} == {True, False}


def test_8_bits_scaled_and_skipped_on_the_device(device):
    kernel, reference = twins([torch.randn(64, 80, device=device)], lr=0.01, state_dtype="int8")
    (param,) = kernel.param_groups[0]["params"]
    for step, inf in enumerate([0.0, 1.0, 0.0]):
        give_gradients(kernel, reference, seed=step)
        param.grad *= 1024 if inf == 0 else float("inf")
        kernel.grad_scale, kernel.found_inf = (torch.tensor(x, device=device) for x in (1024.0, inf))
        before = copy.deepcopy((param, kernel.state[param]))
        kernel.step()
        if inf:
            assert torch.equal(param, before[0])
            assert all(torch.equal(kernel.state[param][key], before[1][key]) for key in before[1])
        else:
            reference.step()
            check_8_bits(kernel, reference)
    assert kernel.state[param]["step"] == 2


def test_8_bits_of_parameters_that_go_through_copies(device, launches):
    def build():
        torch.manual_seed(0)
        return [torch.randn(128, 64, device=device).t(), torch.randn(64, 160, device=device)[:, ::2]]

    kernel = AdamNX([nn.Parameter(p) for p in build()], fused=True, lr=0.01, state_dtype="int8")
    reference = AdamNX([nn.Parameter(p) for p in build()], foreach=False, lr=0.01, state_dtype="int8")
    for step in range(2):
        give_gradients(kernel, reference, seed=step)
        kernel.step()
        reference.step()
        check_8_bits(kernel, reference)
    assert {kind[2] for kind in launches} == {torch.uint8}


def test_8_bits_of_another_shape_are_refused(device):
    param, grad = (torch.ones(64, 80, device=device) for _ in range(2))
    step = torch.tensor(0.0)
    numbers = {"beta1": 0.9, "beta2": 0.99, "lr": 0.5, "weight_decay": 0.0, "eps": 1e-8}
    moments = [torch.zeros(64, width, dtype=torch.uint8, device=device) for width in (88, 80)]
    with pytest.raises(
        RuntimeError, match=r"exp_avg_sq of parameter 0 has shape \(64, 80\), the .* packed \(64, 88\)"
    ):
        adamnx([param], [grad], *([m] for m in moments), [step], fused=True, **numbers)
    assert torch.equal(param, torch.ones_like(param)) and step == 0


# ---------------------------------------------------------------- the schedule, the scale, the skipped step


@pytest.mark.parametrize("beta2_schedule", ["adamnx", "adam", "adafactor", "adax"])
def test_device_schedule_is_right_to_float32s_last_digit(beta2_schedule, device):
    steps = [1, 2, 3, 10, 1_000, 9_950, 100_000, 400_000, 16_000_000, 1_000_000_000]
    params = [nn.Parameter(torch.zeros(1, device=device)) for _ in steps]
    optimizer = AdamNX(params, fused=True, capturable=True, beta2_schedule=beta2_schedule)
    for param, step in zip(params, steps, strict=True):
        param.grad = torch.ones_like(param)
        counted = torch.tensor(float(step - 1), device=device)
        zeros = {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
        optimizer.state[param] = {"step": counted, **zeros}
    optimizer.step()
    with mpmath.workdps(60):
        beta2 = mpmath.mpf(0.99)
        rates = {
            "adamnx": -(1 - beta2) * mpmath.log(beta2),
            "adam": mpmath.log(beta2),
            "adax": mpmath.log1p((1 - beta2) ** 2),
        }
        for param, t in zip(params, steps, strict=True):
            if beta2_schedule == "adafactor":
                exact = mpmath.mpf(t) ** mpmath.mpf(-0.8)
            else:
                exact = mpmath.expm1(rates[beta2_schedule]) / mpmath.expm1(rates[beta2_schedule] * t)
            exact = float(exact)
            # From v = 0 with g = 1, v is the weight. Below 1e-30 float32 runs out.
            assert float(optimizer.state[param]["exp_avg_sq"]) == pytest.approx(exact, rel=1.2e-7, abs=1e-30)


@pytest.mark.parametrize("options", [{}, {"lr": torch.tensor(0.1)}, {"maximize": True, "eps": 0.5}])
def test_capturable_goes_the_same_way(options, device):
    params = [torch.randn(size, device=device) for size in (3, 1030)]
    kernel, reference = twins(params, weight_decay=0.1, **options)
    for group in kernel.param_groups:
        group["capturable"] = True
    for step in range(3):
        give_gradients(kernel, reference, seed=step)
        kernel.step()
        reference.step()
    check_equal(kernel, reference)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_found_inf_of_any_shape(shape, device):
    params = [nn.Parameter(torch.ones(3, device=device)) for _ in range(2)]
    optimizer = AdamNX(params, fused=True, capturable=True, weight_decay=0.0, lr=0.5)
    for only in ([0], [0, 1]):  # counters that are not laid out in one
        for i, param in enumerate(params):
            param.grad = torch.ones_like(param) if i in only else None
        optimizer.found_inf = torch.zeros(shape, device=device)
        optimizer.step()
    optimizer.found_inf = torch.ones(shape, device=device)
    optimizer.step()
    assert [int(optimizer.state[param]["step"]) for param in params] == [2, 1]
    assert_close(params[1].detach(), torch.full((3,), 0.5, device=device))


def test_scale_and_skipped_steps_on_the_device(device):
    kernel, reference = twins([torch.randn(size, device=device) for size in (3, 1030)], lr=0.1)
    kernel.param_groups[0]["capturable"] = True
    for step, inf in enumerate([1.0, 0.0, 0.0, 2.0, 0.0]):
        give_gradients(kernel, reference, seed=step)
        before = copy.deepcopy((kernel.param_groups[0]["params"], list(kernel.state.values())))
        for param in kernel.param_groups[0]["params"]:
            param.grad *= 1024 if inf == 0 else float("inf")
        kernel.grad_scale, kernel.found_inf = (torch.tensor(x, device=device) for x in (1024.0, inf))
        kernel.step()
        if inf:
            after = kernel.param_groups[0]["params"], list(kernel.state.values())
            for was, now in zip(before[0], after[0], strict=True):
                assert torch.equal(was, now)
            for param in kernel.param_groups[0]["params"]:
                state = kernel.state[param]
                assert int(state["step"]) == max(0, step - 1) if step else state["step"] == 0
        else:
            reference.step()
            check_equal(kernel, reference)
    assert int(kernel.state[kernel.param_groups[0]["params"][0]]["step"]) == 3


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize(
    "flags", [{"fused": True}, {}, {"foreach": False}], ids=["fused", "default", "reference"]
)
def test_gradscaler_skips_an_overflow_and_counts_it_nowhere(flags, max_grad_norm, device):
    param, twin = (nn.Parameter(torch.ones(5, device=device)) for _ in range(2))
    optimizer = AdamNX([param], lr=0.1, max_grad_norm=max_grad_norm, **flags)
    plain = AdamNX([twin], lr=0.1, max_grad_norm=max_grad_norm, foreach=False)
    assert optimizer._step_supports_amp_scaling == bool(flags.get("fused"))
    scaler = torch.amp.GradScaler(device, init_scale=1024.0, growth_interval=1000)
    for step, overflow in enumerate([True, False, False, True, False]):
        factor = float("inf") if overflow else step + 1.0
        optimizer.zero_grad()
        scaler.scale((param * factor).sum()).backward()
        before = param.detach().clone()
        if not flags.get("fused"):
            scaler.unscale_(optimizer)  # what a norm of unscaled gradients needs
        scaler.step(optimizer)
        scaler.update()
        if overflow:
            assert torch.equal(param.detach(), before)
            if state := optimizer.state.get(param):
                assert state["exp_avg"].isfinite().all()
        else:
            twin.grad = torch.full_like(twin, factor)
            plain.step()
            assert_close(param, twin)
    assert optimizer.state[param]["step"] == 3
    assert scaler.get_scale() == 256.0


# ---------------------------------------------------------------- torch.compile


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_compiled_step_calls_the_kernel(kind, device, launches):
    from torch._dynamo.testing import CompileCounterWithBackend  # takes long, where this file is a program

    params = [torch.randn(4, 3, device=device), torch.randn(3, device=device)]
    kernel, reference = twins(params, lr=kind(0.1))
    backend = CompileCounterWithBackend("aot_eager")
    step = torch.compile(kernel.step, backend=backend)
    for i in range(4):
        for group in (*kernel.param_groups, *reference.param_groups):
            group["lr"] = kind(0.1 / (1 + i))
        give_gradients(kernel, reference, seed=i)
        step()
        reference.step()
        check_equal(kernel, reference)
    assert len(launches) == 4
    assert backend.frame_count <= 2 * 2  # once without state, once with it
    called = {str(node.target) for graph in backend.graphs for node in graph.graph.nodes}
    assert any("adamnx_hf.triton_step" in name for name in called)


# ---------------------------------------------------------------- where Triton cannot be used


@pytest.mark.parametrize("flags", [{}, {"fused": True}])
def test_without_triton_atens_kernel_serves_and_it_is_said_once(flags, untried, chosen, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.warns(
        RuntimeWarning, match=r"kernel cannot be used \(Triton is not installed\)\. torch's fused"
    ):
        assert chosen(**flags) == "aten"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen(**flags) == "aten"


def test_a_triton_that_fails_is_named(untried, chosen, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("Failed to find C compiler. Please specify via CC\nor so")

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: zeros(*args))  # there may be no card
    monkeypatch.setattr(engine, "step_", fail)
    with pytest.warns(
        RuntimeWarning, match=r"\(RuntimeError: Failed to find C compiler. Please specify via CC\)"
    ):
        assert chosen() == "aten"


def test_what_cannot_do_without_the_kernel_says_why(untried, chosen, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(RuntimeError, match=r"triton: Triton is not installed; aten: "),
    ):
        chosen(fused=True, host_schedule=False)
    assert chosen(host_schedule=False) == "foreach"


def test_under_triton_interpret_the_cpu_has_the_kernel():
    program = """
import torch
from adamnx_hf import AdamNX
from adamnx_hf.optim.engines import triton
launch, calls = triton._launch, []
triton._launch = lambda *args: (calls.append(0), launch(*args))
param = torch.nn.Parameter(torch.ones(3))
param.grad = torch.ones(3)
AdamNX([param], lr=0.5, weight_decay=0.0).step()
print(len(calls), param.tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.stdout.strip() == "1 [0.5, 0.5, 0.5]", done.stderr


# ---------------------------------------------------------------- compiled for cards that are not there

FLOAT32, BFLOAT16, FLOAT16, PACKED = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
#: Of param, grad and moments, and how parameters are rounded.
KINDS = {
    "float32": (FLOAT32, FLOAT32, FLOAT32, "nearest"),
    "bfloat16": (BFLOAT16, BFLOAT16, FLOAT32, "nearest"),
    "bfloat16 throughout": (BFLOAT16, BFLOAT16, BFLOAT16, "nearest"),
    "bfloat16 throughout, stochastic": (BFLOAT16, BFLOAT16, BFLOAT16, "stochastic"),
    "bfloat16 throughout, kahan": (BFLOAT16, BFLOAT16, BFLOAT16, "kahan"),
    "float16": (FLOAT16, FLOAT16, FLOAT32, "nearest"),
    "float32, bfloat16 gradients": (FLOAT32, BFLOAT16, FLOAT32, "nearest"),
    "8 bits": (FLOAT32, FLOAT32, PACKED, "nearest"),
    "bfloat16, 8 bits": (BFLOAT16, BFLOAT16, PACKED, "nearest"),
    "bfloat16, 8 bits, stochastic": (BFLOAT16, BFLOAT16, PACKED, "stochastic"),
    "bfloat16, 8 bits, kahan": (BFLOAT16, BFLOAT16, PACKED, "kahan"),
}
CAPABILITIES = [80, 90, 100]
#: Dtypes of gradients whose norm the kernel computes.
NORMS = [FLOAT32, BFLOAT16, FLOAT16]
#: A card to each kind; what differs only in how parameters are rounded is built for one of them.
PAIRS = [
    (kind, capability)
    for kind, (*_, rounding) in KINDS.items()
    for capability in (CAPABILITIES if rounding == "nearest" else [90])
]
#: The same, and whether scalars are in memory: of each kind on one card, of each card for some kinds.
WHERE_SCALARS_ARE = [
    *((*pair, False) for pair in PAIRS),
    *(
        (kind, CAPABILITIES[i % 3] if KINDS[kind][3] == "nearest" else 90, True)
        for i, kind in enumerate(KINDS)
    ),
]


def build(capability, param, grad, moment, rounding, aligned, in_memory):
    """The kernel as it is launched, for a card that need not be there: its PTX and its machine code."""
    from adamnx_hf.optim.engines import triton_kernel

    types = {
        "table": "*i64", "grads": "*i64", "chunks": "*i32", "step": "i32", "weight1": "fp32",
        "weight2": "fp32", "lr": "fp32", "weight_decay": "fp32", "eps": "fp32",
    }  # fmt: skip
    constants = {"grad_scale": None, "found_inf": None}
    if in_memory:
        types |= dict.fromkeys(("step", "weight1", "weight2"), "*fp64")
        types |= dict.fromkeys(("lr", "grad_scale", "found_inf"), "*fp32")
        constants = {}
    dtypes = zip(("PARAM", "GRAD", "EXP_AVG", "EXP_AVG_SQ"), (param, grad, moment, moment), strict=True)
    constants |= {name: getattr(triton.language, str(dtype)[6:]) for name, dtype in dtypes}
    tuning = engine.tuning((param, grad, moment, moment, aligned), rounding)
    constants |= {
        "COLUMNS": triton_kernel.COLUMNS, "STEPS_IN_MEMORY": in_memory, "WEIGHTS_IN_MEMORY": in_memory,
        "LR_IN_MEMORY": in_memory, "MAXIMIZE": False, "ALIGNED": aligned, "BLOCK": tuning.block,
        "LOAD": tuning.load, "STORE": tuning.store, "ROUNDING": rounding,
    }  # fmt: skip
    return assemble(triton_kernel.step_kernel, capability, types, constants, tuning.warps)


def build_norm(capability, dtype):
    """The same of the kernel that adds up the squares of gradients of a dtype."""
    from adamnx_hf.optim.engines import triton_kernel

    types = {"table": "*i64", "grads": "*i64", "chunks": "*i32", "sums": "*fp32"}
    constants = {
        "GRAD": getattr(triton.language, str(dtype)[6:]),
        "ALIGNED": True,
        "BLOCK": engine.NORM_BLOCK,
    }
    return assemble(triton_kernel.squares_kernel, capability, types, constants, engine.NORM_WARPS)


def assemble(kernel, capability, types, constants, warps):
    """PTX and machine code of a kernel."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = types | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm
    return binary["ptx"], binary["cubin"]


def variants():
    """All that the tests below look at: a card, a kind, alignment, and whether scalars are in memory."""
    for kind in KINDS:
        yield 90, kind, False, False
    for kind, capability, in_memory in WHERE_SCALARS_ARE:
        yield capability, kind, True, in_memory
    for dtype in NORMS:
        for capability in CAPABILITIES:
            yield capability, dtype, True, False


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A function from a variant to its PTX, and to the file with its machine code.

    They are built in a process of their own: older Tritons cannot compile where they have interpreted.
    """
    folder = tmp_path_factory.mktemp("compiled")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, __file__, folder], check=True, env=environment)
    names = {variant: folder / str(i) for i, variant in enumerate(variants())}
    return lambda *variant: (
        names[variant].with_suffix(".ptx").read_text(),
        names[variant].with_suffix(".cubin"),
    )


def dumped(option, cubin):
    """What Triton's own cuobjdump says about machine code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, option, cubin], capture_output=True, text=True, check=True).stdout


def accesses(cubin):
    """How many accesses to global memory the machine code has, by direction and bytes.

    The PTX has more in some Tritons: 3.6 loads an exponent once for each element there, and ptxas folds them.
    """
    counts = Counter()
    sizes = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
    for operation, modifiers in re.findall(r"\b(LD|ST)G((?:\.\w+)*)", dumped("--dump-sass", cubin)):
        size = next((sizes[modifier] for modifier in modifiers.split(".") if modifier in sizes), 4)
        counts[operation.lower(), size] += 1
    return counts


@pytest.mark.parametrize(("kind", "capability"), PAIRS)
def test_16_bytes_are_moved_at_a_time(kind, capability, compiled):
    *dtypes, moment, rounding = KINDS[kind]
    _, cubin = compiled(capability, kind, True, False)
    counts = accesses(cubin)
    tuning = engine.tuning((*dtypes, moment, moment, True), rounding)
    dtypes += [torch.int16] if rounding == "kahan" else []
    paths = 1
    if moment == PACKED:
        # Rows of whole blocks have a path of their own. In each a thread's 8 elements are 8 bytes. The others
        # are an exponent to each block, which Triton 3.4 reads or writes once for each element.
        paths = 2
        often = {4, 32} if triton.__version__.startswith("3.4.") else {4}
        assert {counts["ld", 1], counts["st", 1]} <= often
    else:
        dtypes += [moment, moment]
    read, written = Counter(), Counter()
    for i, dtype in enumerate(dtypes):
        share = tuning.block * dtype.itemsize // (32 * tuning.warps)  # a thread's bytes
        read[min(share, 16)] += paths * max(share // 16, 1)
        written[min(share, 16)] += paths * max(share // 16, 1) * (i != 1)  # all but the gradient
    if moment == PACKED:
        read[8] += paths * 2
        written[8] += paths * 2
    assert set(read) <= {8, 16}
    assert counts["ld", 16] == read[16]
    assert counts["ld", 8] >= read[8]  # an address is 8 bytes too
    assert (counts["st", 8], counts["st", 16]) == (written[8], written[16])
    assert max(size for _, size in counts) == max(read)


@pytest.mark.parametrize("kind", KINDS)
def test_misaligned_chunks_are_moved_an_element_at_a_time(kind, compiled):
    param, _, moment, rounding = KINDS[kind]
    counts = accesses(compiled(90, kind, False, False)[1])
    # 8 bytes are an address or another entry of the tables, whose own alignment is known.
    stored = {size for direction, size in counts if direction == "st"}
    assert stored <= {dtype.itemsize for dtype in (param, moment)} | ({2} if rounding == "kahan" else set())
    assert max(size for _, size in counts) == 8


@pytest.mark.parametrize(("kind", "capability", "in_memory"), WHERE_SCALARS_ARE)
def test_no_spills_and_enough_programs_at_once(kind, in_memory, capability, compiled):
    ptx, cubin = compiled(capability, kind, True, in_memory)
    assert ".local" not in ptx
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dumped("--dump-resource-usage", cubin)))
    assert usage["STACK"] == usage["LOCAL"] == "0"
    # 65,536 registers to a multiprocessor: for at least 768 threads, with 96 KiB of float32 in flight.
    param, grad, moment, rounding = KINDS[kind]
    threads = 32 * engine.tuning((param, grad, moment, moment, True), rounding).warps
    assert 65536 // (int(usage["REG"]) * threads) * threads >= 768


@pytest.mark.parametrize("dtype", NORMS, ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_norm_reads_16_bytes_at_a_time_with_no_spills(capability, dtype, compiled):
    ptx, cubin = compiled(capability, dtype, True, False)
    threads = 32 * engine.NORM_WARPS
    assert accesses(cubin)["ld", 16] == engine.NORM_BLOCK * dtype.itemsize // 16 // threads
    assert ".local" not in ptx
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dumped("--dump-resource-usage", cubin)))
    assert usage["STACK"] == usage["LOCAL"] == "0"
    assert 65536 // (int(usage["REG"]) * threads) * threads >= 768


# ---------------------------------------------------------------- on a card


@needs_cuda
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}, {"lr": torch.tensor(0.1)}])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_a_step_never_waits_for_the_device(options, max_grad_norm, launches):
    options = {
        key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in options.items()
    }
    params = [nn.Parameter(torch.randn(size, device="cuda")) for size in (3, 1030, 0)]
    params.append(nn.Parameter(torch.randn(7, device="cuda", dtype=torch.bfloat16)))
    params.append(nn.Parameter(torch.randn(4, 6, device="cuda")[:, ::2]))  # goes through a copy
    optimizer = AdamNX(params, max_grad_norm=max_grad_norm, **options)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(4):
            for param in params:
                param.grad = torch.randn_like(param)
            if step == 3:
                params[0].grad = None  # the steps differ from now on
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert launches


@needs_cuda
def test_a_scaled_step_never_waits_for_the_device():
    param = nn.Parameter(torch.ones(1030, device="cuda"))
    optimizer = AdamNX([param], fused=True, max_grad_norm=1.0)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0).cuda(), torch.tensor(0.0).cuda()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            param.grad = torch.randn_like(param)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert optimizer.state[param]["step"].is_cuda
    assert optimizer.state[param]["step"] == 3


class AskNothing(TorchDispatchMode):
    """Raises where the value of a tensor is asked for, which on a card waits for it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "the host asks for a value"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("packed", [False, True])
def test_counting_never_asks_whether_a_step_counts(packed):
    together = torch.zeros(2)
    steps = list(together.unbind()) if packed else [torch.zeros(()), torch.zeros(())]
    for found_inf, expected in ((0.0, 1), (1.0, 1), (0.0, 2)):
        value = torch.tensor(found_inf)
        with AskNothing():
            Clock(steps, together if packed else None, on_host=False).advance(value)
        assert steps == [expected, expected]


@needs_cuda
@pytest.mark.parametrize(
    "flags", [{}, {"fused": True}, {"foreach": True}], ids=["default", "fused", "foreach"]
)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_captured_in_a_cuda_graph(flags, set_to_none):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 1)).cuda()
    model[0].weight = nn.Parameter(model[0].weight.detach().t().contiguous().t())  # goes through a copy
    twin = copy.deepcopy(model)
    lr = torch.tensor(0.01, device="cuda")
    optimizer = AdamNX(model.parameters(), lr=lr, capturable=True, max_grad_norm=1.0, **flags)
    plain = AdamNX(twin.parameters(), lr=0.01, foreach=False, max_grad_norm=1.0)
    data = torch.randn(16, 40, device="cuda")

    def train(model, optimizer):
        optimizer.zero_grad(set_to_none=set_to_none)
        model(data).square().mean().backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            train(model, optimizer)
    torch.cuda.current_stream().wait_stream(side)
    for _ in range(3):
        train(twin, plain)

    optimizer.zero_grad(set_to_none=set_to_none)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train(model, optimizer)
    for step in range(6):
        data.copy_(torch.randn(16, 40, device="cuda"))
        lr.fill_(0.01 / (step + 1))
        plain.param_groups[0]["lr"] = 0.01 / (step + 1)
        if step == 3:
            train(model, optimizer)  # without the graph, in between
        else:
            graph.replay()
        train(twin, plain)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            assert_close(a, b, rtol=1e-4, atol=1e-5)
            assert optimizer.state[a]["step"] == plain.state[b]["step"] == step + 4


@needs_cuda
def test_a_capture_without_a_step_before_is_told(tried):
    param = nn.Parameter(torch.ones(3, device="cuda"))
    param.grad = torch.ones(3, device="cuda")
    optimizer = AdamNX([param], capturable=True)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="Run a few whole training steps first"), torch.cuda.graph(graph):
        optimizer.step()
    del graph
    # The capture has ended, and has left no state that it has only noted down.
    optimizer.step()
    assert_close(param.detach(), torch.full((3,), 1 - 1e-5 - 1e-3, device="cuda"))
    assert optimizer.state[param]["step"] == 1


@needs_cuda
def test_another_stream():
    kernel, reference = twins([torch.randn(100_000, device="cuda") for _ in range(20)])
    for step in range(6):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        give_gradients(kernel, reference, seed=step)
        with torch.cuda.stream(stream):
            kernel.step()
        torch.cuda.current_stream().wait_stream(stream)
        reference.step()
    check_equal(kernel, reference)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA cards")
def test_several_devices_in_one_group():
    devices = ["cuda:0", "cuda:1", "cpu", "cuda:1"]
    params = [nn.Parameter(torch.ones(1030, device=device)) for device in devices]
    optimizer = AdamNX(params, lr=0.5, weight_decay=0.0, max_grad_norm=1.0)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    for param in params:
        assert_close(param.detach(), torch.full_like(param, 0.5))
    assert torch.cuda.current_device() == 0


if __name__ == "__main__":
    for number, (capability, kind, aligned, in_memory) in enumerate(variants()):
        ptx, cubin = (
            build(capability, *KINDS[kind], aligned, in_memory)
            if kind in KINDS
            else build_norm(capability, kind)
        )
        (Path(sys.argv[1]) / f"{number}.ptx").write_text(ptx)
        (Path(sys.argv[1]) / f"{number}.cubin").write_bytes(cubin)
