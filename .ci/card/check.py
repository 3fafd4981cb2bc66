"""First contact with a card: does the kernel compile, launch and compute what it should?

    PYTHONPATH=. python .ci/card/check.py cuda    # about a minute, most of it compiling
    PYTHONPATH=. TRITON_INTERPRET=1 python .ci/card/check.py cpu    # the same logic without a card

There is a line for each check, and check.json in $OUT is written anew after each. The exit status is 1 if a
check fails, and 3 if the card's context is lost, for instance by an illegal memory access: nothing that would
follow means anything then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adamnx_hf import AdamNX, adamnx
from adamnx_hf.bench.device import context_is_lost
from adamnx_hf.optim.clipping import compute_total_norm
from adamnx_hf.optim.engines import triton as engine
from adamnx_hf.optim.formats import join
from adamnx_hf.optim.schedules import adam
from adamnx_hf.optim.schedules import adamnx as adamnx_schedule

CONTEXT_LOST = 3
DEVICE = sys.argv[1] if len(sys.argv) > 1 else "cuda"
CUDA = DEVICE == "cuda"
OUT = Path(os.environ.get("OUT", "."))
SIZES: list[tuple[int, ...]] = [(1025,), (64, 80), (7,), ()]
if CUDA:
    SIZES = [(1023,), (1024,), (1025,), (64, 2048), (7,), (), (3, 50, 40), (1 << 18,)]

CHECKS: list[Callable[[], str]] = []


def check(function: Callable[[], str]) -> Callable[[], str]:
    """Marks what is checked on every device. It returns a detail to print, or raises."""
    CHECKS.append(function)
    return function


def check_on_card(function: Callable[[], str]) -> Callable[[], str]:
    """Marks what is checked on a card alone."""
    return check(function) if CUDA else function


def synchronize() -> None:
    """Waits for the card, if there is one."""
    if CUDA:
        torch.cuda.synchronize()


# ---------------------------------------------------------------- what the checks share


def make_params(dtype: torch.dtype = torch.float32, sizes: Any = None) -> list[nn.Parameter]:
    """The same parameters at each call."""
    torch.manual_seed(0)
    shapes = SIZES if sizes is None else sizes
    return [nn.Parameter(torch.randn(s, dtype=torch.float64).to(dtype).to(DEVICE)) for s in shapes]


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    """Gradients that depend on the seed alone."""
    torch.manual_seed(1000 + seed)
    for param in params:
        param.grad = torch.randn(param.shape, dtype=torch.float64).to(param.dtype).to(DEVICE)


def exact(params: list[nn.Parameter], steps: int, clip: float | None = None) -> list[tuple[Any, Any, Any]]:
    """Parameters and moments after so many steps in float64 on the CPU, from the paper's formulas."""
    lr, decay, eps = 0.01, 0.1, 1e-8
    state: list[tuple[Any, Any, Any]] = [(param.detach().double().cpu(), 0.0, 0.0) for param in params]
    for t in range(1, steps + 1):
        give_gradients(params, t)
        grads = [param.grad.double().cpu() for param in params if param.grad is not None]
        if clip:
            norm = torch.stack([grad.norm() for grad in grads]).norm()
            grads = [grad / max(1.0, float((norm + 1e-6) / clip)) for grad in grads]
        weight1, weight2 = adam(t, 0.9), adamnx_schedule(t, 0.99)
        new = []
        for (p, m, v), grad in zip(state, grads, strict=True):
            m, v = m + weight1 * (grad - m), v + weight2 * (grad * grad - v)
            new.append((p * (1 - lr * decay) - lr * m / (v.sqrt() + eps), m, v))
        state = new
    return state


def error(ours: Any, theirs: Any) -> float:
    """The largest relative error of the tensors `ours`. A nan among them makes it infinite."""
    errors = [0.0]
    for a, b in zip(ours, theirs, strict=True):
        if b.numel():
            b = b.detach().double().cpu()
            value = float((a.detach().double().cpu() - b).norm() / b.norm().clamp(min=1e-30))
            errors.append(value if value == value else float("inf"))
    return max(errors)


def close(ours: Any, theirs: Any, limit: float) -> str:
    """The error, which must be at most `limit`."""
    found = error(ours, theirs)
    assert found <= limit, f"relative error {found:.1e}, more than {limit:.0e}"
    return f"relative error {found:.1e}"


