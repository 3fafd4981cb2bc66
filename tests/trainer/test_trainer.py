"""`optim="adamnx"` in the real Trainer, on a tiny Llama."""

import contextlib
import copy
import dataclasses
import logging
import shutil
import types

import pytest
import torch

import adamnx_hf
from adamnx_hf import AdamNX

transformers = pytest.importorskip("transformers")
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments  # noqa: E402

VOCABULARY, LENGTH, EXAMPLES = 32, 8, 16


def tiny_llama(dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=LENGTH,
    )
    return LlamaForCausalLM(config).to(dtype)


def examples():
    """Counting upwards from a random start: learnable, so that the loss falls."""
    starts = torch.randint(VOCABULARY, (EXAMPLES,), generator=torch.Generator().manual_seed(1)).tolist()
    rows = [[(start + i) % VOCABULARY for i in range(LENGTH)] for start in starts]
    return [{"input_ids": row, "labels": row} for row in rows]


# Rows in another order round otherwise, and Adam makes a whole step of a gradient that is only rounding.
# With this ε it does not.
FORGIVING = {"adam_epsilon": 1e-3}


def make_trainer(output_dir, model=None, **kwargs):
    arguments = {
        "optim": "adamnx",
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    args = TrainingArguments(str(output_dir), **{**arguments, **kwargs})
    data = examples()
    return Trainer(model or tiny_llama(), args, train_dataset=data, eval_dataset=data)


def adamnx_of(trainer):
    """The optimizer below accelerate's wrapper."""
    return trainer.optimizer.optimizer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same_parameters(a, b, **tolerance):
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        if tolerance:
            torch.testing.assert_close(x, y, msg=lambda message, name=name: f"{name}: {message}", **tolerance)
        else:
            assert torch.equal(x, y), name


def test_it_trains(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=40)
    trainer.train()
    optimizer = adamnx_of(trainer)
    assert type(optimizer) is AdamNX
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert all(group["betas"] == (0.9, 0.99) for group in optimizer.param_groups)
    assert {float(state["step"]) for state in optimizer.state.values()} == {40}
    assert losses(trainer)[-1] < 0.5 * losses(trainer)[0]


def test_clipping_and_decay_are_those_of_a_loop_by_hand(tmp_path):
    """One batch holds all examples, so that their order makes no difference."""
    trainer = make_trainer(
        tmp_path,
        per_device_train_batch_size=EXAMPLES,
        max_steps=5,
        max_grad_norm=0.1,
        lr_scheduler_type="constant",
        **FORGIVING,
    )
    by_hand = copy.deepcopy(trainer.model)
    trainer.train()

    optimizer = AdamNX(adamnx_hf.param_groups(by_hand, weight_decay=0.1), lr=1e-2, eps=1e-3)
    batch = {key: torch.tensor([row[key] for row in examples()]) for key in ("input_ids", "labels")}
    for _ in range(5):
        by_hand(**batch).loss.backward()
        assert torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.1) > 0.1
        optimizer.step()
        optimizer.zero_grad()
    assert_same_parameters(trainer.model, by_hand, rtol=1e-4, atol=1e-5)


def test_gradient_accumulation_is_a_larger_batch(tmp_path):
    large = make_trainer(tmp_path, per_device_train_batch_size=8, max_steps=4, **FORGIVING)
    accumulated = make_trainer(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=4, **FORGIVING
    )
    large.train()
    accumulated.train()
    assert {float(state["step"]) for state in adamnx_of(accumulated).state.values()} == {4}
    assert_same_parameters(large.model, accumulated.model, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "kwargs"),
    [
        (torch.float32, {}),
        (torch.float32, {"bf16": True}),
        (torch.bfloat16, {}),
        (torch.float32, {"optim_args": "beta2_schedule=adax,foreach=true"}),
    ],
    ids=["float32", "bf16 autocast", "bf16 parameters", "foreach"],
)
def test_resuming_is_bit_for_bit_the_run_that_was_not_interrupted(tmp_path, dtype, kwargs):
    whole = make_trainer(tmp_path / "whole", tiny_llama(dtype), save_strategy="steps", save_steps=4, **kwargs)
    whole.train()
    # Another process would find the checkpoint and a fresh model.
    shutil.rmtree(tmp_path / "whole" / "checkpoint-8")
    resumed = make_trainer(tmp_path / "whole", tiny_llama(dtype), **kwargs)
    resumed.train(resume_from_checkpoint=True)

    assert resumed.state.global_step == 8
    assert_same_parameters(whole.model, resumed.model)
    assert adamnx_of(whole).param_groups[0].keys() == adamnx_of(resumed).param_groups[0].keys()
    for a, b in zip(adamnx_of(whole).state.values(), adamnx_of(resumed).state.values(), strict=True):
        assert a.keys() == b.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert b["exp_avg_sq"].dtype is torch.float32


