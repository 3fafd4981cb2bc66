"""A warning where DeepSpeed's optimizer takes the place of the user's. DeepSpeed itself does not run here."""

import sys
import types
import warnings

import pytest
import torch

import adamnx_hf
from adamnx_hf import AdamNX
from trainer_patches import deepspeed_warnings

pytest.importorskip("transformers")
accelerator = pytest.importorskip("accelerate.accelerator")
from accelerate.utils import HfDeepSpeedConfig  # noqa: E402
from transformers import TrainingArguments  # noqa: E402
from transformers.integrations import deepspeed as hf_deepspeed  # noqa: E402


class DeepSpeedCPUAdam(torch.optim.SGD):
    """Where the real one would compile for minutes."""

    def __init__(self, params, lr, weight_decay, adamw_mode=False):
        super().__init__(params, lr=lr, weight_decay=weight_decay)


class Custom(torch.optim.SGD):
    pass


@pytest.fixture
def swap(monkeypatch):
    """Accelerate's own function, as its `prepare` calls it when the optimizer state is offloaded."""
    if not hasattr(accelerator, "map_pytorch_optim_to_deepspeed"):
        pytest.skip("Accelerate finds no DeepSpeed")
    adam = types.ModuleType("deepspeed.ops.adam")
    adam.DeepSpeedCPUAdam = DeepSpeedCPUAdam
    adagrad = types.ModuleType("deepspeed.ops.adagrad")
    adagrad.DeepSpeedCPUAdagrad = DeepSpeedCPUAdam
    for name, module in {"deepspeed.ops.adam": adam, "deepspeed.ops.adagrad": adagrad}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return accelerator.map_pytorch_optim_to_deepspeed


def params():
    return [torch.nn.Parameter(torch.ones(2))]


@pytest.mark.parametrize("optimizer", [AdamNX, Custom, torch.optim.SGD, torch.optim.NAdam])
def test_offload_that_swaps_the_optimizer_warns_with_the_remedy(swap, optimizer):
    with pytest.warns(RuntimeWarning) as caught:
        assert type(swap(optimizer(params(), lr=0.1))) is DeepSpeedCPUAdam
    (message,) = [str(w.message) for w in caught]
    assert f"DeepSpeedCPUAdam takes the place of {optimizer.__name__}" in message
    assert '"zero_force_ds_cpu_optimizer": false' in message


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adam, torch.optim.Adagrad])
def test_torchs_own_have_a_counterpart(swap, optimizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swap(optimizer(params(), lr=0.1))


class StandIn:
    """The Trainer, as far as `deepspeed_optim_sched` looks at it."""

    optimizer_cls_and_kwargs = None
    optimizer = None

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def create_optimizer(self):
        return AdamNX(params())

    def create_scheduler(self, num_training_steps, optimizer):
        return torch.optim.lr_scheduler.ConstantLR(optimizer)


def optimizer_under(config, tmp_path, optim="adamnx", **attributes):
    """The Trainer's own choice of optimizer with this DeepSpeed config."""
    args = TrainingArguments(str(tmp_path), optim=optim, report_to="none")
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 2}, **config})
    optimizer, _ = hf_deepspeed.deepspeed_optim_sched(StandIn(**attributes), config, args, 10, params())
    return optimizer


@pytest.fixture(autouse=True)
def pretend_deepspeed_is_there(monkeypatch):
    # accelerate.utils has DummyOptim only where DeepSpeed is installed.
    utils = pytest.importorskip("accelerate.utils")
    if not hasattr(utils, "DummyOptim"):
        pytest.skip("Accelerate finds no DeepSpeed")


@pytest.mark.parametrize(
    ("optim", "attributes", "named"),
    [
        ("adamnx", {}, "optim='adamnx'"),
        ("adafactor_of_somebody", {}, "optim='adafactor_of_somebody'"),
        ("adamw_of_somebody", {}, "optim='adamw_of_somebody'"),
        ("adamw_torch", {"optimizer_cls_and_kwargs": (AdamNX, {})}, "AdamNX (optimizer_cls_and_kwargs)"),
        ("adamw_torch", {"optimizer": Custom(params(), lr=0.1)}, "Custom"),
    ],
)
def test_optimizer_section_that_overrides_what_was_asked_for_warns(tmp_path, optim, attributes, named):
    for name in ("adafactor_of_somebody", "adamw_of_somebody"):
        adamnx_hf.register_optimizer(name, "torch.optim:Adafactor", overwrite=True)
    section = {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}
    with pytest.warns(RuntimeWarning) as caught:
        optimizer = optimizer_under(section, tmp_path, optim, **attributes)
    assert type(optimizer).__name__ == "DummyOptim"
    (message,) = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert f'AdamW of the DeepSpeed config\'s "optimizer" section takes the place of {named}' in message
    assert "Remove that section" in message


