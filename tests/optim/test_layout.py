"""Tensors of other shapes than their parameters' are refused before anything is changed."""

import copy

import pytest
import torch
from flags_of_engines import every_engine
from torch import nn

from adamnx_hf import AdamNX, LayerwiseAdamNX, adamnx
from adamnx_hf.optim import layout

FORMATS = {
    "float32": {},
    "bfloat16": {"state_dtype": "bfloat16"},
    "int8": {"state_dtype": "int8"},
    "stochastic": {"param_rounding": "stochastic"},
    "kahan": {"param_rounding": "kahan"},
}
every_format = pytest.mark.parametrize("storage", FORMATS.values(), ids=FORMATS)
pytestmark = pytest.mark.usefixtures("on_a_card")

# The last is one whose moments have, packed in 8 bits, the very shape they had.
RESIZED = {"grown": (96, 128), "cut": (32, 128), "reshaped": (128, 64), "of longer rows": (64, 130)}


def build(storage, **options):
    torch.manual_seed(0)
    dtype = torch.bfloat16 if "param_rounding" in storage else torch.float32
    params = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((3,), (64, 128), (5,))]
    named = {"params": [("first", params[0]), ("second", params[1])]}, {"params": [("third", params[2])]}
    return params, AdamNX([named[1], named[0]], lr=0.01, **storage, **options)


def give_gradients(params):
    for param in params:
        param.grad = torch.ones_like(param)


def refused(params, optimizer, message, stepping):
    """Whether a step raises `message` and leaves everything as it is."""
    tensors = [(p.detach().clone(), copy.deepcopy(dict(optimizer.state[p]))) for p in params]
    with pytest.raises(RuntimeError, match=message) as error:
        stepping()
    assert "\n" not in str(error.value)
    for param, (value, state) in zip(params, tensors, strict=True):
        assert torch.equal(param, value)
        assert optimizer.state[param].keys() == state.keys()
        for key, old in state.items():
            new = optimizer.state[param][key]
            assert torch.equal(*(t.view(torch.int16) if t.dtype == torch.bfloat16 else t for t in (new, old)))
    return True


@every_format
@every_engine
def test_a_parameter_that_was_resized_after_a_step(flags, storage):
    params, optimizer = build(storage, **flags)
    give_gradients(params)
    optimizer.step()
    start = params[1].detach().clone()
    for shape in RESIZED.values():
        params[1].data = torch.ones(shape, dtype=params[1].dtype)
        params[1].grad = None
        give_gradients(params)
        was = (64, 136) if storage.get("state_dtype") == "int8" and shape != (64, 130) else (64, 128)
        message = (
            rf"exp_avg of parameter 'second' has shape \({was[0]}, {was[1]}\).* the parameter \({shape[0]}"
        )
        assert refused(params, optimizer, message, optimizer.step)
    # As it was, it goes on; and where it stays resized, with a state of its own.
    params[1].data, params[1].grad = start, torch.ones_like(start)
    optimizer.step()
    params[1].data, params[1].grad = torch.ones(96, 128, dtype=start.dtype), None
    del optimizer.state[params[1]]
    give_gradients(params)
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [3, 1, 3]


@every_engine
def test_moments_and_gradients_of_another_shape(flags):
    params, optimizer = build({}, **flags)
    give_gradients(params)
    optimizer.step()
    for role in ("grad", "exp_avg", "exp_avg_sq"):
        tensor = params[1].grad if role == "grad" else optimizer.state[params[1]][role]
        old = tensor.data
        for shape in ((64, 64), (64, 130), (128, 64), (1,)):
            tensor.data = torch.ones(shape)
            message = (
                rf"AdamNX: {role} of parameter 'second' has shape \({shape[0]},.*the parameter \(64, 128\)"
            )
            assert refused(params, optimizer, message, optimizer.step)
        tensor.data = old
    optimizer.step()


def test_a_residual_of_another_shape():
    params, optimizer = build(FORMATS["kahan"])
    give_gradients(params)
    optimizer.step()
    optimizer.state[params[1]]["param_residual"].resize_(64, 64)
    assert refused(params, optimizer, "param_residual of parameter 'second' has shape", optimizer.step)


def test_a_parameter_without_a_name_goes_by_group_and_place():
    params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizer = AdamNX([{"params": params[:1]}, {"params": params[1:]}])
    for steps in (0, 1):  # before there is any state, and with it
        give_gradients(params)
        params[2].grad.data = torch.ones(4)
        assert refused(params, optimizer, r"grad of parameter 1 of group 1 has shape \(4,\)", optimizer.step)
        assert [len(optimizer.state.get(p, {})) for p in params] == [3 * steps] * 3
        params[2].grad = None
        give_gradients(params)
        optimizer.step()


