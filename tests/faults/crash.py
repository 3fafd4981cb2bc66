"""Kills training runs at random moments, resumes them, compares how they end: python crash.py FOLDER.

Runs docs/examples (`trainer` and `accelerate_loop`), which resume from their newest complete checkpoint, as
child processes. They are forked from this one, which has imported all that takes long and touched no tensor,
so that an attempt takes a fraction of a second. Every second kill waits for a save to begin. Prints a line of
JSON for each of the two.
"""

import contextlib
import gc
import hashlib
import importlib
import json
import os
import random
import select
import shutil
import signal
import statistics
import sys
import time
import traceback
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from transformers import LlamaForCausalLM, Trainer

import adamnx_hf.optim  # noqa: F401 - as LlamaForCausalLM, what children would import one after the other
from trainer_patches.checkpoints import last_complete_checkpoint, why_incomplete

with contextlib.suppress(ImportError):
    import deepspeed  # noqa: F401 - where it is there, Accelerate imports it before it saves

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
KILLS, STEPS, SAVE_EVERY = 14, 20, 2
# 7 batches of 4, which are no multiple of the 2 that accumulate: an epoch ends with a smaller step.
TEXTS = [{"text": " ".join(str((start + i) % 30) for i in range(12))} for start in range(28)]
SAVES = {"trainer": (Trainer, "_save_checkpoint"), "accelerate_loop": (None, "save")}


def train(mode, out, tiny, markers):
    """In a child process: the example, telling through a pipe where saves begin and end."""
    example = importlib.import_module(mode)
    example.load_dataset = lambda *args, **kwargs: Dataset.from_list(TEXTS)
    owner, name = SAVES[mode]
    owner = owner or example
    save = getattr(owner, name)

    def marked(*args, **kwargs):
        os.write(markers, b"(")
        save(*args, **kwargs)
        os.write(markers, b")")

    setattr(owner, name, marked)
    argv = f"--model {tiny} --train_file unused --output_dir {out} --max_steps {STEPS}"
    argv += f" --save_steps {SAVE_EVERY} --learning_rate 0.01 --seed 3"
    if mode == "trainer":
        argv += " --per_device_train_batch_size 4 --report_to none --use_cpu --disable_tqdm true"
        argv += " --logging_strategy no --dataloader_pin_memory false"
    else:
        argv += " --batch_size 4 --gradient_accumulation_steps 2"
    example.main(argv.split())


def digest(mode, out):
    """Of the parameters and the whole state of the optimizer at the end."""
    if mode == "trainer":
        last = out / f"checkpoint-{STEPS}"
        model, optimizer = last / "model.safetensors", last / "optimizer.pt"
    else:
        last = out / f"step_{STEPS:08}"
        model, optimizer = last / "model.safetensors", last / "optimizer.bin"
    sha = hashlib.sha256(model.read_bytes())
    saved = torch.load(optimizer, weights_only=True)
    for id_, state in sorted(saved["state"].items()):
        for key, value in sorted(state.items()):
            sha.update(f"{id_} {key}".encode() + value.numpy().tobytes())
    sha.update(repr(saved["param_groups"]).encode())
    return sha.hexdigest()


def start(function, *args):
    """`function` in a child: its process id and the reading end of the pipe."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        log = os.open("children.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        function(*args, writing)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def in_child(function):
    """Its result, computed where tensors may be touched."""

    def write(writing):
        os.write(writing, function().encode())

    pid, reading = start(write)
    with os.fdopen(reading, "rb") as pipe:
        result = pipe.read().decode()
    os.waitpid(pid, 0)
    return result


def follow(pid, reading, kill_at=None, kill_in_save=None):
    """Waits for a child, or kills it: after `kill_at` seconds, or so long into its first or second save.

    Returns whether it was killed, whether that was during a save, and the lengths of its saves in seconds.
    """
    begun, save_begun, lengths, saves = time.monotonic(), None, [], 0
    wanted = random.randint(1, 2)
    while True:
        now = time.monotonic()
        deadline = None
        if kill_at is not None:
            deadline = begun + kill_at
        elif kill_in_save is not None and save_begun is not None and saves >= wanted:
            deadline = save_begun + kill_in_save
        if deadline is not None and now >= deadline:
            os.kill(pid, signal.SIGKILL)
            break
        ready, _, _ = select.select([reading], [], [], None if deadline is None else deadline - now)
        if ready:
            marker = os.read(reading, 1)
            if marker == b"(":
                save_begun, saves = time.monotonic(), saves + 1
            elif marker == b")":
                lengths.append(time.monotonic() - save_begun)
                save_begun = None
            else:  # closed: it has ended
                break
    while marker := os.read(reading, 1):  # what it still did before the signal came through
        save_begun = time.monotonic() if marker == b"(" else None
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not killed and status != 0:
        sys.exit("a run failed:\n" + Path("children.log").read_text()[-5000:])
    return killed, killed and save_begun is not None, lengths


def can_resume(mode, out):
    return bool(last_complete_checkpoint(out) if mode == "trainer" else list(out.glob("step_*")))


def unfinished(mode, out):
    if mode == "trainer":
        return sum(why_incomplete(path) is not None for path in out.glob("checkpoint-*"))
    return len(list(out.glob("unfinished_*")))


def make_tiny(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", *map(str, range(30))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="<s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=16,
            attention_dropout=0.1,  # so that the state of the random numbers counts
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    ).save_pretrained(folder)
    return ""


def main(folder):
    sys.path.insert(0, str(EXAMPLES))
    for mode in SAVES:
        importlib.import_module(mode)
    disable_progress_bars()
    os.chdir(folder)
    gc.freeze()  # when a child collects garbage, it need not look through what was imported here
    tiny = Path("tiny").resolve()
    in_child(lambda: make_tiny(tiny))
    for mode in SAVES:
        print(json.dumps(kill_again_and_again(mode, tiny)), flush=True)


def kill_again_and_again(mode, tiny):
    seed = random.randrange(2**32)
    random.seed(seed)
    out = Path("out").resolve()
    began = time.monotonic()
    _, _, lengths = follow(*start(train, mode, out, tiny))
    whole = time.monotonic() - began
    expected = in_child(lambda: digest(mode, out))
    assert expected, Path("children.log").read_text()
    shutil.rmtree(out)

    counts = ("kills", "in_save", "unfinished", "resumed", "runs", "same")
    result = {"mode": mode, "seed": seed, **dict.fromkeys(counts, 0)}
    attempt = 0
    while result["kills"] < KILLS or out.exists():
        attempt += 1
        if result["kills"] >= KILLS:
            how = {}
        elif attempt % 2:
            how = {"kill_at": random.uniform(0.1, 0.8) * whole}
        else:
            how = {"kill_in_save": random.uniform(0, 0.9) * statistics.median(lengths)}
        result["resumed"] += can_resume(mode, out)
        killed, in_save, _ = follow(*start(train, mode, out, tiny), **how)
        result["kills"] += killed
        result["in_save"] += in_save
        if killed:
            out.mkdir(exist_ok=True)
            result["unfinished"] += unfinished(mode, out)
        else:
            result["runs"] += 1
            result["same"] += in_child(lambda: digest(mode, out)) == expected
            shutil.rmtree(out)
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