def test_load_best_model_at_end(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
    )
    trainer.train()
    best = min(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best)


def test_torch_compile(tmp_path):
    eager = make_trainer(tmp_path, max_steps=3)
    # Inductor would need a C++ compiler and a minute; the optimizer step is not what it compiles.
    compiled = make_trainer(tmp_path, max_steps=3, torch_compile=True, torch_compile_backend="aot_eager")
    eager.train()
    compiled.train()
    assert_same_parameters(eager.model, compiled.model, rtol=1e-3, atol=1e-5)


def test_horizon_auto_is_solved_from_the_runs_own_steps(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=-1, num_train_epochs=3, optim_args="horizon=auto")
    trainer.train()
    assert trainer.state.max_steps == 12
    expected = adamnx_hf.beta2_for_horizon(12)
    assert adamnx_of(trainer).param_groups[0]["betas"] == (0.9, expected)
    assert trainer.args.adam_beta2 == expected


def beta2s(trainer):
    return {group["betas"][1] for group in adamnx_of(trainer).param_groups}


class OutOfMemory:
    """Memory for batches of up to `fits` examples."""

    def __init__(self, model, fits, within_backward=False):
        self.fits, self.sizes = fits, []
        model.register_forward_pre_hook(self.note, with_kwargs=True)
        first = model.model.layers[0].mlp  # whose gradients come last
        if within_backward:
            first.register_full_backward_pre_hook(self.fail)
        else:
            first.register_forward_pre_hook(self.fail)

    def note(self, model, args, kwargs):
        self.sizes.append(len(kwargs["input_ids"]))

    def fail(self, *_):
        if self.sizes[-1] > self.fits:
            raise RuntimeError("CUDA out of memory.")


def test_horizon_auto_is_solved_anew_where_a_smaller_batch_is_tried(tmp_path, caplog):
    options = {"per_device_train_batch_size": 16, "auto_find_batch_size": True, "optim_args": "horizon=auto"}
    trainer = make_trainer(tmp_path, max_steps=-1, num_train_epochs=3, log_level="info", **options)
    memory = OutOfMemory(trainer.model, fits=4)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        trainer.train()
    finally:
        logger.removeHandler(caplog.handler)
        transformers.logging.set_verbosity_warning()
    assert memory.sizes[0] == 16
    assert trainer.state.max_steps == trainer.state.global_step >= 12
    expected = adamnx_hf.beta2_for_horizon(trainer.state.max_steps)
    assert beta2s(trainer) == {trainer.args.adam_beta2} == {expected}
    assert f"betas=(0.9, {expected})" in [line for line in caplog.messages if "optim='adamnx'" in line][-1]


def test_a_second_run_is_configured_for_its_own_steps(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2, optim_args="horizon=auto,max_grad_norm=0.1")
    trainer.accelerator.clip_grad_norm_ = None  # the Trainer is not to clip, in either run
    for steps in (2, 6):
        trainer.args.max_steps = steps
        trainer.train()
        optimizer = adamnx_of(trainer)
        assert beta2s(trainer) == {trainer.args.adam_beta2} == {adamnx_hf.beta2_for_horizon(steps)}
        assert trainer.args.max_grad_norm == 1.0
    # The optimizer is the same, as it is with AdamW.
    assert {float(state["step"]) for state in optimizer.state.values()} == {8}


def test_an_optimizer_made_before_the_run_is_configured_for_it(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2, optim_args="horizon=auto,max_grad_norm=0.1")
    trainer.create_optimizer()
    other = Trainer(tiny_llama(), trainer.args, train_dataset=examples())  # of the same arguments
    other.train()
    trainer.accelerator.clip_grad_norm_ = None
    trainer.args.max_steps = 6
    trainer.train()
    assert beta2s(trainer) == {adamnx_hf.beta2_for_horizon(6)}


