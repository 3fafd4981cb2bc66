"""Ends recipes' runs at random moments, goes on, compares how they end: python crash_recipe.py FOLDER PLAN.

`adamnx-hf run` in child processes, as in crash.py, with `--resume_from_checkpoint last` wherever there is
something to go on from. PLAN is JSON: how many runs to end by each of WAYS, and whether the clock jumps
meanwhile. Prints a line of JSON.
"""

import gc
import json
import os
import random
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import matplotlib.pyplot  # noqa: F401 - as the others, what children would import one after the other
import numpy as np
import transformers
import yaml
from crash import in_child, start
from datasets import ClassLabel, Dataset, Features, Image, disable_progress_bars
from transformers.models.auto import modeling_auto  # noqa: F401

import adamnx_hf.runs.training
import adamnx_hf.tasks.image_classification  # noqa: F401
from adamnx_hf import cli
from adamnx_hf.runs import throughput
from adamnx_hf.tasks import trainer
from trainer_patches.checkpoints import find_checkpoints, why_incomplete

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_recipe import TINY

STEPS, SAVE_EVERY = 16, 2
RECIPE = {
    **TINY,
    "dataset_name": "data",
    "num_train_epochs": 4,
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": SAVE_EVERY,
    "save_total_limit": 3,
    "disable_tqdm": True,
}
DAY = 86_400

#: How a run is ended: the signals, whether it is in a save, and the statuses that it may end with.
WAYS = {
    "kill": ([signal.SIGKILL], False, {-signal.SIGKILL}),
    "kill in a save": ([signal.SIGKILL], True, {-signal.SIGKILL}),
    "SIGTERM": ([signal.SIGTERM], False, {-signal.SIGTERM}),
    "SIGTERM in a save": ([signal.SIGTERM], True, {-signal.SIGTERM}),
    "SIGINT": ([signal.SIGINT], False, {130}),
    "SIGINT in a save": ([signal.SIGINT], True, {130}),
    "SIGINT twice": ([signal.SIGINT, signal.SIGINT], False, {130, -signal.SIGINT}),
    "SIGINT twice in a save": ([signal.SIGINT, signal.SIGINT], True, {130, -signal.SIGINT}),
}


def make_data():
    """Three colours, as tests/conftest.py has them."""
    names = ["red", "green", "blue"]
    features = Features({"img": Image(), "fine_label": ClassLabel(names=names)})
    generator = np.random.default_rng(0)
    for split, count in (("train", 32), ("test", 9)):
        labels = generator.integers(0, 3, count)
        images = generator.integers(0, 100, (count, 32, 32, 3), dtype=np.uint8)
        images[np.arange(count), :, :, labels] += 150
        data = Dataset.from_dict({"img": list(images), "fine_label": labels}, features=features)
        Path("data/data").mkdir(parents=True, exist_ok=True)
        data.to_parquet(f"data/data/{split}-00000-of-00001.parquet")
    Path("tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    return ""


def train(out, goes_on, jump, markers):
    """In a child process: the command, telling through a pipe where saves begin and end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored
    save, measure, now = trainer.RecipeTrainer._save_checkpoint, throughput.measure, time.time

    def marked(*args, **kwargs):
        os.write(markers, b"(")
        save(*args, **kwargs)
        os.write(markers, b")")

    trainer.RecipeTrainer._save_checkpoint = marked
    throughput.measure = lambda trainer, seconds: measure(trainer, 0.01)
    if jump:
        time.time = lambda: now() + random.uniform(-DAY, DAY)
    words = ["run", "tiny.yaml", "--output_dir", str(out)]
    words += ["--resume_from_checkpoint", "last"] if goes_on else ["--overwrite_output_dir"]
    status = cli.main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def follow(pid, reading, signals=(), at=None, in_save=None):
    """Waits for a child; sends signals after `at` seconds, or so long into one of its first three saves.

    Returns the child's status, whether it got a signal, and the lengths of its saves.
    """
    begun, save_begun, lengths, saves = time.monotonic(), None, [], 0
    wanted, left, sent = random.randint(1, 3), list(signals), 0
    while True:
        deadline = None
        if left and sent:
            deadline = sent + random.uniform(0, 0.05)
        elif left and at is not None:
            deadline = begun + at
        elif left and save_begun is not None and saves >= wanted:
            deadline = save_begun + in_save
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(pid, left.pop(0))  # it has not been waited for, so the number is still its own
            sent = time.monotonic()
            continue
        timeout = None if deadline is None else max(deadline - time.monotonic(), 0)
        ready, _, _ = select.select([reading], [], [], timeout)
        if ready:
            marker = os.read(reading, 1)
            if marker == b"(":
                save_begun, saves = time.monotonic(), saves + 1
            elif marker == b")" and save_begun is not None:
                lengths.append(time.monotonic() - save_begun)
                save_begun = None
            elif not marker:
                break
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code, sent > 0, lengths


def outcome(out):
    """All that has to be the same, whatever happened on the way."""
    import hashlib

    import torch

    last = out / f"checkpoint-{STEPS}"
    sha = hashlib.sha256((out / "model.safetensors").read_bytes() + (last / "model.safetensors").read_bytes())
    saved = torch.load(last / "optimizer.pt", weights_only=True)
    for id_, state in sorted(saved["state"].items()):
        for key, value in sorted(state.items()):
            sha.update(f"{id_} {key}".encode() + value.numpy().tobytes())
    sha.update(repr(saved["param_groups"]).encode())
    results = json.loads((out / "results.json").read_text())
    rows = [{key: row[key] for key in row if key != "train_seconds"} for row in results["per_epoch"]]
    sha.update(json.dumps([rows, results["metrics"]]).encode())
    return sha.hexdigest() + "," + "-".join(map(str, sorted(find_checkpoints(out))))


def check_files(out):
    """That no file of the run's own is cut short, and that only checkpoints may be."""
    for path in out.glob("[!.]*.json"):
        json.loads(path.read_text())
    for path in out.glob("[!.]*.png"):
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), path
    if (out / "recipe.yaml").exists():
        assert yaml.safe_load((out / "recipe.yaml").read_text())["max_steps"] == STEPS
    if (out / "model.safetensors").exists():
        assert why_cut(out / "model.safetensors") is None