def run(params: list[nn.Parameter], steps: int = 4, **options: Any) -> AdamNX:
    """AdamNX after so many steps."""
    optimizer = AdamNX(params, lr=0.01, weight_decay=0.1, **options)
    for t in range(1, steps + 1):
        give_gradients(params, t)
        optimizer.step()
    return optimizer


def against_float64(
    limit: float, dtype: torch.dtype = torch.float32, clip: float | None = None, **options: Any
) -> str:
    """Four steps beside float64's."""
    params = make_params(dtype)
    expected = exact(make_params(dtype), 4, clip=clip)
    optimizer = run(params, max_grad_norm=clip, **options)
    errors = [error(params, [row[0] for row in expected])]
    for i, key in ((1, "exp_avg"), (2, "exp_avg_sq")):
        ours = [optimizer.dequantize(param)[key] for param in params]
        errors.append(error(ours, [row[i] for row in expected]))
    text = ", ".join(f"{value:.1e}" for value in errors)
    # m of a single number may almost cancel, and then has few digits that are right.
    right = errors[0] <= limit and max(errors) <= 10 * limit
    assert right, f"relative errors of param, m, v: {text}"
    return f"relative errors of param, m, v: {text}"


def against_twin(share_of_bits: float, dtype: torch.dtype = torch.bfloat16, **options: Any) -> str:
    """What is rounded by chance: the kernel beside torch's own operations with the same random bits.

    Another last bit in float32 arithmetic decides some roundings the other way, which then multiply over the
    steps: not all bits of the stored numbers are equal, but a share of them that is near 1.
    """
    ours, theirs = make_params(dtype), make_params(dtype)
    kernel, twin = run(ours, **options), run(theirs, **{**options, "foreach": False})
    # Where moments are stored in float32 and parameters too, nothing else differs.
    limit = 1e-5 if dtype == torch.float32 and options.get("state_dtype") != "int8" else 2e-2
    equal = total = 0
    for p, q in zip(ours, theirs, strict=True):
        state, expected = kernel.state[p], twin.state[q]
        keys = [key for key in state if key.startswith("exp_avg")]
        pairs = [(state[key], expected[key]) for key in keys]
        if "param_residual" in state:  # the two are a float32, whose last bit may be another
            pairs.append(
                (join(p.detach(), state["param_residual"]), join(q.detach(), expected["param_residual"]))
            )
        else:
            pairs.append((p.detach(), q.detach()))
        for x, y in pairs:
            if x.dtype == torch.float32:  # another last bit is no error
                close([x], [y], limit)
                continue
            same = x.view(torch.int16) == y.view(torch.int16) if x.dtype == torch.bfloat16 else x == y
            equal, total = equal + int(same.sum()), total + x.numel()
    share = equal / total
    assert share >= share_of_bits, f"only {share:.6f} of the stored numbers are the twin's"
    return f"{share:.6f} of the stored numbers are the twin's, bit for bit"


# ---------------------------------------------------------------- the step


@check
def the_kernel_compiles_and_is_chosen() -> str:
    """The engine's own verdict, and one launch for a step."""
    reason = engine._why_not_compiled() if CUDA else None
    assert reason is None, reason
    launches: list[Any] = []
    launch = engine._launch

    def counted(kind: Any, *args: Any) -> Any:
        launches.append(kind)
        return launch(kind, *args)

    engine._launch = counted
    try:
        run(make_params(), steps=1)
    finally:
        engine._launch = launch
    assert len(launches) == 1, f"{len(launches)} launches: {launches}"
    return f"one launch, {torch.cuda.get_device_name() if CUDA else 'interpreted'}"


@check
def float32() -> str:
    """As it is."""
    return against_float64(2e-6)


@check
def float32_capturable() -> str:
    """The schedule computed on the device."""
    return against_float64(2e-6, capturable=True)


@check
def float32_clipped_in_the_step() -> str:
    """With the norm of all gradients."""
    return against_float64(3e-6, clip=1.0)


@check_on_card  # the interpreter cuts float32 off where cards round, see tests/optim/conftest.py
def bfloat16_parameters_float32_moments() -> str:
    """Rounded to nearest."""
    return against_twin(0.97)


@check
def bfloat16_moments() -> str:
    """Rounded by chance."""
    return against_twin(0.98, torch.float32, state_dtype="bfloat16")


