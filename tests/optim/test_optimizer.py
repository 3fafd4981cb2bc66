"""What AdamNX shares with torch.optim.AdamW: arguments, groups, state, hooks, schedulers, autograd."""

import copy
import functools
import gc
import io
import itertools
import pickle
import subprocess
import sys
import warnings
import weakref
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau
from torch.testing import assert_close

from adamnx_hf import AdamNX, adamnx

MISSING = ""
try:  # what torch's own tests import does not all come with torch
    from torch.testing._internal import common_optimizers as torchs
except ModuleNotFoundError as error:
    torchs, MISSING = None, f"torch's own tests need {error.name}"

IMPLEMENTATIONS = {
    "default": {},
    "forloop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
every_implementation = pytest.mark.parametrize("flags", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)


def parameters(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes or [(3, 4), (4,)]]


def train(optimizer, steps, start=0):
    """Steps with gradients that depend on the step and on the parameter's place alone."""
    for step in range(start, start + steps):
        for i, param in enumerate(itertools.chain(*(group["params"] for group in optimizer.param_groups))):
            generator = torch.Generator().manual_seed(1000 * step + i)
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def values(optimizer):
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def through_file(obj):
    file = io.BytesIO()
    torch.save(obj, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---------------------------------------------------------------- PyTorch's own cases for AdamW

TORCH_CASES, ERROR_CASES = {}, {}
if torchs:
    inputs = torchs.optim_inputs_func_adamw("cpu")
    TORCH_CASES = {i.desc: i.kwargs for i in inputs if "amsgrad" not in i.kwargs}
    inputs = torchs.optim_error_inputs_func_adamw("cpu", torch.float32)
    ERROR_CASES = {i.optimizer_error_input.desc: i for i in inputs}
# What the function above adds for CUDA alone.
TENSORS = {"lr": torch.tensor(1e-3), "betas": (torch.tensor(0.9), torch.tensor(0.99))}
CAPTURABLE_CASES = {
    "capturable": {},
    "weight decay, capturable": {"weight_decay": 0.1},
    "Tensor lr, capturable": {"lr": torch.tensor(1e-3)},
    "Tensor lr, Tensor betas, capturable": TENSORS,
    "Tensor betas of 3 and 2 dimensions, capturable": {
        "betas": (torch.tensor([[[0.9]]]), torch.tensor([[0.99]]))
    },
}
CAPTURABLE_CASES = {desc: {**kwargs, "capturable": True} for desc, kwargs in CAPTURABLE_CASES.items()}


def with_torchs_own(name, cases):
    """Parametrizes over `cases`; one that is skipped stands for those of torch that cannot be had."""
    missing = [] if torchs else [pytest.param(None, id="torch's own", marks=pytest.mark.skip(MISSING))]
    return pytest.mark.parametrize(name, [pytest.param(cases[key], id=key) for key in cases] + missing)


torch_case = with_torchs_own("kwargs", {**TORCH_CASES, **CAPTURABLE_CASES})


@pytest.mark.skipif(not torchs, reason=MISSING)
def test_pytorch_has_the_cases_these_tests_count_on():
    assert len(TORCH_CASES) >= 4
    assert len(ERROR_CASES) >= 10


@torch_case
@pytest.mark.parametrize(
    "flags", [{"foreach": True}, {"fused": True}, {}], ids=["foreach", "fused", "default"]
)
def test_implementations_go_the_same_way(kwargs, flags):
    if kwargs.get("capturable") and flags.get("fused"):
        pytest.skip("fused excludes capturable")
    forloop, other = (
        AdamNX(parameters((3, 4), (4,), (), (0,)), **kwargs, **f) for f in ({"foreach": False}, flags)
    )
    for optimizer in (forloop, other):
        train(optimizer, 5)
    assert_close(values(forloop), values(other))
    assert_close(forloop.state_dict()["state"], other.state_dict()["state"])


@torch_case
def test_parameters_without_gradient_stay_as_they_are(kwargs):
    params = parameters((3, 4), (0,))
    optimizer = AdamNX(params, **kwargs)
    before = values(optimizer)
    optimizer.step()
    assert_close(values(optimizer), before, rtol=0, atol=0)
    assert not optimizer.state_dict()["state"]
    params[1].grad = torch.empty(0)  # nothing in it
    optimizer.step()
    assert_close(values(optimizer), before, rtol=0, atol=0)


@torch_case
def test_zero_gradients_without_weight_decay_move_nothing(kwargs):
    optimizer = AdamNX(parameters(), **{**kwargs, "weight_decay": 0.0})
    before = values(optimizer)
    for param in optimizer.param_groups[0]["params"]:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert_close(values(optimizer), before, rtol=0, atol=0)


@torch_case
def test_groups_have_their_own_lr_and_weight_decay(kwargs):
    first, second = parameters()
    own = {"lr": 0.01, "weight_decay": 0.5}
    together = AdamNX([{"params": [first]}, {"params": [second], **own}], **kwargs)
    apart = [AdamNX([p], **k) for p, k in zip(parameters(), (kwargs, {**kwargs, **own}), strict=True)]
    for step in range(3):
        train(together, 1, step)
        for optimizer, param in zip(apart, (first, second), strict=True):
            optimizer.param_groups[0]["params"][0].grad = param.grad.clone()
            optimizer.step()
    assert_close(values(together), [v for optimizer in apart for v in values(optimizer)])


@torch_case
def test_state_dict_is_deterministic_and_goes_round(kwargs):
    straight, saved, resumed = (AdamNX(parameters(), **kwargs) for _ in range(3))
    train(straight, 6)
    train(saved, 3)
    once, again = saved.state_dict(), saved.state_dict()
    assert once["param_groups"] == again["param_groups"]
    assert_close(once["state"], again["state"], rtol=0, atol=0)
    resumed.load_state_dict(through_file(saved.state_dict()))
    assert resumed.state_dict()["param_groups"] == saved.state_dict()["param_groups"]
    for ours, theirs in zip(
        *(itertools.chain(*(g["params"] for g in o.param_groups)) for o in (resumed, saved)), strict=True
    ):
        ours.data.copy_(theirs)
    train(resumed, 3, start=3)
    assert_close(values(resumed), values(straight), rtol=0, atol=0)
    assert_close(resumed.state_dict()["state"], straight.state_dict()["state"], rtol=0, atol=0)


@torch_case
@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)
def test_copied_optimizer_goes_on_alike_and_apart(kwargs, way):
    original = AdamNX(parameters(), **kwargs)
    train(original, 2)
    copied = way(original)
    before = values(original), copy.deepcopy(original.state_dict()["state"])
    train(copied, 2, start=2)
    assert_close(values(original), before[0], rtol=0, atol=0)
    assert_close(original.state_dict()["state"], before[1], rtol=0, atol=0)
    train(original, 2, start=2)
    assert_close(values(original), values(copied), rtol=0, atol=0)
    assert_close(original.state_dict()["state"], copied.state_dict()["state"], rtol=0, atol=0)


@with_torchs_own("case", ERROR_CASES)
def test_wrong_arguments_fail_as_in_adamw(case):
    given = case.optimizer_error_input
    params = [nn.Parameter(torch.ones(2, 3))] if given.params is None else given.params
    if issubclass(case.error_type, Warning):
        with pytest.warns(case.error_type, match=case.error_regex):
            AdamNX(params, **given.kwargs)
    else:
        with pytest.raises(case.error_type, match=case.error_regex):
            AdamNX(params, **given.kwargs)


# ---------------------------------------------------------------- hyperparameters

NAN, INF = float("nan"), float("inf")
INVALID = [
    ({"lr": -0.5}, ValueError, "Invalid learning rate: -0.5; it must be at least 0"),
    ({"lr": "1e-3"}, TypeError, "Invalid learning rate: '1e-3' is not a number; YAML takes 1e-3 for text"),
    ({"lr": None}, TypeError, "Invalid learning rate: None is not a number$"),
    ({"eps": "1e-8"}, TypeError, "Invalid epsilon value: '1e-8' is not a number"),
    ({"betas": 0.9}, TypeError, "betas must be two numbers, β1 and β2, got 0.9"),
    ({"betas": "0.9"}, ValueError, "betas must be two numbers, β1 and β2, got 0.9"),
    ({"betas": (0.9, "0.99")}, TypeError, "Invalid beta parameter at index 1: '0.99' is not a number"),
    ({"lr": NAN}, ValueError, "Invalid learning rate: nan"),
    ({"lr": torch.tensor(-0.5)}, ValueError, "Invalid learning rate: -0.5"),
    ({"eps": -1e-8}, ValueError, "Invalid epsilon value: -1e-08"),
    ({"eps": NAN}, ValueError, "Invalid epsilon value: nan"),
    ({"weight_decay": -0.25}, ValueError, "Invalid weight_decay value: -0.25"),
    ({"weight_decay": NAN}, ValueError, "Invalid weight_decay value: nan"),
    ({"betas": (-0.1, 0.99)}, ValueError, "Invalid beta parameter at index 0: -0.1"),
    ({"betas": (1.0, 0.99)}, ValueError, "Invalid beta parameter at index 0: 1.0"),
    (
        {"betas": (0.9, 1.0)},
        ValueError,
        "Invalid beta parameter at index 1: 1.0; it must be at least 0 and below 1",
    ),
    ({"betas": (0.9, NAN)}, ValueError, "Invalid beta parameter at index 1: nan"),
    ({"betas": (0.9, 0.99, 0.5)}, ValueError, r"two numbers.*\(0.9, 0.99, 0.5\)"),
    ({"betas": (torch.tensor(0.9), torch.tensor([0.9, 0.8]))}, ValueError, r"betas\[1\] must be 1-element"),
    ({"betas": (torch.tensor(0.9), torch.tensor(1.5))}, ValueError, "at index 1: 1.5"),
    (
        {"beta2_schedule": "cosine"},
        ValueError,
        "Invalid beta2_schedule: 'cosine'; choose one of adamnx, adam,",
    ),
    ({"lr": INF}, ValueError, "Invalid learning rate: inf; it must be finite"),
    ({"lr": torch.tensor(INF)}, ValueError, "Invalid learning rate: inf; it must be finite"),
    ({"eps": INF}, ValueError, "Invalid epsilon value: inf; it must be finite"),
    ({"weight_decay": INF}, ValueError, "Invalid weight_decay value: inf; it must be finite"),
    ({"lr": Fraction(1, 8)}, TypeError, r"Invalid learning rate: Fraction\(1, 8\) is not a number"),
    ({"betas": {0.9, 0.99}}, TypeError, "betas must be two numbers, β1 and β2, got {"),
    ({"betas": (Fraction(1, 2), 0.99)}, TypeError, "Invalid beta parameter at index 0: Fraction"),
    ({"state_dtype": []}, ValueError, r"Invalid state_dtype: \[\]; choose one of float32, bfloat16, int8"),
    ({"state_dtype": torch.int8}, ValueError, r"Invalid state_dtype: torch\.int8"),
    ({"beta2_schedule": []}, ValueError, r"Invalid beta2_schedule: \[\]"),
    ({"param_rounding": []}, ValueError, r"Invalid param_rounding: \[\]"),
    ({"maximize": "false"}, TypeError, "Invalid maximize: 'false'; it must be True or False"),
    ({"fused": "no"}, TypeError, "Invalid fused: 'no'; it must be True, False or None"),
    ({"foreach": 1}, TypeError, "Invalid foreach: 1; it must be True, False or None"),
    ({"capturable": None}, TypeError, "Invalid capturable: None; it must be True or False"),
    ({"differentiable": "x"}, TypeError, "Invalid differentiable: 'x'"),
    ({"foreach": True, "fused": True}, RuntimeError, "`fused` and `foreach` cannot be `True` together"),
    ({"fused": True, "differentiable": True}, RuntimeError, "`fused` does not support `differentiable`"),
]
invalid = pytest.mark.parametrize(("kwargs", "error", "message"), INVALID)


@invalid
def test_invalid_hyperparameter_is_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        AdamNX(parameters(), **kwargs)


@invalid
def test_invalid_group_is_refused_before_anything_is_added(kwargs, error, message):
    optimizer = AdamNX(parameters())
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": parameters((2,)), **kwargs})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("value", ["1", [1.0], Fraction(1, 2)])
def test_max_grad_norm_must_be_a_number(value):
    with pytest.raises(TypeError, match=r"Invalid max_grad_norm: .* is not a number"):
        AdamNX(parameters(), max_grad_norm=value)
    AdamNX(parameters(), max_grad_norm=INF)  # the norm alone


def test_integer_parameters_are_refused_where_they_have_gradients():
    # Frozen ones, as of quantized models, may be among the parameters.
    frozen, numbers = torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    params = parameters()
    optimizer = AdamNX([*params, frozen])
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    columns = [[numbers] for _ in range(4)]
    with pytest.raises(TypeError, match=r"not torch\.int64"):
        adamnx(*columns, [torch.zeros(())], **ADAMNX_NUMBERS)
    assert torch.equal(numbers, torch.ones(3, dtype=torch.int64))


ADAMNX_NUMBERS = {"beta1": 0.9, "beta2": 0.99, "lr": 0.1, "weight_decay": 0.0, "eps": 1e-8}


@pytest.mark.parametrize("option", ["beta2_schedule", "param_rounding"])
def test_the_functional_form_names_an_unknown_choice(option):
    columns = [[torch.ones(3)] for _ in range(4)]
    with pytest.raises(ValueError, match=f"Invalid {option}: 'no-such'; choose one of"):
        adamnx(*columns, [torch.zeros(())], **ADAMNX_NUMBERS, **{option: "no-such"})


def test_defaults_are_the_papers():
    assert AdamNX(parameters()).defaults == {
        "lr": 1e-3,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "weight_decay": 1e-2,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "beta2_schedule": "adamnx",
        "state_dtype": None,
        "param_rounding": "nearest",
    }


@pytest.mark.parametrize("capturable", [False, True])
def test_flags_left_open_stay_open(capturable):
    optimizer = AdamNX(parameters(), capturable=capturable)
    train(optimizer, 2)
    for group in (*optimizer.param_groups, *optimizer.state_dict()["param_groups"]):
        assert group["foreach"] is None
        assert group["fused"] is None
        assert set(group) == {"params", *optimizer.defaults}


@every_implementation
@pytest.mark.parametrize(
    "kwargs", [{}, {"weight_decay": 0.1, "maximize": True}, {"betas": (0.5, 0.9), "eps": 1e-3}]
)
def test_adam_schedule_is_adamw(kwargs, flags):
    kwargs = {"lr": 0.01, "betas": (0.9, 0.999), **kwargs}
    adamw = AdamW(parameters(), foreach=False, **kwargs)
    adamnx = AdamNX(parameters(), beta2_schedule="adam", **flags, **kwargs)
    for optimizer in (adamw, adamnx):
        train(optimizer, 50)
    # Rounding alone: AdamW divides by the bias corrections after the fact, in another order.
    assert_close(values(adamnx), values(adamw), rtol=1e-5, atol=1e-5)


def test_adam_schedule_is_adamw_only_while_beta1_is_constant():
    """docs/optimizer.md has these numbers: the lengths of steps, in lr, of a constant gradient."""

    def lengths(make, steps):
        param = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = make([param], lr=0.01, betas=(0.9, 0.999), weight_decay=0.0)
        scheduler, result = OneCycleLR(optimizer, 0.1, total_steps=steps + 1), []
        for _ in range(steps):
            param.grad, before, lr = torch.ones_like(param), param.item(), optimizer.param_groups[0]["lr"]
            optimizer.step()
            result.append((before - param.item()) / lr)
            scheduler.step()
        return result

    ours = lengths(functools.partial(AdamNX, beta2_schedule="adam"), 70)
    assert ours == pytest.approx([1.0] * 70)
    short, long = lengths(AdamW, 70), lengths(AdamW, 1000)
    assert min(short) == short[10] == pytest.approx(0.79, abs=0.005)
    assert min(long) == pytest.approx(0.985, abs=0.0005)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    optimizer = AdamNX(embedding.parameters())
    before = values(optimizer)
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert_close(values(optimizer), before, rtol=0, atol=0)
    assert not optimizer.state_dict()["state"]


def test_optimizer_needs_torch_alone():
    program = """
import sys

class Hide:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *args):
        if name.partition(".")[0] in {"transformers", "accelerate", "datasets", "evaluate", "peft"}:
            return None
        return self.finder.find_spec(name, *args)

sys.meta_path[:] = map(Hide, sys.meta_path)
import torch
from adamnx_hf.optim import AdamNX, adamnx, from_adamw, param_groups
AdamNX(param_groups(torch.nn.Linear(2, 1)))
param, grad, m, v, step = torch.tensor([[1.0], [1.0], [0.0], [0.0], [0.0]]).unbind()
numbers = {"beta1": 0.9, "beta2": 0.99, "lr": 0.25, "weight_decay": 0.0, "eps": 0.0}
adamnx([param], [grad], [m], [v], [step.squeeze()], **numbers)
print(param.item())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "0.75", done.stderr


# ---------------------------------------------------------------- closures, hooks, names, schedulers


def test_closure_is_called_once_with_grad_and_its_loss_returned():
    (param,) = parameters((3,))
    optimizer = AdamNX([param], lr=0.1)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure)) for _ in range(20)]
    assert calls == [True] * 20
    assert losses[0] == pytest.approx(float(parameters((3,))[0].square().sum()))
    assert losses[-1] < losses[0]
    assert optimizer.step() is None


def test_step_hooks_run_around_the_step():
    optimizer = AdamNX(parameters())
    seen = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(("pre", len(o.state))))
    optimizer.register_step_post_hook(lambda o, *_: seen.append(("post", len(o.state))))
    train(optimizer, 1)
    assert seen == [("pre", 0), ("post", 2)]


def test_state_dict_hooks():
    optimizer = AdamNX(parameters())
    train(optimizer, 1)
    seen = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, state_dict: {**state_dict, "note": "mine"})
    assert optimizer.state_dict()["note"] == "mine"
    assert seen == ["pre"]


def test_load_state_dict_hooks_see_and_change_what_is_loaded():
    saved = AdamNX(parameters((3,)))
    train(saved, 2)
    param = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = AdamNX([param])
    seen = []

    def before(_, state_dict):
        changed = copy.deepcopy(state_dict)
        changed["state"][0]["step"] += 5
        changed["state"][0]["exp_avg"] *= 2
        return changed

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.state[param]["exp_avg"].dtype))
    state_dict = saved.state_dict()
    exp_avg = state_dict["state"][0]["exp_avg"].clone()
    for _ in range(2):  # no hook of ours is left behind
        optimizer.load_state_dict(state_dict)
        assert optimizer.state[param]["step"] == 7
        assert_close(optimizer.state[param]["exp_avg"], 2 * exp_avg, rtol=0, atol=0)
    assert seen == [torch.float32] * 2
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1
    assert len(optimizer._optimizer_load_state_dict_post_hooks) == 1


def test_failed_load_leaves_no_hook_behind():
    optimizer = AdamNX(parameters())
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(AdamNX(parameters((3,))).state_dict())
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    assert not optimizer._optimizer_load_state_dict_post_hooks


def test_named_parameters_keep_their_names():
    model = nn.Linear(3, 2)
    optimizer = AdamNX(model.named_parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    for group in (optimizer.param_groups[0], saved["param_groups"][0]):
        assert group["param_names"] == ["weight", "bias"]
    resumed = AdamNX(copy.deepcopy(model).named_parameters())
    resumed.load_state_dict(saved)
    assert resumed.state_dict()["param_groups"] == saved["param_groups"]


@every_implementation
def test_lr_schedules_are_followed(flags):
    scheduled, by_hand = AdamNX(parameters(), lr=0.1, **flags), AdamNX(parameters(), lr=0.1, **flags)
    scheduler = LambdaLR(scheduled, lambda epoch: 0.5**epoch)
    for step in range(4):
        by_hand.param_groups[0]["lr"] = 0.1 * 0.5**step
        for optimizer in (scheduled, by_hand):
            train(optimizer, 1, step)
        scheduler.step()
    assert_close(values(scheduled), values(by_hand), rtol=0, atol=0)


def test_tensor_lr_is_read_at_each_step():
    as_tensor, as_float = AdamNX(parameters(), lr=torch.tensor(0.1)), AdamNX(parameters(), lr=0.1)
    scheduler = LambdaLR(as_tensor, lambda epoch: 0.5**epoch)
    for step in range(4):
        as_float.param_groups[0]["lr"] = 0.1 * 0.5**step
        for optimizer in (as_tensor, as_float):
            train(optimizer, 1, step)
        scheduler.step()
    assert_close(values(as_tensor), values(as_float))


def test_reduce_on_plateau():
    optimizer = AdamNX(parameters(), lr=0.1)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    before = values(optimizer)
    for step in range(3):
        train(optimizer, 1, step)
        scheduler.step(1.0)  # no progress
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    assert not torch.equal(values(optimizer)[0], before[0])


@every_implementation
def test_one_cycle_drives_lr_and_beta1(flags):
    scheduled, by_hand = AdamNX(parameters(), **flags), AdamNX(parameters(), **flags)
    scheduler = OneCycleLR(scheduled, max_lr=0.1, total_steps=6, base_momentum=0.7, max_momentum=0.95)
    betas = []
    for step in range(5):
        group = scheduled.param_groups[0]
        betas.append(group["betas"][0])
        assert group["betas"][1] == 0.99
        by_hand.param_groups[0].update(lr=float(group["lr"]), betas=tuple(map(float, group["betas"])))
        for optimizer in (scheduled, by_hand):
            train(optimizer, 1, step)
        scheduler.step()
    assert min(betas) < 0.75 < 0.9 < max(betas)
    assert_close(values(scheduled), values(by_hand), rtol=0, atol=0)


def test_a_schedule_that_puts_a_number_beside_a_tensor_is_saved_and_loaded():
    betas = torch.tensor(0.9), torch.tensor(0.99)
    optimizer = AdamNX(parameters(), lr=torch.tensor(0.01), betas=betas)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=6)
    train(optimizer, 2)
    scheduler.step()
    assert [type(beta) for beta in optimizer.param_groups[0]["betas"]] == [float, torch.Tensor]
    resumed = AdamNX(copy.deepcopy(optimizer.param_groups[0]["params"]), lr=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one in (optimizer, resumed):
        train(one, 2, 2)
    assert_close(values(resumed), values(optimizer), rtol=0, atol=0)
    for group in ({"betas": (0.9, betas[1])}, {"betas": (betas[0], 0.99)}):
        with pytest.raises(ValueError, match="betas must be either both floats or both Tensors"):
            AdamNX(parameters(), **group)
        with pytest.raises(ValueError, match="betas must be either both floats or both Tensors"):
            resumed.add_param_group({"params": [nn.Parameter(torch.ones(2))], **group})


def test_grad_scaler_skips_the_step_on_overflow():
    optimizer = AdamNX(parameters((3,)))
    (param,) = optimizer.param_groups[0]["params"]
    before = values(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor, steps in ((float("inf"), 0), (1.0, 1)):
        optimizer.zero_grad()
        scaler.scale((param * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert int(optimizer.state[param].get("step", 0)) == steps
        assert torch.equal(param.detach(), before[0]) == (steps == 0)


# ---------------------------------------------------------------- differentiable


def test_loss_after_some_steps_is_differentiable_in_lr_betas_and_start():
    torch.manual_seed(0)
    target, start = torch.randn(2, 3, dtype=torch.float64)

    def final_loss(lr, beta1, beta2, start):
        param = start.clone()
        optimizer = AdamNX([param], lr=lr, betas=(beta1, beta2), differentiable=True)
        for _ in range(3):
            now = param.clone()  # autograd keeps it, and the step is in place
            param.grad = 2 * (now - target) + now**3
            optimizer.step()
        return (param - target).square().sum()

    inputs = [torch.tensor(x, dtype=torch.float64) for x in (0.05, 0.9, 0.9)]
    inputs = [t.requires_grad_() for t in (*inputs, start)]
    assert torch.autograd.gradcheck(final_loss, inputs)
    gradients = torch.autograd.grad(final_loss(*inputs), inputs)
    assert all((g != 0).all() for g in gradients)


@pytest.mark.parametrize("state", [{}, {"step": 3.0}])
@pytest.mark.parametrize("kwargs", [{}, {"weight_decay": 0.1, "maximize": True}])
def test_step_is_differentiable_in_gradient_and_moments(kwargs, state):
    torch.manual_seed(0)
    tensors = torch.rand(4, 3, dtype=torch.float64) + 0.1  # v must be positive

    def one_step(param, grad, exp_avg, exp_avg_sq):
        param = param.clone()
        param.grad = grad
        optimizer = AdamNX([param], differentiable=True, **kwargs)
        if state:
            moments = {"exp_avg": exp_avg.clone(), "exp_avg_sq": exp_avg_sq.clone()}
            optimizer.state[param] = {"step": torch.tensor(state["step"]), **moments}
        optimizer.step()
        return param, *(optimizer.state[param][name] for name in ("exp_avg", "exp_avg_sq"))

    assert torch.autograd.gradcheck(one_step, [t.clone().requires_grad_() for t in tensors])


# ---------------------------------------------------------------- state between steps


def alone(param, grads, **kwargs):
    """A parameter's value after `grads`, in an optimizer of its own."""
    param = nn.Parameter(param)
    optimizer = AdamNX([param], **kwargs)
    for grad in grads:
        param.grad = grad
        optimizer.step()
    return param.detach()


@every_implementation
def test_frozen_and_thawed_parameters_go_as_if_alone(flags):
    params = parameters((3,), (2, 2), (4,))
    starts = [p.detach().clone() for p in params]
    seen = [[], [], []]
    optimizer = AdamNX(params, lr=0.1, **flags)
    schedule = [[0, 1, 2], [0, 2], [0, 2], [1], [0, 1, 2], [2, 0], [0, 1, 2]]
    for step, moving in enumerate(schedule):
        for i, param in enumerate(params):
            param.grad = None
            if i in moving:
                torch.manual_seed(100 * step + i)
                param.grad = torch.randn_like(param)
                seen[i].append(param.grad.clone())
        optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in params] == [6, 4, 6]
    for param, start, grads in zip(params, starts, seen, strict=True):
        assert_close(param.detach(), alone(start, grads, lr=0.1, **flags))


