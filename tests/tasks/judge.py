"""Runs a recipe, then judges others: `python judge.py FOLDER RECIPE --FIELD VALUE ...`.

Under a launcher, in several processes. The run is that of `python -m adamnx_hf.cli run RECIPE`. Judged is
each image recipe's smoke run on 32 images, in batches of 5 a process. Prints the metrics as JSON, at the end.
"""

import json
import runpy
import sys
from pathlib import Path

import torch

from adamnx_hf import recipes

RECIPES = ("cifar100_nano", "sbd_unet", "voc_yolov7_tiny")


def judge(folder):
    """By recipe, the metrics of one evaluation."""
    found = {}
    for name in RECIPES:
        words = ["--smoke", "--per_device_eval_batch_size", "5", "--output_dir", str(Path(folder) / name)]
        resolved = recipes.resolve(name, words)
        trainer = resolved.task.make_trainer(resolved)
        if name == "voc_yolov7_tiny":
            shift_true_boxes(trainer)
        else:
            with torch.no_grad():  # so that the untrained network answers each image differently
                for key, parameter in trainer.model.named_parameters():
                    parameter.mul_(30 if "classifier" in key else 1)
        measured = trainer.evaluate()
        found[name] = {key: measured[f"eval_{key}"] for key in resolved.task.METRICS}
    return found


def shift_true_boxes(trainer):
    """Has it find each object 4 pixels aside, likelier to the right: some count, some do not."""
    step = trainer.prediction_step

    def shifted(*args, **kwargs):
        loss, _, true = step(*args, **kwargs)
        boxes = torch.cat([true[..., :1], true[..., 2:3] / 100, true[..., 2:] + 4], -1)
        return loss, torch.where(true[..., :1] < 0, true, boxes), true

    trainer.prediction_step = shifted


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *words = sys.argv[1:]
    sys.argv[1:] = ["run", *words, "--output_dir", str(Path(folder) / "run")]
    try:
        runpy.run_module("adamnx_hf.cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    figures = judge(folder)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print(json.dumps(figures))