def test_a_resumed_run_keeps_the_beta2_of_its_checkpoint(tmp_path):
    options = {"optim_args": "horizon=auto", "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, max_steps=2, **options).train()
    resumed = make_trainer(tmp_path, max_steps=6, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert beta2s(resumed) == {adamnx_hf.beta2_for_horizon(2)}
    resumed.train()  # not resumed: a run of its own
    assert beta2s(resumed) == {adamnx_hf.beta2_for_horizon(6)}
    resumed.args.max_steps = 8
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    # The last run has written its own.
    assert beta2s(resumed) == {adamnx_hf.beta2_for_horizon(6)}


def test_what_is_not_made_of_the_arguments_is_not_configured(tmp_path):
    """An optimizer that is given, and groups with a β2 of their own."""
    args = make_trainer(tmp_path, max_steps=2, optim_args="horizon=auto").args
    model = tiny_llama()
    given = AdamNX(model.parameters(), lr=1e-2, betas=(0.9, 0.5))
    trainer = Trainer(model, args, train_dataset=examples(), optimizers=(given, None))
    for _ in range(2):
        trainer.train()
        assert beta2s(trainer) == {0.5}

    class OwnGroups(Trainer):
        def create_optimizer(self, model=None):
            cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(self.args)
            first, *others = self.model.parameters()
            groups = [{"params": [first], "betas": (0.9, 0.5)}, {"params": others}]
            self.optimizer = self.optimizer or cls(groups, **kwargs)
            return self.optimizer

    trainer = OwnGroups(tiny_llama(), args, train_dataset=examples())
    for steps in (2, 6):
        args.max_steps = steps
        trainer.train()
        betas = [group["betas"][1] for group in adamnx_of(trainer).param_groups]
        assert betas == [0.5, adamnx_hf.beta2_for_horizon(steps)]


def test_the_model_card_says_what_was_used(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "adamnx" in card.lower()
    assert "betas=(0.9,0.99)" in card


def test_peft_lora(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    trainer = make_trainer(tmp_path, model, max_steps=4)
    frozen = [param.clone() for param in model.parameters() if not param.requires_grad]
    trainer.train()
    optimizer = adamnx_of(trainer)
    # LoRA has nothing without decay: the Trainer's second group is empty.
    assert [len(group["params"]) for group in optimizer.param_groups] == [8, 0]
    assert all("lora" in name for name, param in model.named_parameters() if param in optimizer.state)
    assert len(optimizer.state) == 8
    after = [param for param in model.parameters() if not param.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(frozen, after, strict=True))


def test_a_step_that_overflows_in_fp16_changes_nothing():
    """The Trainer has fp16 on GPUs only; the scaler it uses there runs on the CPU as well."""
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = AdamNX([param], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    values = {"step": [], "param": []}
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((param * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        values["step"].append(float(optimizer.state[param]["step"]))
        values["param"].append(param.detach().clone())
    assert values["step"] == [1, 1, 2]
    assert torch.equal(values["param"][0], values["param"][1])
    assert not torch.equal(values["param"][1], values["param"][2])
    assert scaler.get_scale() == 2.0


def grad_norms(trainer):
    return [float(entry["grad_norm"]) for entry in trainer.state.log_history if "grad_norm" in entry]


class MaxGradNorms(transformers.TrainerCallback):
    """Notes at each step what the arguments say the Trainer clips to; may break off the run."""

    def __init__(self, error=None):
        self.values, self.error = [], error

    def on_step_end(self, args, state, control, **_):
        self.values.append(args.max_grad_norm)
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [None, ValueError("broken off"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize(
    "switched_off",
    [{"optim_args": "max_grad_norm=0.1"}, {"optim": "adamnx_layerwise"}],
    ids=["adamnx", "layerwise"],
)
@pytest.mark.filterwarnings("ignore:.*gradients are not clipped")
def test_arguments_have_their_clipping_back_when_the_run_ends(switched_off, error, tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2, **switched_off)
    trainer.add_callback(seen := MaxGradNorms(error))
    with pytest.raises(type(error)) if error else contextlib.nullcontext():
        trainer.train()
    assert set(seen.values) == {0.0}
    assert trainer.args.max_grad_norm == 1.0
    assert trainer.args.adam_beta2 == 0.99  # of the optimizer, which is there still

    replaced = dataclasses.replace(trainer.args, optim="adamw_torch", optim_args=None)
    assert replaced.max_grad_norm == 1.0
    model = tiny_llama()
    given = Trainer(
        model,
        trainer.args,
        train_dataset=examples(),
        optimizers=(torch.optim.SGD(model.parameters(), 0.1), None),
    )
    given.add_callback(seen := MaxGradNorms())
    given.train()
    assert seen.values == [1.0] * 2


def test_clipping_that_the_user_sets_within_the_run_stays(tmp_path):
    class SetIt(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            args.max_grad_norm = 0.25

    trainer = make_trainer(tmp_path, max_steps=2, optim_args="max_grad_norm=0.1")
    trainer.add_callback(SetIt())
    trainer.train()
    assert trainer.args.max_grad_norm == 0.25


def test_clipping_in_the_step_is_the_trainers_clipping(tmp_path):
    trainers = make_trainer(tmp_path / "1", max_grad_norm=0.1, **FORGIVING)
    own = make_trainer(tmp_path / "2", optim_args="max_grad_norm=0.1", **FORGIVING)
    own.accelerator.clip_grad_norm_ = None  # it would read and write all gradients once more
    own.add_callback(seen := MaxGradNorms())
    for trainer in (trainers, own):
        trainer.train()
    assert seen.values == [0.0] * 8  # so that it is not done twice
    assert adamnx_of(own).max_grad_norm == 0.1
    assert adamnx_of(own).grad_norm > 0.1
    assert_same_parameters(trainers.model, own.model, rtol=1e-4, atol=1e-5)
    assert len(grad_norms(own)) == 8
    assert grad_norms(own) == pytest.approx(grad_norms(trainers), rel=1e-3)
    assert float(adamnx_of(own).grad_norm) == grad_norms(own)[-1]


@pytest.mark.parametrize("optim", ["adamnx", "adamnx_layerwise"])
def test_an_infinite_norm_only_finds_the_norm(optim, tmp_path):
    usual = make_trainer(tmp_path, max_grad_norm=1e6, **FORGIVING)
    unclipped = make_trainer(tmp_path, optim=optim, optim_args="max_grad_norm=inf", **FORGIVING)
    for trainer in (usual, unclipped):
        trainer.train()
    assert adamnx_of(unclipped).max_grad_norm == float("inf")
    assert grad_norms(unclipped) == pytest.approx(grad_norms(usual), rel=1e-3)
    assert_same_parameters(usual.model, unclipped.model, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("trainers", "allowed"), [(1.0, True), (0.0, True), (0.5, True), (2.0, False)])
def test_two_norms_that_contradict_each_other_are_refused(trainers, allowed, tmp_path):
    # 1.0 is TrainingArguments' default, which says nothing.
    trainer = make_trainer(tmp_path, optim_args="max_grad_norm=0.5", max_grad_norm=trainers)
    if allowed:
        trainer.create_optimizer()
        assert trainer.args.max_grad_norm == 0.0
    else:
        with pytest.raises(
            ValueError, match=r"max_grad_norm=0.5, but TrainingArguments\(max_grad_norm=2.0\)"
        ):
            trainer.create_optimizer()


@pytest.mark.parametrize(
    ("kind", "fsdp_version", "name"),
    [("DEEPSPEED", None, "DeepSpeed"), ("FSDP", 1, "FSDP1"), ("FSDP", 2, None)],
)
def test_clipping_in_the_step_is_refused_where_ranks_see_parts(
    kind, fsdp_version, name, tmp_path, monkeypatch
):
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    trainer = make_trainer(tmp_path, optim_args="max_grad_norm=0.5")
    for state in (AcceleratorState, PartialState):
        monkeypatch.setitem(state._shared_state, "distributed_type", DistributedType[kind])
    plugin = types.SimpleNamespace(fsdp_version=fsdp_version)
    monkeypatch.setitem(AcceleratorState._shared_state, "fsdp_plugin", plugin)
    if name is None:
        trainer.create_optimizer()
        assert trainer.args.max_grad_norm == 0.0
    else:
        with pytest.raises(ValueError, match=f"max_grad_norm=0.5 cannot be used with {name}"):
            trainer.create_optimizer()
