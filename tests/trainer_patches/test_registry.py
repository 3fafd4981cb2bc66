import dataclasses

import pytest
import torch
from torch import nn

import adamnx_hf  # noqa: F401  # registers adamnx
import trainer_patches.registry
from trainer_patches import register_optimizer, registered_optimizers, unwrap_optimizer

transformers = pytest.importorskip("transformers")
from transformers import Trainer, TrainingArguments  # noqa: E402


@pytest.fixture(autouse=True)
def forget_afterwards(monkeypatch):
    """Tests register names; the enum keeps them (harmlessly), the registry does not."""
    before = registered_optimizers()
    yield
    registry = trainer_patches.registry.REGISTERED
    registry.clear()
    registry.update(before)


def arguments(tmp_path, **kwargs):
    return TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, **kwargs)


def build(args):
    """The optimizer the Trainer makes of `args`."""
    trainer = Trainer(nn.Linear(3, 2), args)
    return trainer.create_optimizer()


def test_an_optimizer_class(tmp_path):
    register_optimizer("t_nadam", torch.optim.NAdam)
    optimizer = build(
        arguments(
            tmp_path, optim="t_nadam", learning_rate=0.1, weight_decay=0.3, optim_args="momentum_decay=0.01"
        )
    )
    assert type(optimizer) is torch.optim.NAdam
    assert optimizer.defaults["lr"] == 0.1
    assert optimizer.defaults["momentum_decay"] == 0.01
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_an_optimizer_named_by_its_module_is_imported_late(tmp_path):
    register_optimizer("t_late", "torch.optim:RMSprop")
    assert type(build(arguments(tmp_path, optim="t_late", optim_args="centered=true"))) is torch.optim.RMSprop


def test_a_module_that_is_not_there_is_named(tmp_path):
    register_optimizer("t_missing", "no_such_package:Lion")
    with pytest.raises(ImportError, match="optim='t_missing' stands for 'no_such_package:Lion'"):
        arguments(tmp_path, optim="t_missing")


def test_a_function_as_decorator(tmp_path):
    @register_optimizer("t_sgd")
    def sgd(params, lr, momentum: float = 0.9):
        return torch.optim.SGD(params, lr=lr, momentum=momentum)

    optimizer = build(arguments(tmp_path, optim="t_sgd", learning_rate=0.2, optim_args="momentum=0.5"))
    assert type(optimizer) is torch.optim.SGD
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.2, 0.5)


def test_a_function_that_takes_anything(tmp_path):
    register_optimizer("t_any", lambda params, **kwargs: torch.optim.SGD(params, **kwargs))
    optimizer = build(
        arguments(tmp_path, optim="t_any", learning_rate=0.2, optim_args="momentum=0.5,nesterov=true")
    )
    assert (optimizer.defaults["lr"], optimizer.defaults["nesterov"]) == (0.2, True)


def test_defaults_hold_until_the_user_sets_them(tmp_path):
    register_optimizer(
        "t_adam", torch.optim.Adam, defaults={"betas": (0.8, 0.7), "eps": 1e-4, "amsgrad": True}
    )
    args = arguments(tmp_path, optim="t_adam")
    assert build(args).defaults["betas"] == (0.8, 0.7)
    assert build(args).defaults["eps"] == 1e-4
    assert build(args).defaults["amsgrad"]
    args = arguments(tmp_path, optim="t_adam", adam_beta1=0.5, adam_epsilon=1e-6, optim_args="amsgrad=false")
    assert build(args).defaults["betas"] == (0.5, 0.7)
    assert build(args).defaults["eps"] == 1e-6
    assert not build(args).defaults["amsgrad"]


@dataclasses.dataclass
class StatedAgain(TrainingArguments):
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8


def test_defaults_hold_where_a_subclass_states_those_of_training_arguments_again(tmp_path):
    register_optimizer("t_again", torch.optim.Adam, defaults={"betas": (0.8, 0.7), "eps": 1e-4})
    args = StatedAgain(str(tmp_path), report_to="none", use_cpu=True, optim="t_again")
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.8, 0.7, 1e-4)


def test_three_betas_keep_their_third(tmp_path):
    class Three(torch.optim.SGD):
        def __init__(self, params, lr: float = 0.1, betas: tuple[float, float, float] = (0.9, 0.99, 0.999)):
            super().__init__(params, lr)
            self.defaults["betas"] = betas

    register_optimizer("t_three", Three)
    assert build(arguments(tmp_path, optim="t_three", adam_beta1=0.5)).defaults["betas"] == (0.5, 0.99, 0.999)


def test_configure_knows_the_run_and_adds_options(tmp_path):
    def configure(kwargs, run, *, halve: bool = False):
        return kwargs | {"momentum": run.num_training_steps / (2 if halve else 1)}

    register_optimizer("t_configured", torch.optim.SGD, configure=configure)
    args = arguments(tmp_path, optim="t_configured", optim_args="halve=true", max_steps=10)
    assert build(args).defaults["momentum"] == 5
    trainer = Trainer(nn.Linear(3, 2), args)
    trainer.create_optimizer_and_scheduler(num_training_steps=40)
    assert trainer.optimizer.defaults["momentum"] == 20
    with pytest.raises(ValueError, match="number of training steps is not known"):
        build(arguments(tmp_path, optim="t_configured"))


def test_defaults_that_the_trainer_always_sets_are_refused():
    with pytest.raises(ValueError, match=r"'lr' is always set by TrainingArguments\(learning_rate=...\)"):
        register_optimizer("t_lr", torch.optim.SGD, defaults={"lr": 0.5})


