"""One of the processes that test_distributed.py starts: runs every check of a mode and prints its outcome.

python worker.py ddp|fsdp2|deepspeed FOLDER, under `accelerate launch` or torchrun. A start takes seconds, a
check none: so many of them share one. Prints `passed: NAME` or a traceback.
"""

import contextlib
import copy
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from adamnx_hf import AdamNX

STEPS, SAVED_AT = 6, 3
ENGINES = {
    "default": {},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "reference": {"foreach": False},
}
CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate_configs"
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}

CHECKS = {}


def check(*modes):
    def add(function):
        for mode in modes:
            CHECKS.setdefault(mode, {})[function.__name__] = function
        return function

    return add


# ---------------------------------------------------------------- what is trained


class Net(nn.Module):
    """Of its tensors one has a single row, so that a process has none of it, and one does not divide by 2."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(6, 7)
        self.second = nn.Linear(7, 1, bias=False)

    def forward(self, inputs):
        return self.second(torch.tanh(self.first(inputs)))


def rows(step, count=8):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(count, 6, generator=generator), torch.randn(count, 1, generator=generator)


def train(model, optimizer, steps, rank=0, world=1):
    """Each process sees its part of every batch; the clipping cuts at most of the steps."""
    for step in steps:
        inputs, targets = (part.chunk(world)[rank] for part in rows(step))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


def make_optimizer(model, **flags):
    decay, rest = [model.first.weight, model.second.weight], [model.first.bias]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return AdamNX(groups, lr=0.05, **flags)


def whole(tensor):
    tensor = tensor.detach()
    return tensor.full_tensor().cpu() if hasattr(tensor, "full_tensor") else tensor.cpu()


def values(model):
    return [whole(parameter) for parameter in model.parameters()]


def single_process(steps=STEPS, **flags):
    model = Net()
    train(model, optimizer := make_optimizer(model, **flags), range(steps))
    return values(model), optimizer


# ---------------------------------------------------------------- FSDP2 and DDP as torch has them


def wrap(model, how):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    if how == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    options = {
        "full": {"mesh": init_device_mesh("cpu", (2,))},
        "hybrid 2x1": {"mesh": init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))},
        "hybrid 1x2": {"mesh": init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicate", "shard"))},
        "offload": {
            "mesh": init_device_mesh("cpu", (2,)),
            "offload_policy": CPUOffloadPolicy(pin_memory=False),
        },
    }[how]
    fully_shard(model.first, **options)
    return fully_shard(model, **options)


WAYS = {"ddp": ["ddp"], "fsdp2": ["full", "hybrid 2x1", "hybrid 1x2", "offload"]}


@check("ddp", "fsdp2")
def equals_single_process(mode, folder):
    for name, flags in ENGINES.items():
        expected, _ = single_process(**flags)
        for way in WAYS[mode]:
            model = wrap(Net(), way)
            optimizer = make_optimizer(getattr(model, "module", model), **flags)
            train(model, optimizer, range(STEPS), dist.get_rank(), 2)
            torch.testing.assert_close(values(model), expected, msg=f"{name}, {way}", **ROUNDING)


@check("fsdp2")
def bfloat16_parameters_keep_float32_moments(mode, folder):
    plain = Net().bfloat16()
    sharded = wrap(copy.deepcopy(plain), "full")
    ours, theirs = make_optimizer(sharded), make_optimizer(plain)
    for step in range(STEPS):
        for a, b in zip(sharded.parameters(), plain.parameters(), strict=True):
            b.grad = torch.randn(b.shape, generator=torch.Generator().manual_seed(step)).bfloat16()
            a.grad = torch.distributed.tensor.distribute_tensor(b.grad, a.device_mesh, a.placements)
        ours.step()
        theirs.step()
    for a, b in zip(sharded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(whole(a), b.detach())
        assert ours.state[a]["exp_avg_sq"].dtype is torch.float32
        assert torch.equal(whole(ours.state[a]["exp_avg_sq"]), theirs.state[b]["exp_avg_sq"])


@check("ddp", "fsdp2")
def checkpoints_resume_on_two(mode, folder):
    """torch.distributed.checkpoint: sharded, and one file of everything."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_state_dict,
        set_state_dict,
    )

    everything = StateDictOptions(full_state_dict=True, cpu_offload=True)
    for way in WAYS[mode]:
        here = folder / way.replace(" ", "-")
        model = wrap(Net(), way)
        optimizer = make_optimizer(getattr(model, "module", model))
        train(model, optimizer, range(SAVED_AT), dist.get_rank(), 2)
        parts = get_state_dict(model, optimizer)
        dcp.save({"model": parts[0], "optimizer": parts[1]}, checkpoint_id=here / "sharded")
        full = get_state_dict(model, optimizer, options=everything)
        if dist.get_rank() == 0:
            torch.save({"model": full[0], "optimizer": full[1]}, here / "full.pt")
        dist.barrier()
        train(model, optimizer, range(SAVED_AT, STEPS), dist.get_rank(), 2)
        expected = values(model)
        moments = [whole(state["exp_avg_sq"]) for state in optimizer.state.values()]

        for kind in ("sharded", "full"):
            model = wrap(Net(seed=1), way)
            optimizer = make_optimizer(getattr(model, "module", model))
            if kind == "sharded":
                parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
                dcp.load(parts, checkpoint_id=here / kind)
                options = None
            else:
                parts = torch.load(here / "full.pt", weights_only=True)
                options = everything
            set_state_dict(
                model,
                optimizer,
                model_state_dict=parts["model"],
                optim_state_dict=parts["optimizer"],
                options=options,
            )
            train(model, optimizer, range(SAVED_AT, STEPS), dist.get_rank(), 2)
            for a, b in zip(values(model), expected, strict=True):
                assert torch.equal(a, b), (way, kind)
            assert {float(state["step"]) for state in optimizer.state.values()} == {STEPS}
            for state, moment in zip(optimizer.state.values(), moments, strict=True):
                assert torch.equal(whole(state["exp_avg_sq"]), moment), (way, kind)