@every_format
def test_within_the_backward_pass(storage):
    dtype = torch.bfloat16 if "param_rounding" in storage else torch.float32
    for shape in RESIZED.values():
        param = nn.Parameter(torch.ones(64, 128, dtype=dtype))
        optimizer = LayerwiseAdamNX([param], max_grad_norm=1.0, **storage)
        param.grad = torch.ones_like(param)  # autograd would go by the shape it has seen first
        optimizer.step()
        param.data = torch.ones(shape, dtype=dtype)
        message = "exp_avg of parameter 0 of group 0 has shape"
        assert refused([param], optimizer, message, param.sum().backward)
        optimizer.zero_grad()
        del optimizer.state[param]
        param.sum().backward()
        optimizer.step()
        assert optimizer.grad_norm is not None and optimizer.state[param]["step"] == 1


@every_engine
@pytest.mark.parametrize("role", ["grad", "exp_avg", "exp_avg_sq"])
def test_the_functional_form(role, flags):
    numbers = {"beta1": 0.9, "beta2": 0.99, "lr": 0.5, "weight_decay": 0.1, "eps": 1e-8}
    for shape in ((2,), (5,), (2, 2), ()):
        tensors = {key: [torch.ones(4)] for key in ("param", "grad", "exp_avg", "exp_avg_sq")}
        tensors[role] = [torch.ones(shape)]
        step = torch.tensor(0.0)
        with pytest.raises(RuntimeError, match=rf"AdamNX: {role} of parameter 0 has shape .*\(4,\)"):
            adamnx(*tensors.values(), [step], **flags, **numbers)
        assert step == 0 and all(torch.equal(t, torch.ones_like(t)) for (t,) in tensors.values())


@pytest.mark.parametrize("short", range(1, 6))
def test_lists_of_unequal_length(short):
    numbers = {"beta1": 0.9, "beta2": 0.99, "lr": 0.5, "weight_decay": 0.1, "eps": 1e-8}
    columns = [[torch.ones(4) for _ in range(2)] for _ in range(4)]
    columns += [[torch.zeros(()) for _ in range(2)], [None, None]]
    columns[short].pop()
    with pytest.raises(ValueError, match=r"AdamNX: (1 state_steps for 2|.* 2 of param.* 1 of)"):
        adamnx(*columns[:5], param_rounding="kahan", param_residuals=columns[5], **numbers)
    assert torch.equal(columns[0][0], torch.ones(4)) and columns[4][0] == 0


def test_a_compiled_step(fresh_dynamo):
    params, optimizer = build({})
    give_gradients(params)
    step = torch.compile(optimizer.step, backend="eager")
    step()
    params[1].data, params[1].grad = torch.ones(64, 64), torch.ones(64, 64)
    assert refused(params, optimizer, "exp_avg of parameter 'second' has shape", step)


def test_what_is_remembered_makes_no_difference(monkeypatch):
    """Neither do torch's guards, which are not public: without them everything is asked at every step."""
    results = []
    for guards in (layout.TensorGuards, None):
        monkeypatch.setattr(layout, "TensorGuards", guards)
        params, optimizer = build({})
        give_gradients(params)
        for _ in range(3):
            optimizer.step()
        optimizer.state[params[1]]["exp_avg"].data = torch.ones(3)
        with pytest.raises(RuntimeError, match="exp_avg of parameter 'second'"):
            optimizer.step()
        results.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ((0, 1, 1, 1, 1), {}, "different lengths: 0 of param, 1 of grad"),
        ((0, 0, 0, 0, 1), {}, "1 state_steps for 0 parameters"),
        ((1, 1, 1, 1, 1), {"numbers": [0, 1]}, "2 numbers for 1 parameters"),
        ((1, 1, 1, 1, 1), {"param_rounding": "kahan", "param_residuals": []}, "0 of param_residual"),
        ((1, 1, 1, 1, 1), {"param_rounding": "kahan"}, "'kahan' needs param_residuals"),
        ((1, 1, 1, 1, 1), {"beta2_schedule": ["adam"]}, "Invalid beta2_schedule"),
    ],
)
def test_lists_that_are_empty_and_options_of_no_use(columns, options, message):
    numbers = {"beta1": 0.9, "beta2": 0.99, "lr": 0.1, "weight_decay": 0.0, "eps": 1e-8}
    *tensors, steps = [[torch.zeros((), dtype=torch.bfloat16)] * length for length in columns]
    with pytest.raises(ValueError, match=message):
        adamnx(*tensors, steps, **numbers, **options)


@every_engine
def test_a_state_on_another_device(flags):
    params, optimizer = build({}, **flags)
    give_gradients(params)
    optimizer.step()
    before = [param.detach().clone() for param in params]
    state = optimizer.state[params[2]]
    state["exp_avg"] = state["exp_avg"].to("meta")
    with pytest.raises(
        RuntimeError, match="exp_avg of parameter 'third' is on meta, the parameter on"
    ) as error:
        optimizer.step()
    assert "load_state_dict(optimizer.state_dict()) moves the state" in str(error.value)
    assert all(map(torch.equal, params, before)) and optimizer.state[params[0]]["step"] == 1