def of(name, module):
    """An optimizer of this class name, as if of this module."""
    return type(name, (torch.optim.SGD,), {"__module__": module})(params(), lr=0.1)


ADAMW = {"optimizer": {"type": "AdamW"}}


@pytest.mark.parametrize(
    ("optim", "config", "attributes", "kind"),
    [
        ("adamnx", {}, {}, "AdamNX"),
        ("adamw_torch", ADAMW, {}, "DummyOptim"),
        ("adamnx", ADAMW, {"optimizer": of("DummyOptim", "accelerate.utils.deepspeed")}, "DummyOptim"),
        ("adamnx", ADAMW, {"optimizer": of("FusedAdam", "deepspeed.ops.adam")}, "DummyOptim"),
        (
            "adamnx",
            {"optimizer": {"type": "adamw"}},
            {"optimizer": torch.optim.AdamW(params())},
            "DummyOptim",
        ),
    ],
)
def test_no_warning_where_nothing_is_swapped(tmp_path, optim, config, attributes, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert type(optimizer_under(config, tmp_path, optim, **attributes)).__name__ == kind


def test_other_parameters_than_expected_are_passed_on():
    warn = deepspeed_warnings._warn_of_config
    assert warn(lambda *a, **k: (a, k), None, (1,), {"x": 2}) == ((1,), {"x": 2})


def test_eight_bit_optimizers_have_no_counterpart(swap):
    with pytest.warns(RuntimeWarning, match="takes the place of AdamW8bit"):
        swap(of("AdamW8bit", "bitsandbytes.optim.adamw"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swap(of("AdamW", "bitsandbytes.optim.adamw"))


THROUGH_PREPARE = """
import os, sys, types, warnings
os.environ.update(DS_ACCELERATOR="cpu", ACCELERATE_USE_CPU="true")
import deepspeed, torch
import adamnx_hf
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DeepSpeedPlugin

class DeepSpeedCPUAdam(torch.optim.SGD):  # the real one would compile for minutes
    def __init__(self, params, lr, weight_decay, adamw_mode):
        super().__init__(params, lr=lr, weight_decay=weight_decay)

adam = types.ModuleType("deepspeed.ops.adam")
adam.DeepSpeedCPUAdam = DeepSpeedCPUAdam
sys.modules["deepspeed.ops.adam"] = adam

class Enough(Exception):
    pass

def initialize(optimizer, **_):
    raise Enough(type(optimizer).__name__)

deepspeed.initialize = initialize
for extra in ({}, {"zero_force_ds_cpu_optimizer": False}):
    config = {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        **extra,
    }
    plugin = DeepSpeedPlugin(hf_ds_config=config)
    accelerator = Accelerator()
    # On the CPU Accelerate does not enter DeepSpeed by itself.
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.DEEPSPEED
    plugin.select(_from_accelerator_state=True)
    AcceleratorState._shared_state["deepspeed_plugins"] = {"default": plugin}
    model = torch.nn.Linear(2, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            accelerator.prepare(model, adamnx_hf.AdamNX(model.parameters()))
        except Enough as gets:
            print("DeepSpeed gets", gets, *(w.message for w in caught if w.category is RuntimeWarning))
    AcceleratorState._reset_state(reset_partial_state=True)
"""


def test_through_accelerates_prepare(run_python):
    pytest.importorskip("deepspeed")
    lines = [line for line in run_python(THROUGH_PREPARE).splitlines() if line.startswith("DeepSpeed gets")]
    assert len(lines) == 2
    assert lines[0].startswith(
        "DeepSpeed gets DeepSpeedCPUAdam DeepSpeed: DeepSpeedCPUAdam takes the place of"
    )
    assert lines[1] == "DeepSpeed gets AdamNX"
