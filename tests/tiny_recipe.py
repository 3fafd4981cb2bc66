"""A recipe for tests of what needs no network to speak of, and the results of its runs."""

import json

TINY = {
    "task": "image_classification",
    "architecture": "efficientnet_v2_s",
    "architecture_options": {
        "depths": [1, 1],
        "widths": [8, 8, 8],
        "expand_ratios": [1, 2],
        "strides": [2, 2],
        "head_width": 16,
    },
    "image_column": "img",
    "label_column": "fine_label",
    "per_device_train_batch_size": 8,
    "eval_strategy": "epoch",
    "report_to": "none",
    "logging_steps": 2,
    "optim": "adamnx",
    "learning_rate": 0.01,
    "num_train_epochs": 2,
    "use_cpu": True,
}


def results_of(folder):
    """The content of results.json in the folder of a run."""
    return json.loads((folder / "results.json").read_text())