@every_implementation
def test_group_added_in_the_middle(flags):
    first, second = parameters((3,), (4,))
    starts = first.detach().clone(), second.detach().clone()
    optimizer = AdamNX([first], lr=0.1, **flags)
    grads = [torch.randn(3, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    for step, grad in enumerate(grads):
        if step == 2:
            optimizer.add_param_group({"params": [second], "lr": 0.2})
        first.grad, second.grad = grad, torch.full((4,), float(step))
        optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in (first, second)] == [4, 2]
    assert_close(first.detach(), alone(starts[0], grads, lr=0.1, **flags))
    assert_close(
        second.detach(), alone(starts[1], [torch.full((4,), float(s)) for s in (2, 3)], lr=0.2, **flags)
    )


# The optimizer remembers which tensors it has examined. Whatever a user does to the state, the parameters
# or the groups between two steps must count all the same: as in a fresh optimizer that is given the result.


def clear_all(optimizer, params):
    optimizer.state.clear()


def reset_one(optimizer, params):
    optimizer.state[params[1]] = {}


def delete_one(optimizer, params):
    del optimizer.state[params[1]]


def replace_moments(optimizer, params):
    for param in params:
        optimizer.state[param]["exp_avg"] = torch.full_like(param, 0.5)
        optimizer.state[param]["exp_avg_sq"] = torch.full_like(param, 2.0)


def replace_one_moment(optimizer, params):
    optimizer.state[params[1]]["exp_avg"] = torch.full_like(params[1], 0.5)


def moments_of_another_layout(optimizer, params):
    state = optimizer.state[params[0]]
    state["exp_avg"] = state["exp_avg"].t().contiguous().t()


def moments_of_another_dtype(optimizer, params):
    for param in params:
        optimizer.state[param]["exp_avg_sq"] = optimizer.state[param]["exp_avg_sq"].bfloat16()


def edit_moments(optimizer, params):
    optimizer.state[params[1]]["exp_avg_sq"].mul_(3)


def replace_steps(optimizer, params):
    for i, param in enumerate(params):
        optimizer.state[param]["step"] = torch.tensor(float(i + 7))


def replace_one_step(optimizer, params):
    optimizer.state[params[1]]["step"] = torch.tensor(40.0)


def edit_one_step(optimizer, params):
    optimizer.state[params[1]]["step"].fill_(40.0)


def edit_all_steps(optimizer, params):
    for param in params:
        optimizer.state[param]["step"].add_(5)


def swap_steps(optimizer, params):
    edit_one_step(optimizer, params)
    first, second = optimizer.state[params[0]], optimizer.state[params[1]]
    first["step"], second["step"] = second["step"], first["step"]


def steps_moved_by_data(optimizer, params):  # a recipe found in forums for moving an optimizer to a device
    for param in params:
        for tensor in optimizer.state[param].values():
            tensor.data = tensor.data.clone()


def param_of_another_layout(optimizer, params):
    params[0].data = params[0].data.t().contiguous().t()


def params_to_double(optimizer, params):
    for param in params:
        param.data, param.grad = param.data.double(), None


def one_param_to_double(optimizer, params):
    params[0].data, params[0].grad = params[0].data.double(), None


def params_to_bfloat16(optimizer, params):
    for param in params:
        param.data, param.grad = param.data.bfloat16(), None


def params_reordered(optimizer, params):
    optimizer.param_groups[0]["params"].reverse()


def param_taken_out(optimizer, params):
    optimizer.param_groups[0]["params"].pop(0)


def group_taken_out(optimizer, params):
    optimizer.param_groups.pop(0)
    optimizer.add_param_group({"params": params})


INTERVENTIONS = [
    clear_all,
    reset_one,
    delete_one,
    replace_moments,
    replace_one_moment,
    moments_of_another_layout,
    moments_of_another_dtype,
    edit_moments,
    replace_steps,
    replace_one_step,
    edit_one_step,
    edit_all_steps,
    swap_steps,
    steps_moved_by_data,
    param_of_another_layout,
    params_to_double,
    one_param_to_double,
    params_to_bfloat16,
    params_reordered,
    param_taken_out,
    group_taken_out,
]


@pytest.mark.parametrize(
    "flags", [*IMPLEMENTATIONS.values(), {"capturable": True}], ids=[*IMPLEMENTATIONS, "capturable"]
)
@pytest.mark.parametrize("intervene", INTERVENTIONS)
def test_interventions_between_steps_count(intervene, flags):
    params = parameters((2, 3), (4,), (2,))
    optimizer = AdamNX(params, lr=0.1, **flags)
    train(optimizer, 3)
    intervene(optimizer, params)
    # The fresh optimizer: copies of all tensors as they are now, known to nobody.
    copies = {p: nn.Parameter(p.detach().clone()) for p in params}
    fresh = AdamNX([copies[p] for p in optimizer.param_groups[0]["params"]], lr=0.1, **flags)
    for group, other in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        other.update({key: value for key, value in group.items() if key != "params"})
    for param, state in optimizer.state.items():
        fresh.state[copies[param]] = {key: value.detach().clone() for key, value in state.items()}
    for step in (3, 4):
        train(optimizer, 1, step)
        train(fresh, 1, step)
        for param, copied in copies.items():
            assert_close(param, copied)
            assert_close(dict(optimizer.state[param]), dict(fresh.state[copied]))


@pytest.mark.parametrize("release", [clear_all, replace_moments])
def test_moments_taken_out_of_the_state_are_freed(release):
    # Those who offload the state between two steps want the memory back now, not after the next step.
    params = parameters()
    optimizer = AdamNX(params)
    train(optimizer, 2)
    old = [weakref.ref(optimizer.state[p][name]) for p in params for name in ("exp_avg", "exp_avg_sq")]
    release(optimizer, params)
    gc.collect()
    assert [ref() for ref in old] == [None] * 4


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("param_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("moment_dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_moments_are_loaded_in_the_dtype_they_were_saved_in(param_dtype, moment_dtype):
    param = nn.Parameter(torch.ones(3, dtype=param_dtype))
    optimizer = AdamNX([param])
    train(optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        saved["state"][0][name] = torch.tensor([1 / 3, 2 / 3, 1.0]).to(moment_dtype)
    optimizer.load_state_dict(through_file(saved))
    for name in ("exp_avg", "exp_avg_sq"):
        assert_close(optimizer.state[param][name], saved["state"][0][name], rtol=0, atol=0)
    train(optimizer, 1, start=2)
    assert optimizer.state[param]["step"] == 3
    assert optimizer.state[param]["exp_avg"].dtype == moment_dtype


@pytest.mark.parametrize("saver", [torch.optim.Adam, AdamW])
def test_adamw_checkpoint_is_refused_with_the_way_out(saver):
    params = parameters()
    adamw = saver(params)
    train(adamw, 1)
    optimizer = AdamNX(params)
    with pytest.raises(ValueError, match=r"adamnx_hf\.from_adamw\("):
        optimizer.load_state_dict(adamw.state_dict())
    assert not optimizer.state


def test_adamw_checkpoint_that_a_hook_converts_is_loaded():
    params = parameters()
    adamw = AdamW(params)
    train(adamw, 1)
    optimizer = AdamNX(params)

    def convert(_, state_dict):
        adams = {"amsgrad", "decoupled_weight_decay"}
        groups = [{k: v for k, v in g.items() if k not in adams} for g in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(convert)
    optimizer.load_state_dict(adamw.state_dict())
    assert optimizer.state[params[0]]["step"] == 1


@every_implementation
@pytest.mark.parametrize("as_step", [torch.tensor, float, int, lambda t: torch.tensor(int(t))])
def test_authors_checkpoint_is_loaded(as_step, flags):
    straight, authors = AdamNX(parameters(), lr=0.1, **flags), AdamNX(parameters(), lr=0.1, **flags)
    train(straight, 5)
    train(authors, 3)
    saved = authors.state_dict()
    known = ("lr", "betas", "eps", "weight_decay", "params")
    saved["param_groups"] = [{key: group[key] for key in known} for group in saved["param_groups"]]
    for state in saved["state"].values():
        state["step"] = as_step(float(state["step"]))
    resumed = AdamNX(authors.param_groups[0]["params"], **flags)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["beta2_schedule"] == "adamnx"
    train(resumed, 2, start=3)
    assert_close(values(resumed), values(straight))


@pytest.mark.parametrize("saved_with", [False, True])
@pytest.mark.parametrize("default_dtype", [torch.float32, torch.float64])
def test_step_is_a_float_tensor_where_the_flags_want_it(saved_with, default_dtype):
    torch.set_default_dtype(default_dtype)
    try:
        params = parameters()
        optimizer = AdamNX(params, capturable=saved_with)
        train(optimizer, 1)
        optimizer.load_state_dict(through_file(optimizer.state_dict()))
        for param in params:
            step = optimizer.state[param]["step"]
            assert step.dtype == torch.float64  # float32 would end at 2^24
            assert step.shape == ()
            assert step.device.type == "cpu"
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_step_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for flags in IMPLEMENTATIONS.values():
            train(AdamNX(parameters(), **flags), 2)