def test_whole_numbers_as_betas(tmp_path):
    register_optimizer("t_zero", torch.optim.Adam, defaults={"betas": (0, 0.99)})
    assert build(arguments(tmp_path, optim="t_zero")).defaults["betas"] == (0.0, 0.99)


def test_a_name_that_differs_from_one_of_transformers_in_case_only(tmp_path):
    from transformers.training_args import OptimizerNames

    register_optimizer("RMSprop", torch.optim.RMSprop)
    assert OptimizerNames.RMSPROP.value == "rmsprop"
    assert len({member.value for member in OptimizerNames}) == len(list(OptimizerNames))
    assert type(build(arguments(tmp_path, optim="RMSprop"))) is torch.optim.RMSprop


@pytest.mark.parametrize(
    ("name", "optimizer", "error", "message"),
    [
        ("adamw_torch", torch.optim.SGD, ValueError, "one of Transformers' own names"),
        ("two words", torch.optim.SGD, ValueError, "got 'two words'"),
        ("", torch.optim.SGD, ValueError, "got ''"),
        ("t_bad", 3, TypeError, "got 3"),
        ("t_bad", "torch.optim.SGD", TypeError, "'module:attribute', got 'torch.optim.SGD'"),
        ("adamnx", torch.optim.SGD, ValueError, "overwrite=True"),
    ],
)
def test_bad_registrations_are_refused(name, optimizer, error, message):
    before = registered_optimizers()
    with pytest.raises(error, match=message):
        register_optimizer(name, optimizer)
    assert registered_optimizers() == before


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"defaults": [1]}, TypeError, r"defaults must be a mapping .*, got \[1\]"),
        ({"defaults": "momentum=0.9"}, TypeError, "defaults must be a mapping"),
        ({"configure": 5}, TypeError, r"configure must be a function \(kwargs, run, ...\) -> kwargs, got 5"),
        (
            {"defaults": {"momemtum": 0.9}},
            ValueError,
            "defaults: 'momemtum' is not an option of optim='t_bad'. Did you mean 'momentum'. Valid: ",
        ),
        ({"defaults": {1: 2}}, ValueError, "defaults: 1 is not an option of optim='t_bad'. Valid: "),
    ],
)
def test_bad_defaults_and_configure_are_refused_at_once(keywords, error, message, tmp_path):
    before = registered_optimizers()
    for register in (
        lambda: register_optimizer("t_bad", torch.optim.SGD, **keywords),
        lambda: register_optimizer("t_bad", **keywords)(torch.optim.SGD),
    ):
        with pytest.raises(error, match=message):
            register()
        assert registered_optimizers() == before


def test_a_bad_default_is_refused_when_an_optimizer_named_by_its_module_is_first_used(tmp_path):
    register_optimizer("t_late", "torch.optim:Adam", defaults={"betas": (0.8, 0.7), "eps": 1e-4, "beta3": 1})
    message = "defaults: 'beta3' is not an option of optim='t_late'"
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, optim="t_late")
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path).set_optimizer("t_late")
    args = arguments(tmp_path)
    args.optim = "t_late"
    with pytest.raises(ValueError, match=message):
        build(args)


def test_any_default_is_good_for_an_optimizer_that_takes_anything(tmp_path):
    register_optimizer(
        "t_any", lambda params, **kwargs: torch.optim.SGD(params, **kwargs), defaults={"momentum": 0.5}
    )
    assert build(arguments(tmp_path, optim="t_any")).defaults["momentum"] == 0.5


SIGNS = """
import torch

class Signs(torch.optim.Optimizer):
    def __init__(self, params, lr: float = 0.1, scale: float = 1.0, steps: int = 0):
        super().__init__(params, {"lr": lr, "scale": scale, "steps": steps, "weight_decay": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                param -= group["lr"] * group["scale"] * param.grad.sign()
"""


class Plane(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 3.0))

    def forward(self, x):
        return {"loss": (self.weight * x).sum()}


def test_an_optimizer_is_registered_by_one_record_and_trains(tmp_path, monkeypatch):
    (tmp_path / "signs_of_somebody.py").write_text(SIGNS)
    monkeypatch.syspath_prepend(str(tmp_path))
    record = {
        "name": "t_signs",
        "optimizer": "signs_of_somebody:Signs",
        "defaults": {"scale": 0.5},
        "configure": lambda kwargs, run: kwargs | {"steps": run.num_training_steps},
    }
    register_optimizer(**record)
    args = arguments(
        tmp_path, optim="t_signs", learning_rate=0.5, lr_scheduler_type="constant", max_steps=4,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(Plane(), args, train_dataset=[{"x": torch.ones(2)}] * 4)
    trainer.train()
    assert trainer.model.weight.tolist() == [2.0, 2.0]  # 4 steps of 0.5 x 0.5
    optimizer = unwrap_optimizer(trainer.optimizer)
    assert (type(optimizer).__name__, optimizer.defaults["steps"]) == ("Signs", 4)


def test_an_optimizer_is_unwrapped_out_of_all_wrappers():
    @dataclasses.dataclass
    class Wrapper:
        optimizer: object

    plain = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    assert unwrap_optimizer(Wrapper(Wrapper(plain))) is unwrap_optimizer(plain) is plain


def test_overwrite(tmp_path):
    register_optimizer("t_again", torch.optim.SGD)
    register_optimizer("t_again", torch.optim.Adagrad, overwrite=True)
    assert type(build(arguments(tmp_path, optim="t_again"))) is torch.optim.Adagrad


def test_transformers_own_optimizers_are_untouched(tmp_path):
    args = arguments(tmp_path, optim="adamw_torch")
    assert build(args).defaults["betas"] == (0.9, 0.999)
    assert args.adam_beta2 == 0.999
