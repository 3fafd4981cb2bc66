"""States that are not AdamNX's, or damaged: refused with a clear error, nothing overwritten."""

import copy

import pytest
import torch
from torch import nn

from adamnx_hf import AdamNX, from_adamw
from adamnx_hf.catalog import AdaX
from adamnx_hf.optim.checkpoint import check_state_dict


def model(width=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2))


def stepped(make, module=None, steps=2):
    module = module or model()
    optimizer = make(module.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    return optimizer


def adafactor_of_transformers(params):
    return pytest.importorskip("transformers.optimization").Adafactor(params)


class EightBit(torch.optim.Optimizer):
    """Its state has the names and types of bitsandbytes' Adam8bit, which needs a GPU to step."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0})

    def step(self):
        for param in self.param_groups[0]["params"]:
            codes = torch.zeros(param.shape, dtype=torch.uint8)
            self.state[param] = {
                "step": 1,
                "state1": codes,
                "state2": codes,
                "qmap1": torch.zeros(256),
                "qmap2": torch.zeros(256),
                "absmax1": torch.zeros(1),
                "absmax2": torch.zeros(1),
            }


def older_adax(params):
    """Gone on from a state without the mark by which it names itself."""
    saved = AdaX(params := list(params)).state_dict()
    del saved["param_groups"][0]["bias_correction"]
    optimizer = AdaX(params)
    optimizer.load_state_dict(saved)
    return optimizer


def edited(change):
    def make():
        saved = copy.deepcopy(stepped(AdamNX).state_dict())
        change(saved)
        return saved

    return make


def assert_same(a, b):
    """The same values, whatever is nested in whatever."""
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_same(*pair)
    else:
        assert a is b or a == b  # nan is itself


def saved_by(make, module=None):
    return lambda: stepped(make, module).state_dict()


def set_state(key, value):
    return edited(lambda saved: saved["state"][1].update({key: value}))


def set_option(key, value):
    return edited(lambda saved: saved["param_groups"][0].update({key: value}))


def new(make):
    return lambda: make(model().parameters()).state_dict()


REFUSED = {
    # name: (what makes the state_dict, the error)
    "Adam": (saved_by(torch.optim.Adam), r"torch\.optim\.Adam or AdamW.*from_adamw"),
    "AdamW": (saved_by(torch.optim.AdamW), r"torch\.optim\.Adam or AdamW.*from_adamw"),
    "NAdam": (saved_by(torch.optim.NAdam), "NAdam"),
    "RAdam": (saved_by(torch.optim.RAdam), "RAdam"),
    "Adamax": (saved_by(torch.optim.Adamax), "not saved by AdamNX.*parameter 0 has step, exp_avg, exp_inf"),
    "SGD": (saved_by(lambda p: torch.optim.SGD(p, momentum=0.9)), "has momentum_buffer, and not step"),
    "RMSprop": (saved_by(torch.optim.RMSprop), "square_avg, and not exp_avg"),
    "Adafactor": (saved_by(torch.optim.Adafactor), "row_var, col_var.*and not exp_avg"),
    "Transformers' Adafactor": (saved_by(adafactor_of_transformers), "exp_avg_sq_row.*and not exp_avg"),
    "8-bit, bitsandbytes' names": (saved_by(EightBit), "state1, state2.*and not exp_avg, exp_avg_sq"),
    "8-bit, our names": (
        set_state("exp_avg_sq", torch.zeros(3, dtype=torch.uint8)),
        r"exp_avg_sq of parameter 1 is torch\.uint8: a quantized state",
    ),
    "another model": (
        saved_by(AdamNX, model(width=5)),
        r"exp_avg of parameter 0 has shape \(5, 4\), the parameter has \(3, 4\): .* of another model",
    ),
    "a smaller model": (saved_by(AdamNX, nn.Linear(4, 3)), "doesn't match the size of optimizer's group"),
    "more groups": (
        edited(lambda saved: saved["param_groups"].append(saved["param_groups"][0])),
        "different number of parameter groups",
    ),
    "a state without moments": (edited(lambda saved: saved["state"][1].pop("exp_avg")), "not exp_avg"),
    "a moment that is no tensor": (set_state("exp_avg", None), "damaged: a NoneType instead of a tensor"),
    "SGD without momentum": (
        saved_by(torch.optim.SGD),
        "not saved by AdamNX: its options are dampening.*momentum, nesterov",
    ),
    "new Adafactor": (new(torch.optim.Adafactor), "not saved by AdamNX: its options are beta2_decay"),
    "new Rprop": (new(torch.optim.Rprop), "not saved by AdamNX: its options are .*etas"),
    "new LBFGS": (new(torch.optim.LBFGS), "not saved by AdamNX: its options are .*history_size"),
    "unknown schedule": (set_option("beta2_schedule", "no-such"), "Invalid beta2_schedule: 'no-such'"),
    "lr nan": (set_option("lr", float("nan")), "Invalid learning rate: nan"),
    "lr of another type": (set_option("lr", "x"), "options cannot be AdamNX's"),
    "a group that is no dict": (
        edited(lambda saved: saved["param_groups"].__setitem__(0, [0, 1])),
        "a group of parameters has 'params' and options, found list",
    ),
    "a state that is no dict": (
        edited(lambda saved: saved["state"].__setitem__(1, None)),
        "state of parameter 1 is damaged: a NoneType instead of a dict",
    ),
    "'state' that is no dict": (
        edited(lambda saved: saved.update(state=[1])),
        "'state' is a list instead of a dict",
    ),
    "float8": (
        set_state("exp_avg", torch.zeros(3).to(torch.float8_e4m3fn)),
        r"exp_avg of parameter 1 is torch\.float8_e4m3fn: a quantized state",
    ),
    "complex": (
        set_state("exp_avg", torch.zeros(3, dtype=torch.complex64)),
        r"is torch\.complex64, the parameter is torch\.float32",
    ),
    "step a string": (set_state("step", "x"), "step of parameter 1 is damaged: 'x' instead of a number"),
    "step None": (set_state("step", None), "damaged: None instead of a number"),
    "step complex": (set_state("step", 1j), "damaged: 1j instead of a number"),
    "step nan": (set_state("step", torch.tensor(float("nan"))), "step of parameter 1 is damaged: nan"),
    "step below 0": (set_state("step", -1), "step of parameter 1 is damaged"),
    "step and a half": (set_state("step", 1.5), "step of parameter 1 is damaged: 1.5 instead of a number of"),
    "step inf": (set_state("step", torch.tensor(float("inf"))), "step of parameter 1 is damaged: inf"),
    "v below 0": (
        set_state("exp_avg_sq", torch.tensor([1.0, -1.0, 1.0])),
        "exp_avg_sq of parameter 1 is damaged: an average of squares, it has values below 0",
    ),
    "sparse": (set_state("exp_avg", torch.zeros(3).to_sparse()), "exp_avg of parameter 1 is sparse"),
    "meta": (
        set_state("exp_avg", torch.zeros(3, device="meta")),
        "exp_avg of parameter 1 is on the meta device",
    ),
    "no residual": (
        set_state("param_residual", None),
        "param_residual of parameter 1 is damaged: a NoneType",
    ),
    "a residual of another shape": (
        set_state("param_residual", torch.zeros(2, dtype=torch.bfloat16)),
        r"param_residual of parameter 1 is torch\.bfloat16 of shape \(2,\); .*, \(3,\)",
    ),
    "a residual of another dtype": (
        set_state("param_residual", torch.zeros(3)),
        r"param_residual of parameter 1 is torch\.float32",
    ),
    "states by the ids' text": (
        edited(lambda saved: saved.update(state={str(key): value for key, value in saved["state"].items()})),
        "has states of '0', '1', '2', …, which are no parameters of its groups",
    ),
    "AdaX": (saved_by(AdaX), r"saved by adamnx_hf\.catalog\.AdaX.*start with a new optimizer state"),
    "AdaX of an older version": (saved_by(older_adax), r"saved by adamnx_hf\.catalog\.AdaX"),
    "maximize a text": (
        set_option("maximize", "false"),
        "Invalid maximize: 'false'; it must be True or False",
    ),
    "fused a text": (set_option("fused", "no"), "Invalid fused: 'no'; it must be True, False or None"),
    "capturable None": (set_option("capturable", None), "Invalid capturable: None"),
    "two steps": (set_state("step", torch.ones(2)), "2 numbers instead of one"),
    "a model's state_dict": (lambda: model().state_dict(), "'state' and 'param_groups' are expected"),
    "a list": (lambda: [1, 2], "found list"),
}


@pytest.mark.parametrize("fresh", [False, True], ids=["stepped", "new"])
@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_and_nothing_overwritten(make, message, fresh):
    module = model()
    optimizer = stepped(AdamNX, module, steps=0 if fresh else 3)
    before = copy.deepcopy([optimizer.state_dict(), list(module.parameters())])
    saved = make()
    saved_before = copy.deepcopy(saved)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        optimizer.load_state_dict(saved)
    assert_same([optimizer.state_dict(), list(module.parameters())], before)
    assert_same(saved, saved_before)
    stepped(lambda params: optimizer, module, steps=1)  # and it goes on


def test_a_step_without_a_value_is_not_read():
    saved = copy.deepcopy(stepped(AdamNX).state_dict())
    for state in saved["state"].values():
        state["step"] = torch.empty((), device="meta")
    check_state_dict(saved, AdamNX(model().parameters()).param_groups)
    with torch._subclasses.FakeTensorMode():
        for state in saved["state"].values():
            state["step"] = torch.zeros(())
    check_state_dict(saved, AdamNX(model().parameters()).param_groups)


def test_named_parameters_are_named_in_the_error():
    optimizer = AdamNX(model().named_parameters())
    with pytest.raises(ValueError, match=r"exp_avg of parameter '0\.weight' has shape"):
        optimizer.load_state_dict(saved_by(AdamNX, model(width=5))())


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_truncated_file_is_refused_before_anything_is_loaded(tmp_path, keep):
    optimizer = stepped(AdamNX)
    before = copy.deepcopy(optimizer.state_dict())
    path = tmp_path / "optimizer.pt"
    torch.save(stepped(AdamNX, steps=5).state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises((RuntimeError, EOFError)):
        optimizer.load_state_dict(torch.load(path, weights_only=True))
    assert_same(optimizer.state_dict(), before)


def test_parameters_without_state_and_further_entries_are_no_reason_to_refuse():
    saved = copy.deepcopy(stepped(AdamNX).state_dict())
    del saved["state"][2]
    saved["state"][0]["note"] = 1.0
    module = model()
    optimizer = AdamNX(module.parameters())
    optimizer.load_state_dict(saved)
    assert [len(optimizer.state.get(param, ())) for param in module.parameters()] == [4, 3, 0, 3]


def test_a_step_in_one_dimension_is_loaded_as_the_number_it_is():
    saved = copy.deepcopy(stepped(AdamNX).state_dict())
    saved["state"][1]["step"] = torch.tensor([2.0])
    module = model()
    optimizer = AdamNX(module.parameters())
    optimizer.load_state_dict(saved)
    assert [state["step"].shape for state in optimizer.state.values()] == [()] * 4
    stepped(lambda params: optimizer, module, steps=1)
    assert [int(state["step"]) for state in optimizer.state.values()] == [3] * 4


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("exp_avg", torch.zeros(2), r"exp_avg of parameter 1 has shape \(2,\), the parameter has \(3,\)"),
        ("exp_avg_sq", torch.full((3,), -1.0), "exp_avg_sq of parameter 1 is damaged"),
        ("step", torch.tensor(2.5), "step of parameter 1 is damaged: 2.5"),
        ("step", torch.tensor(float("nan")), "step of parameter 1 is damaged: nan"),
    ],
)
def test_from_adamw_refuses_what_does_not_fit(key, value, message):
    adamw = stepped(torch.optim.AdamW)
    adamw.state[adamw.param_groups[0]["params"][1]][key] = value
    with pytest.raises(ValueError, match=message):
        from_adamw(adamw, verbose=False)
