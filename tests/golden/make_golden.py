"""Cuts `official_adamnx.npz`: python make_golden.py FULL_NPZ.

Source: float64 trajectories of the authors' own published optimizer (github mengzhu0308/AdamNX, torch
2.15, CPU). The optimizer is elementwise, so the first columns of every array are a trajectory of it, too.

In the file: `cases`, a JSON list of {n, lr, betas, eps, weight_decay, steps, save}; for case i: `i.param0`
[n], `i.grads` [steps, n], and after each step t of `save`: `i.param@t`, `i.exp_avg@t`, `i.exp_avg_sq@t` [n].
"""

import json
import sys
from pathlib import Path

import numpy as np

COLUMNS = (8, 8, 3, 2)  # of each case: the long ones are narrow


def main(source: str) -> None:
    with np.load(source) as full:
        cases = json.loads(str(full["cases"]))
        assert len(cases) == len(COLUMNS)
        cut = {}
        for i, (case, columns) in enumerate(zip(cases, COLUMNS, strict=True)):
            case["n"] = columns
            cut |= {name: full[name][..., :columns] for name in full.files if name.startswith(f"{i}.")}
    cut["cases"] = np.array(json.dumps(cases))
    np.savez_compressed(Path(__file__).with_name("official_adamnx.npz"), **cut)


if __name__ == "__main__":
    main(sys.argv[1])