@check
def bfloat16_stochastic() -> str:
    """Moments and parameters rounded by chance."""
    return against_twin(0.98, state_dtype="bfloat16", param_rounding="stochastic")


@check
def bfloat16_kahan() -> str:
    """Parameters with a residual."""
    return against_twin(0.95, state_dtype="bfloat16", param_rounding="kahan")


@check
def eight_bits() -> str:
    """Packed moments."""
    return against_twin(0.93, torch.float32, state_dtype="int8")


@check
def eight_bits_of_bfloat16() -> str:
    """Packed moments, parameters rounded by chance."""
    return against_twin(0.93, state_dtype="int8", param_rounding="stochastic")


@check
def misaligned() -> str:
    """Parameters that lie off multiples of 16 bytes."""
    storage = torch.randn(4000, device=DEVICE)
    ours = [nn.Parameter(storage[1:1501].clone()), nn.Parameter(storage[1501:3001])]
    theirs = [nn.Parameter(param.detach().clone()) for param in ours]
    run(ours), run(theirs, foreach=False)
    return close(ours, theirs, 1e-6)


@check
def tunings_give_the_same_results() -> str:
    """Other sizes of chunk, and cache hints, change at most a last bit."""
    own = engine.tuning
    expected = make_params(sizes=[(3, 1030), (7,)])
    run(expected, steps=2)
    equal, errors = True, [0.0]
    hinted = [engine.Tuning(1024, 4, "evict_first", ".cs"), engine.Tuning(2048, 8)]
    try:
        for tuning in hinted if CUDA else hinted[:1]:
            engine.tuning = lambda *_, tuning=tuning: tuning
            params = make_params(sizes=[(3, 1030), (7,)])
            run(params, steps=2)
            equal = equal and all(torch.equal(a, b) for a, b in zip(params, expected, strict=True))
            errors.append(error(params, expected))
    finally:
        engine.tuning = own
    assert max(errors) <= 1e-6, f"relative error {max(errors):.1e}, more than 1e-06"
    return "equal to the last bit" if equal else f"relative error {max(errors):.1e}"


# ---------------------------------------------------------------- the norm


def gradients_of_all_sorts() -> list[torch.Tensor]:
    """Mixed sizes, dtypes, layouts and alignments."""
    torch.manual_seed(0)
    half, brain = torch.float16, torch.bfloat16
    sizes: list[tuple[int, ...]] = [(1023,), (4097,), (0,), (), (3, 1030)]
    sizes += [(1000, 999), (2**24 + 3,)] if CUDA else []
    grads = [
        torch.randn(size, dtype=torch.float64).to(dtype).to(DEVICE)
        for size in sizes
        for dtype in (torch.float32, brain, half)
    ]
    storage = torch.randn(4000, device=DEVICE)
    grads += [storage[1:1000], storage.to(brain)[3:2051], storage.to(half)[1001:2000]]
    grads += [storage.view(40, 100).t(), storage.view(40, 100)[:, ::2], storage[::3]]
    return grads


@check
def norm_of_all_sorts() -> str:
    """Beside float64 on the CPU, twice: the second time with what is kept from the first."""
    grads = gradients_of_all_sorts()
    expected = torch.stack([grad.double().cpu().norm() for grad in grads]).norm()
    memo: Any = {}
    errors = [
        abs(float(compute_total_norm(grads, *given)) / float(expected) - 1)
        for given in ((), (memo,), (memo,))
    ]
    assert max(errors) < 1e-5, f"relative errors {errors}"
    return f"relative error {max(errors):.1e}"


@check
def norm_of_what_is_not_finite() -> str:
    """An inf or a nan anywhere is in the norm."""
    for value in (float("inf"), float("-inf"), float("nan")):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for at in (0, 4999):
                grads = [torch.ones(5000, device=DEVICE, dtype=dtype), torch.ones(3, device=DEVICE)]
                grads[0][at] = value
                norm = float(compute_total_norm(grads))
                right = norm != norm if value != value else norm == float("inf")
                assert right, f"{norm} of a gradient in {dtype} with {value} at {at}"
    zero = float(compute_total_norm([torch.zeros(5000, device=DEVICE)]))
    assert zero == 0, f"{zero} of zeros"
    return "inf and nan as they should be"


# ---------------------------------------------------------------- on a card alone


