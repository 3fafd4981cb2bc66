"""What a user may expect of an installed adamnx-hf. `.ci/dist` runs it outside of the checkout."""

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


def command(*words: str) -> str:
    """What `adamnx-hf` prints."""
    program = Path(sys.executable).with_name("adamnx-hf")
    return subprocess.run([program, *words], capture_output=True, text=True, check=True).stdout


def optimizer() -> None:
    """AdamNX, where nothing but torch is installed."""
    import torch

    from adamnx_hf import AdamNX

    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), 0.5)
    AdamNX([weight], lr=0.1, weight_decay=0.0).step()
    assert torch.allclose(weight, torch.full((3,), 0.9)), weight


def base() -> None:
    """The packages, their types, the Trainer, the command and the configs, without any extra."""
    import importlib.metadata

    import torch
    from transformers import Trainer, TrainingArguments

    import adamnx_hf
    import trainer_patches
    from adamnx_hf.recipes.files import find_folder

    optimizer()
    for package in (adamnx_hf, trainer_patches):
        place = Path(str(package.__file__)).parent
        assert "site-packages" in place.parts and (place / "py.typed").is_file(), place
    assert importlib.metadata.version("adamnx-hf") == adamnx_hf.__version__

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.layer(x).square().mean()}

    with tempfile.TemporaryDirectory() as out:
        args = TrainingArguments(
            out, optim="adamnx", max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True
        )
        trainer = Trainer(Model(), args, train_dataset=[{"x": torch.ones(2)}] * 4)
        trainer.train()
    inner = trainer.optimizer
    while hasattr(inner, "optimizer"):  # Accelerate's wrapper
        inner = inner.optimizer
    assert type(inner).__name__ == "AdamNX" and trainer.state.global_step == 2

    assert "publish" in command("--help")
    listed = {entry["name"] for entry in json.loads(command("recipes", "--json"))}
    assert listed == {
        path.stem for path in find_folder().glob("*_*/*.yaml") if path.parent.name != "accelerate_configs"
    }
    assert "voc_yolov7_tiny" in listed

    from accelerate.commands.config.config_args import load_config_from_file

    configs = find_folder() / "accelerate_configs"
    assert str(configs) in command("recipes")
    assert len([load_config_from_file(str(path)) for path in configs.glob("*.yaml")]) == 7
    assert len([json.loads(path.read_text()) for path in configs.glob("deepspeed/*.json")]) == 5


def recipes() -> None:
    """A recipe, and the metrics as modules of `evaluate`."""
    from adamnx_hf import metrics

    top = metrics.load("top_k_error").compute(predictions=[[0.1, 0.9], [0.8, 0.2]], references=[1, 1], k=1)
    assert top == {"top1_error": 50.0}, top
    found = {"boxes": [[10, 10, 50, 50]], "scores": [0.9], "labels": [0]}
    there = {"boxes": [[10, 10, 50, 46]], "labels": [0], "difficult": [False]}
    voc = metrics.load("voc_map").compute(predictions=[found], references=[there], iou_thresholds=[0.5])
    assert math.isclose(voc["map_50"], 100), voc
    with tempfile.TemporaryDirectory() as out:
        command("run", "cifar100_efficientnetv2_tiny", "--smoke", "--output_dir", f"{out}/run")
        assert json.loads(Path(out, "run", "results.json").read_text())["optimizer"] == "AdamNX"


if __name__ == "__main__":
    part = sys.argv[1]
    if part == "optimizer":
        assert importlib.util.find_spec("transformers") is None
    {"optimizer": optimizer, "base": base, "recipes": recipes}[part]()
