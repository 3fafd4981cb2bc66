"""last_complete_checkpoint: what a killed Trainer leaves behind is passed over."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from trainer_patches import last_complete_checkpoint
from trainer_patches.checkpoints import why_incomplete

transformers = pytest.importorskip("transformers")
from test_trainer import make_trainer  # noqa: E402

# What a checkpoint of a Trainer has; each of them may be the one that was being written.
FILES = [
    "config.json",
    "model.safetensors",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    make_trainer(folder, max_steps=6, save_strategy="steps", save_steps=2).train()
    return folder


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_newest_by_number(run):
    (run / "checkpoint-10").mkdir()
    (run / "checkpoint-x").mkdir()
    (run / "checkpoint-99").write_text("a file")
    assert last_complete_checkpoint(run) == str(run / "checkpoint-6")
    assert last_complete_checkpoint(str(run)) == str(run / "checkpoint-6")


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
@pytest.mark.parametrize("name", FILES)
def test_checkpoint_with_a_file_cut_short_is_passed_over(run, name, keep, caplog):
    path = run / "checkpoint-6" / name
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with caplog.at_level("WARNING"):
        transformers.utils.logging.enable_propagation()
        assert last_complete_checkpoint(run) == str(run / "checkpoint-4")
        transformers.utils.logging.disable_propagation()
    assert "checkpoint-6 is passed over" in caplog.text
    assert name in caplog.text


def test_what_is_written_last_is_missing(run):
    (run / "checkpoint-6" / "trainer_state.json").unlink()
    assert "trainer_state.json" in why_incomplete(run / "checkpoint-6")
    make_trainer(run, max_steps=6).train(resume_from_checkpoint=last_complete_checkpoint(run))
    # The Trainer itself takes the newest folder, and fails.
    with pytest.raises((FileNotFoundError, ValueError)):
        make_trainer(run, max_steps=6).train(resume_from_checkpoint=True)


def test_none_where_there_is_none(tmp_path):
    assert last_complete_checkpoint(tmp_path / "not there") is None
    (tmp_path / "checkpoint-3").mkdir()
    assert last_complete_checkpoint(tmp_path) is None
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(tmp_path))
    assert trainer.state.global_step == 1


def test_sharded_weights(run):
    folder = run / "checkpoint-6"
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors is missing" in why_incomplete(folder)
    shutil.copy(folder / "model.safetensors", folder / "model-00002-of-00002.safetensors")
    assert why_incomplete(folder) is None


def test_shards_of_torch_distributed_checkpoint(run):
    import torch.distributed.checkpoint as dcp

    folder = run / "checkpoint-6"
    dcp.save({"weight": torch.ones(3)}, checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)
    assert why_incomplete(folder) is None
    Path(folder / "pytorch_model_fsdp_0" / ".metadata").unlink()
    assert ".metadata" in why_incomplete(folder)