def why_cut(path):
    from trainer_patches.checkpoints import _check_safetensors

    return _check_safetensors(path)


def end_again_and_again(plan):
    seed = random.randrange(2**32)
    random.seed(seed)
    jumps = plan.pop("jumps", False)
    out, log = Path("out").resolve(), Path("children.log")
    follow(*start(train, out, False, False))  # makes the data set's cache
    begun = time.monotonic()
    status, _, lengths = follow(*start(train, out, False, False))
    whole = time.monotonic() - begun
    assert status == 0, log.read_text()[-5000:]
    expected = in_child(lambda: outcome(out))
    shutil.rmtree(out)

    todo = [way for way, count in plan.items() for _ in range(count)]
    random.shuffle(todo)
    result = {"seed": seed, "ended": {}, "incomplete": 0, "resumed": 0, "runs": 0, "same": 0}
    while todo or out.exists():
        goes_on = any(why_incomplete(path) is None for path in find_checkpoints(out).values())
        result["resumed"] += goes_on
        signals, in_save, statuses = WAYS[todo[-1]] if todo else ([], False, {0})
        when = {"in_save": random.uniform(0, 0.9) * np.median(lengths)} if in_save else {}
        when = when or {"at": random.uniform(0.1, 0.9) * whole}
        log.unlink()
        status, hit, _ = follow(*start(train, out, goes_on, jumps), signals, **when)
        said = log.read_text()
        if status == 0:  # also where the signal came too late
            result["runs"] += 1
            result["same"] += in_child(lambda: outcome(out)) == expected
            shutil.rmtree(out)
            continue
        assert hit and status in statuses, (todo[-1:], status, said[-5000:])
        assert "Traceback" not in said, said[-5000:]
        if status == 130:
            assert said.rstrip().endswith("adamnx-hf: interrupted"), said[-5000:]
        way = todo.pop()
        result["ended"][way] = result["ended"].get(way, 0) + 1
        check_files(out)
        result["incomplete"] += any(
            why_incomplete(path) is not None for path in find_checkpoints(out).values()
        )
        if jumps:
            for path in find_checkpoints(out).values():
                then = time.time() + random.uniform(-DAY, DAY)
                os.utime(path, (then, then))
    return result


def main(folder, plan):
    disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    os.chdir(folder)
    gc.freeze()  # when a child collects garbage, it need not look through what was imported here
    in_child(make_data)
    print(json.dumps(end_again_and_again(json.loads(plan))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
