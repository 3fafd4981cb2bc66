"""AdamNX in two real processes: DDP, FSDP2, DeepSpeed, and their checkpoints in one process again.

Each mode is one launch of worker.py, whose checks are reported here one by one.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import worker
from forks import lean
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

HERE = Path(__file__).parent
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
LAUNCHES = {
    # mode: the command that starts two processes
    "ddp": [*ACCELERATE, "--config_file", str(worker.CONFIGS / "ddp.yaml")],
    "fsdp2": [*ACCELERATE, "--config_file", str(worker.CONFIGS / "fsdp2.yaml")],
    "deepspeed": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
}
# Of both launchers: 2 processes instead of the 8 of the configs; accelerate would take bf16 from them, too.
TWO = {"ddp": ["--num_processes", "2", "--mixed_precision", "no"], "deepspeed": []}
TWO["fsdp2"] = TWO["ddp"]


@pytest.fixture(scope="session")
def launched(tmp_path_factory):
    """Runs a mode once: its output by check and rank, and its folder."""
    results = {}

    def launch(mode):
        if mode not in results:
            folder = tmp_path_factory.mktemp(mode)
            env = {**lean(), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            env.pop("PYTEST_CURRENT_TEST", None)
            run = subprocess.run(
                [*LAUNCHES[mode], *TWO[mode], str(HERE / "worker.py"), mode, str(folder)],
                env=env,
                capture_output=True,
                text=True,
                timeout=300,
            )
            results[mode] = run, folder
        return results[mode]

    return launch


@pytest.mark.parametrize(
    ("mode", "name"), [(mode, name) for mode, checks in worker.CHECKS.items() for name in checks]
)
def test_in_two_processes(launched, mode, name):
    if mode == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    run, _ = launched(mode)
    passed = re.findall(rf"\[([01])\] passed: {name}\b", run.stdout)
    assert sorted(passed) == ["0", "1"], run.stdout + run.stderr
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", ["sharded", "full"])
def test_saved_by_two_processes_resumed_by_one(launched, mode, kind):
    _, folder = launched(mode)
    expected, _ = worker.single_process()
    for way in worker.WAYS[mode]:
        saved = folder / "checkpoints_resume_on_two" / way.replace(" ", "-")
        model = worker.Net(seed=1)
        optimizer = worker.make_optimizer(model)
        if kind == "sharded":
            parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
            dcp.load(parts, checkpoint_id=saved / "sharded", no_dist=True)
        else:
            parts = torch.load(saved / "full.pt", weights_only=True)
        set_state_dict(model, optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"])
        worker.train(model, optimizer, range(worker.SAVED_AT, worker.STEPS))
        torch.testing.assert_close(worker.values(model), expected, msg=way, **worker.ROUNDING)
        assert {float(state["step"]) for state in optimizer.state.values()} == {worker.STEPS}


def test_save_state_of_two_processes_is_read_by_one(launched):
    """Accelerate's own checkpoint of DDP: optimizer.bin is a plain state_dict."""
    from safetensors.torch import load_file

    _, folder = launched("ddp")
    saved = folder / "save_state_and_load_state" / "ddp.yaml-"
    model = worker.tiny_llama(seed=1)
    model.load_state_dict(load_file(saved / "model.safetensors"))
    optimizer = worker.AdamNX(model.parameters(), lr=1e-2)
    optimizer.load_state_dict(torch.load(saved / "optimizer.bin", weights_only=True))
    for rows in worker.TEXT.chunk(worker.STEPS)[worker.SAVED_AT :]:
        model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(
        worker.values(model), worker.accelerated_single_process(), rtol=1e-4, atol=1e-5
    )


# ---------------------------------------------------------------- the shipped configs


@pytest.mark.parametrize("config", sorted(path.name for path in worker.CONFIGS.glob("*.yaml")))
def test_accelerate_reads_the_config(config):
    from accelerate.commands.config.config_args import load_config_from_file

    text = (worker.CONFIGS / config).read_text()
    loaded = load_config_from_file(str(worker.CONFIGS / config))  # names keys that it does not know
    assert loaded.num_processes == 8
    assert text.startswith("# ")  # what it is for
    if config.startswith("zero"):
        assert loaded.deepspeed_config["zero_stage"] == int(config[4])
        # Offloading by these keys would put DeepSpeed's own optimizer in place of ours.
        assert loaded.deepspeed_config["offload_optimizer_device"] == "none"
    if "hybrid" in config:
        sizes = loaded.parallelism_config
        assert (
            sizes["parallelism_config_dp_replicate_size"] * sizes["parallelism_config_dp_shard_size"]
            == loaded.num_processes
        )


def test_there_is_a_config_for_every_mode():
    names = {path.stem for path in worker.CONFIGS.glob("*.yaml")}
    assert names == {"ddp", "fsdp2", "fsdp2_hybrid", "fsdp2_offload", "zero1", "zero2", "zero3"}