# ---------------------------------------------------------------- Accelerate, with the shipped configs


def tiny_llama(seed=0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=8,
        )
    )


BATCH, ACCUMULATION = 2, 2
TEXT = torch.randint(32, (STEPS * BATCH * ACCUMULATION * 2, 8), generator=torch.Generator().manual_seed(5))


def environment_of(config, processes=2):
    """What `accelerate launch --config_file config` would hand to its processes."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    replicas = ["--parallelism_config_dp_replicate_size", "1", "--parallelism_config_dp_shard_size", "2"]
    argv = [
        "--config_file",
        str(CONFIGS / config),
        "--num_processes",
        str(processes),
        "--mixed_precision",
        "no",
    ]
    argv += replicas if "hybrid" in config else []
    args, *_ = _validate_launch_command(launch_command_parser().parse_args([*argv, "script.py"]))
    return prepare_multi_gpu_env(args)


@contextlib.contextmanager
def accelerator_of(config, **changes):
    """An Accelerator as in a process that was launched with `config`.

    Accelerate does not enter FSDP on the CPU by itself; everything after that decision is its own.
    """
    from accelerate import Accelerator, DistributedType
    from accelerate.state import AcceleratorState, PartialState
    from torch.distributed.fsdp import CPUOffloadPolicy

    before, init = dict(os.environ), AcceleratorState.__init__

    def enter_fsdp(state, *args, fsdp_plugin=None, **kwargs):
        init(state, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            for shared in (AcceleratorState._shared_state, PartialState._shared_state):
                shared["distributed_type"] = DistributedType.FSDP
            AcceleratorState._shared_state["fsdp_plugin"] = fsdp_plugin
            if fsdp_plugin.cpu_offload:  # pinned memory is for copies to a GPU
                fsdp_plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)

    ours = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")
    os.environ.update({k: v for k, v in environment_of(config).items() if k.startswith(ours)} | changes)
    AcceleratorState.__init__ = enter_fsdp
    try:
        AcceleratorState._reset_state(reset_partial_state=True)
        yield Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
    finally:
        AcceleratorState.__init__ = init
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.clear()
        os.environ.update(before)


def prepared(accelerator, seed=0):
    model = tiny_llama(seed)
    optimizer = AdamNX(model.parameters(), lr=1e-2)
    loader = torch.utils.data.DataLoader([{"input_ids": row, "labels": row} for row in TEXT], BATCH)
    return accelerator.prepare(model, optimizer, loader)


def loop(accelerator, model, optimizer, loader, steps):
    """The loop that people copy."""
    for i, batch in enumerate(loader):
        if not steps.start * ACCUMULATION <= i < steps.stop * ACCUMULATION:
            continue
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()


def accelerated_single_process():
    model = tiny_llama()
    optimizer = AdamNX(model.parameters(), lr=1e-2)
    for rows in TEXT.chunk(STEPS):
        model(input_ids=rows, labels=rows).loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert norm > 0.5
        optimizer.step()
        optimizer.zero_grad()
    return values(model)


ACCELERATE_CONFIGS = {"ddp": ["ddp.yaml"], "fsdp2": ["fsdp2.yaml", "fsdp2_hybrid.yaml", "fsdp2_offload.yaml"]}


@check("ddp", "fsdp2")
def launched_with_the_shipped_config(mode, folder):
    """What the processes were started with is what the checks below go through config by config."""
    launched = {
        key: value for key, value in os.environ.items() if key.startswith(("FSDP_", "ACCELERATE_USE_F"))
    }
    shipped = environment_of(ACCELERATE_CONFIGS[mode][0])
    assert launched == {
        key: value for key, value in shipped.items() if key.startswith(("FSDP_", "ACCELERATE_USE_F"))
    }
    assert bool(launched) == (mode == "fsdp2")


@check("ddp", "fsdp2")
def accelerate_equals_single_process(mode, folder):
    """Accumulation over 2 batches, clipping, and each process its part of the data."""
    expected = accelerated_single_process()
    for config in ACCELERATE_CONFIGS[mode]:
        with accelerator_of(config) as accelerator:
            parts = prepared(accelerator)
            loop(accelerator, *parts, range(STEPS))
            assert {float(state["step"]) for state in parts[1].optimizer.state.values()} == {STEPS}
            is_sharded = any(hasattr(parameter, "full_tensor") for parameter in parts[0].parameters())
            assert is_sharded == (mode == "fsdp2"), config
            torch.testing.assert_close(
                values(parts[0]), expected, rtol=1e-4, atol=1e-5, msg=lambda m, c=config: f"{c}: {m}"
            )


@check("ddp", "fsdp2")
def save_state_and_load_state(mode, folder):
    for config in ACCELERATE_CONFIGS[mode]:
        for kind in ("SHARDED_STATE_DICT", "FULL_STATE_DICT") if mode == "fsdp2" else ("",):
            here = folder / f"{config}-{kind}"
            with accelerator_of(config, FSDP_STATE_DICT_TYPE=kind) as accelerator:
                parts = prepared(accelerator)
                loop(accelerator, *parts, range(SAVED_AT))
                accelerator.save_state(here)
                loop(accelerator, *parts, range(SAVED_AT, STEPS))
                expected = values(parts[0])
            with accelerator_of(config, FSDP_STATE_DICT_TYPE=kind) as accelerator:
                parts = prepared(accelerator, seed=1)
                accelerator.load_state(here)
                loop(accelerator, *parts, range(SAVED_AT, STEPS))
                for a, b in zip(values(parts[0]), expected, strict=True):
                    assert torch.equal(a, b), (config, kind)


# ---------------------------------------------------------------- DeepSpeed, with the shipped configs


def deepspeed_engine(config, model):
    """As Accelerate would make it, which on a CPU starts one process only."""
    import deepspeed
    from accelerate.utils import DeepSpeedPlugin

    plugin = DeepSpeedPlugin(hf_ds_config=str(CONFIGS / "deepspeed" / config))
    for part in ("offload_optimizer", "offload_param"):
        plugin.deepspeed_config["zero_optimization"].get(part, {})["pin_memory"] = False  # that is for GPUs
    plugin.deepspeed_config_process(
        must_match=False,
        **{
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": 1,
            "train_batch_size": 8,
            "gradient_clipping": 0.5,
            "bf16.enabled": False,
            "fp16.enabled": False,
        },
    )
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=make_optimizer(model), config=plugin.deepspeed_config
    )
    return engine


def deepspeed_train(engine, steps):
    for step in steps:
        inputs, targets = (part.chunk(2)[dist.get_rank()] for part in rows(step))
        engine.backward(nn.functional.mse_loss(engine(inputs), targets))
        engine.step()


def deepspeed_values(engine):
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        return [parameter.detach().clone() for parameter in engine.module.parameters()]


@check("deepspeed")
def zero_equals_single_process(mode, folder):
    expected, _ = single_process()
    for config in sorted(path.name for path in (CONFIGS / "deepspeed").glob("*.json")):
        engine = deepspeed_engine(config, Net())
        assert type(engine.optimizer.optimizer) is AdamNX, config
        deepspeed_train(engine, range(STEPS))
        torch.testing.assert_close(deepspeed_values(engine), expected, msg=config, **ROUNDING)
        assert {float(state["step"]) for state in engine.optimizer.optimizer.state.values()} == {STEPS}


@check("deepspeed")
def zero_resumes(mode, folder):
    for config in ("zero1.json", "zero2.json", "zero3.json"):
        engine = deepspeed_engine(config, Net())
        deepspeed_train(engine, range(SAVED_AT))
        engine.save_checkpoint(str(folder / config))
        deepspeed_train(engine, range(SAVED_AT, STEPS))
        expected = deepspeed_values(engine)
        engine = deepspeed_engine(config, Net(seed=1))
        engine.load_checkpoint(str(folder / config))
        deepspeed_train(engine, range(SAVED_AT, STEPS))
        for a, b in zip(deepspeed_values(engine), expected, strict=True):
            assert torch.equal(a, b), config


# ---------------------------------------------------------------- running


def main(mode, folder):
    if mode == "deepspeed":
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        # Shared-memory collectives, which take minutes to compile; gloo has all that is needed.
        deepspeed.ops.__compatible_ops__.clear()
        deepspeed.init_distributed("gloo", timeout=timedelta(seconds=60))
    else:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.set_num_threads(1)
    folder = Path(folder)
    for name, function in CHECKS[mode].items():
        try:
            function(mode, folder / name)
            outcome = f"passed: {name}"
        except Exception:
            outcome = f"FAILED: {name}\n{traceback.format_exc()}"
        print(f"[{dist.get_rank()}] {outcome}", flush=True)
        dist.barrier()
    dist.destroy_process_group()
    # Some versions abort while they take their threads down, after all is done and said.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