@check_on_card
def no_waiting() -> str:
    """A clipped step waits for nothing."""
    params = make_params(sizes=[(3,), (1030,), (64, 64)])
    optimizer = AdamNX(params, max_grad_norm=1.0)
    give_gradients(params, 0)
    optimizer.step()
    synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            for param in params:
                param.grad = torch.randn_like(param)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "three clipped steps without a synchronisation"


@check_on_card
def scaler_with_overflows() -> str:
    """Steps whose gradients overflow are skipped, and count nowhere."""
    p, q = (nn.Parameter(torch.ones(5000, device="cuda")) for _ in range(2))
    optimizer, plain = AdamNX([p], lr=0.1, fused=True), AdamNX([q], lr=0.1, foreach=False)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    for i, overflows in enumerate([True, False, False, True, False]):
        optimizer.zero_grad()
        scaler.scale((p * (float("inf") if overflows else i + 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        if not overflows:
            q.grad = torch.full_like(q, i + 1.0)
            plain.step()
    assert optimizer.state[p]["step"] == 3, f"step is {optimizer.state[p]['step']}, not 3"
    return close([p], [q], 1e-5)


def captured(count: int) -> str:
    """So many graphs, captured one after the other, replayed in turns, beside plain steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 1)).cuda()
    twin = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 1)).cuda()
    twin.load_state_dict(model.state_dict())
    lr = torch.tensor(0.01, device="cuda")
    optimizer = AdamNX(model.parameters(), lr=lr, capturable=True, max_grad_norm=1.0)
    plain = AdamNX(twin.parameters(), lr=0.01, foreach=False, max_grad_norm=1.0)
    data = torch.randn(32, 64, device="cuda")

    def train(network: nn.Module, stepped: AdamNX) -> None:
        stepped.zero_grad(set_to_none=True)
        network(data).square().mean().backward()
        stepped.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            train(model, optimizer)
    torch.cuda.current_stream().wait_stream(side)
    for _ in range(3):
        train(twin, plain)
    graphs = [torch.cuda.CUDAGraph() for _ in range(count)]
    for graph in graphs:
        with torch.cuda.graph(graph):
            train(model, optimizer)
    for i in range(8):
        data.copy_(torch.randn_like(data))
        lr.fill_(0.01 / (i + 1))
        plain.param_groups[0]["lr"] = 0.01 / (i + 1)
        if i == 4:
            train(model, optimizer)
        else:
            graphs[i % count].replay()
        train(twin, plain)
    return close(list(model.parameters()), list(twin.parameters()), 1e-3)


@check_on_card
def graph_with_new_gradients_and_rates() -> str:
    """A graph sees new gradients and a new rate at each replay."""
    return captured(1)


@check_on_card
def a_new_stream_at_each_step() -> str:
    """Tables sent on one stream have arrived when a kernel on another one looks."""
    ours, theirs = make_params(sizes=[(100_000,)] * 20), make_params(sizes=[(100_000,)] * 20)
    optimizer = AdamNX(ours, fused=True, max_grad_norm=1.0)
    plain = AdamNX(theirs, foreach=False, max_grad_norm=1.0)
    for t in range(8):
        stream = torch.cuda.Stream()
        give_gradients(ours, t), give_gradients(theirs, t)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        plain.step()
    return close(ours, theirs, 1e-5)


@check_on_card
def offsets_beyond_2_to_the_31() -> str:
    """Tensors with more elements than an int32 counts."""
    count = 2**31 + 1000
    if torch.cuda.mem_get_info()[0] < 13 * count:
        return "left out, too little memory"
    p, g = (torch.ones(count, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    m, v = (torch.zeros(count, device="cuda") for _ in range(2))
    options: dict[str, Any] = {"beta1": 0.9, "beta2": 0.99, "lr": 0.5, "weight_decay": 0.0, "eps": 0.0}
    adamnx([p], [g], [m], [v], [torch.tensor(0.0)], fused=True, **options)
    ends = [(float(t.min()), float(t.max())) for t in (p, m, v)]
    assert ends == [(0.5, 0.5), (1.0, 1.0), (1.0, 1.0)], f"least and largest of param, m, v: {ends}"
    norm = float(compute_total_norm([g]))
    assert abs(norm / count**0.5 - 1) < 1e-5, f"norm {norm}, not {count**0.5}"
    return "all of 2^31 + 1000, and their norm"


@check_on_card
def compiles_once() -> str:
    """New steps and rates compile nothing anew."""
    from adamnx_hf.optim.engines import triton_kernel

    def variants() -> int:
        return sum(len(cache[0]) for cache in triton_kernel.step_kernel.device_caches.values())

    params = make_params(torch.bfloat16, sizes=[(64, 128)])
    optimizer = AdamNX(params, state_dtype="bfloat16", param_rounding="stochastic")
    give_gradients(params, 0)
    optimizer.step()
    before = variants()
    for lr in (1.0, 0.0, 1e-3, 0.5):
        for _ in range(17):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
    assert variants() == before, f"{variants() - before} variants more"
    return f"{before} variants in this process, none more over 68 steps and 4 rates"


# ---------------------------------------------------------------- captures that are refused


def capture_too_early(optimizer: AdamNX) -> str:
    """Captures a step of parameters without state; what was raised, or "" if nothing was."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            optimizer.step()
    except Exception as raised:
        messages: list[str] = []
        cause: BaseException | None = raised
        while cause is not None:  # what ends the capture may raise too
            messages.append(f"{type(cause).__name__}: {cause}")
            cause = cause.__context__
        return " | ".join(messages)
    return ""


def refused_then_stepped(clip: float | None) -> str:
    """A capture before the first step is refused, leaves nothing behind, and eager steps then are right."""
    params = make_params()
    expected = exact(make_params(), 4, clip=clip)
    optimizer = AdamNX(params, lr=0.01, weight_decay=0.1, capturable=True, max_grad_norm=clip)
    give_gradients(params, 1)
    told = capture_too_early(optimizer)
    assert "Run a few whole training steps first" in told, f"the capture said: {told or 'nothing'}"
    synchronize()
    assert not optimizer.state, f"state of {len(optimizer.state)} parameters is left behind"
    for t in range(1, 5):
        give_gradients(params, t)
        optimizer.step()
    return close(params, [row[0] for row in expected], 3e-6)


@check_on_card
def a_refused_capture_leaves_no_state() -> str:
    """In this process, in which the kernel has run."""
    return refused_then_stepped(None)


def first_step_in_a_capture() -> None:
    """What the process of the next check does: its very first step is captured."""
    told = refused_then_stepped(1.0)
    reason = engine._why_not_compiled()
    assert reason is None, f"the refusal was taken for a failure of the kernel: {reason}"
    print(told)


@check_on_card
def a_refusal_in_a_capture_is_not_remembered() -> str:
    """In a fresh process, for the engine remembers if its kernel can be used."""
    command = [sys.executable, __file__, DEVICE, "first-step-in-a-capture"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.stderr.strip().splitlines() or ["no message"])[-1]
    return done.stdout.strip()


@check_on_card  # last: what fails within a capture may take the context with it
def two_captures_with_no_step_between_them() -> str:
    """The second has no new pinned memory to ask for."""
    return captured(2)


# ---------------------------------------------------------------- running them


def main() -> int:
    """Runs all checks; returns the exit status."""
    start, results = time.monotonic(), []
    for function in CHECKS:
        began, ok, lost = time.monotonic(), True, False
        try:
            detail = function()
            synchronize()
        except Exception as raised:
            detail, ok = f"{type(raised).__name__}: {raised}".splitlines()[0][:300], False
            traceback.print_exc(limit=-4)
            lost = context_is_lost(DEVICE)
        seconds = round(time.monotonic() - began, 1)
        results.append({"check": function.__name__, "ok": ok, "detail": detail, "seconds": seconds})
        print(f"{'ok  ' if ok else 'FAIL'} {function.__name__} [{seconds} s] {detail}", flush=True)
        (OUT / "check.json").write_text(json.dumps(results, indent=1) + "\n")
        if lost:
            print(f"check: stopped, for the card's context is lost in {function.__name__}", flush=True)
            return CONTEXT_LOST
    failed = [result["check"] for result in results if not result["ok"]]
    names = f": {', '.join(failed)}" if failed else ""
    seconds = time.monotonic() - start
    print(f"check: {len(results) - len(failed)} passed, {len(failed)} failed{names} in {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[2:] == ["first-step-in-a-capture"]:
        first_step_in_a_capture()
    else:
        sys.exit(main())
