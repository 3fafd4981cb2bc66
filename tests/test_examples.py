"""docs/examples, started as their docstrings say, on a tiny model made from a config.

tests/faults runs `trainer.py` and `accelerate_loop.py` in one process, again and again.
"""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forks import lean

pytest.importorskip("transformers")
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
TWO_PROCESSES = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With `tiny`, a Llama, and `data`, some lines of text."""
    sys.path.insert(0, str(Path(__file__).parent / "faults"))
    import crash

    folder = tmp_path_factory.mktemp("examples")
    crash.make_tiny(folder / "tiny")
    (folder / "data").mkdir()
    lines = [f'{{"text": "{i % 30} {(i + 1) % 30} 3 4 5 6"}}' for i in range(32)]
    (folder / "data" / "train.jsonl").write_text("\n".join(lines))
    return folder


def run(folder, command):
    result = subprocess.run(
        [sys.executable, *command.split()],
        cwd=folder,
        env={**lean(), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def assert_adamnx(path, step):
    saved = torch.load(path, weights_only=True)
    assert saved["param_groups"][0]["beta2_schedule"] == "adamnx"
    assert {float(state["step"]) for state in saved["state"].values()} == {step}


def test_accelerate_loop_in_two_processes(folder):
    command = f"{TWO_PROCESSES} {EXAMPLES}/accelerate_loop.py --model tiny --train_file data/train.jsonl"
    command += (
        " --output_dir loop --batch_size 2 --gradient_accumulation_steps 2 --max_steps 4 --save_steps 2"
    )
    output = run(folder, command + " --learning_rate 0.01")
    assert "step 4: loss" in output
    assert sorted(path.name for path in (folder / "loop").iterdir()) == [
        "model",
        "step_00000002",
        "step_00000004",
    ]
    assert_adamnx(folder / "loop" / "step_00000004" / "optimizer.bin", 4)
    assert (folder / "loop" / "model" / "model.safetensors").is_file()


def test_sft_with_lora(folder):
    pytest.importorskip("trl")
    pytest.importorskip("peft")
    command = f"{EXAMPLES}/sft_lora.py --model_name_or_path tiny --dataset_name data --output_dir sft"
    command += " --max_steps 3 --save_steps 3 --report_to none --use_cpu --per_device_train_batch_size 4"
    run(folder, command)
    assert_adamnx(folder / "sft" / "checkpoint-3" / "optimizer.pt", 3)
    assert (folder / "sft" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("example", "line"),
    [
        ("accelerate_loop.py", "AdamNX(groups, lr=args.learning_rate)  # was: torch.optim.AdamW("),
        ("trainer.py", 'optim: str = "adamnx"  # was: "adamw_torch_fused"'),
        ("sft_lora.py", 'optim="adamnx",  # was: "adamw_torch_fused"'),
    ],
)
def test_one_line_differs_from_adamw(example, line):
    text = (EXAMPLES / example).read_text()
    assert text.count("# was: ") == 1
    assert line in text


def test_trainer_names_what_is_missing(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    with pytest.raises(SystemExit):
        importlib.import_module("trainer").main(["--output_dir", "out", "--model", "tiny"])
    assert "the following arguments are required: --train_file" in capsys.readouterr().err


def test_accelerate_loop_with_fewer_rows_than_a_batch(folder, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(folder)
    loop = importlib.import_module("accelerate_loop")
    args = loop.parse(
        [
            *("--model", "tiny", "--train_file", "data/train.jsonl"),
            *("--output_dir", "out", "--batch_size", "33"),
        ]
    )
    with pytest.raises(ValueError, match="has 32 rows: fewer than a batch of --batch_size 33 for each of 1"):
        loop.batches(args, loop.Accelerator(cpu=True))
