"""`python -m adamnx_hf.launch`: real processes, compared with the same script started directly."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from forks import lean

from trainer_patches import launch

LAUNCH = [sys.executable, "-m", "adamnx_hf.launch"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def run(command, cwd, **env):
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return result.returncode, result.stdout, result.stderr


SCRIPTS = {
    "argv and the module": """
        import sys, os
        print(sys.argv, __name__, __file__, sys.path[0], __package__, __spec__ is None, __doc__)
        print(sys.modules["__main__"].__dict__ is globals(), sorted(vars()))
        print(sys.orig_argv[1:] == [__file__, *sys.argv[1:]], os.getcwd())
        print(sys.flags, "torch" in sys.modules, "adamnx_hf" in sys.modules)
        """,
    "exit code": "raise SystemExit(7)",
    "exit message": "raise SystemExit('a message')",
    "traceback": """
        def inner():
            raise ValueError("as it is")
        try:
            inner()
        except ValueError as error:
            raise KeyError("chained") from error
        """,
    "syntax error": "print('a'",
    "interrupt": "raise KeyboardInterrupt",
    "killed": f"import os; print('here', flush=True); os.kill(os.getpid(), {int(signal.SIGKILL)})",
    "standard input": "print(input(), input())",
    "atexit and threads": """
        import atexit, threading
        late = "a global that is still there"
        atexit.register(lambda: print(late))
        threading.Thread(target=lambda: print(late)).start()
        """,
    "spawned workers": """
        import multiprocessing
        def work(i):
            return i * factor
        factor = 3
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                print(pool.map(work, range(4)))
        """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_as_if_started_directly(tmp_path, name):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPTS[name]))
    results = [
        subprocess.run(
            [*start, str(script), "--flag", "a b", "-m", ""],
            cwd=tmp_path,
            input="one\ntwo\n",
            capture_output=True,
            text=True,
            timeout=100,
        )
        for start in ([sys.executable], LAUNCH)
    ]
    direct, launched = [(r.returncode, r.stdout, r.stderr) for r in results]
    assert launched == direct
    assert any(direct)


def test_modules_folders_and_interpreter_options(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "__main__.py").write_text(
        "import sys; print(sys.argv, __name__, __package__, __spec__ and __spec__.name, sys.path[0])\n"
        "print(sys.flags, sys._xoptions, sys.stdout.write_through)\n"
        "assert 0, 'not with -O'\n"
    )
    options = ["-O", "-u", "-X", "faulthandler", "-W", "error"]
    for arguments in (
        ["-m", "package", "x"],
        ["package", "x"],
        ["-m", "package.__main__"],
        ["-m", "nothing"],
    ):
        direct = run([sys.executable, *options, *arguments], tmp_path)
        launched = run([sys.executable, *options, "-m", "adamnx_hf.launch", *arguments], tmp_path)
        assert launched == direct
    together = run([sys.executable, "-Om", "adamnx_hf.launch", "-m", "package", "x"], tmp_path)
    assert together == run([sys.executable, "-Om", "package", "x"], tmp_path)
    assert together[0] == 0


def test_commands(tmp_path):
    assert run([*LAUNCH, "sh", "-c", 'echo "$0 $1"; exit 5', "a", "b c"], tmp_path) == (5, "a b c\n", "")
    script = tmp_path / "script"
    script.write_text("print('python')")  # not executable: Python's
    assert run([*LAUNCH, script], tmp_path) == (0, "python\n", "")
    script.write_text("#!/bin/sh\necho shell")
    script.chmod(0o755)
    assert run([*LAUNCH, "./script"], tmp_path) == (0, "shell\n", "")


def test_help_and_mistakes(tmp_path):
    status, out, _ = run([*LAUNCH, "--help"], tmp_path)
    assert status == 0
    assert "python -m adamnx_hf.launch [-m MODULE | SCRIPT.py | COMMAND]" in out
    assert run(LAUNCH, tmp_path)[:2] == (2, out)
    for arguments, message in (
        (["no-such-command"], "'no-such-command' is neither a file nor a command"),
        (["-m"], "-m needs the name of a module"),
        (["--optim", "adamnx"], "unknown option --optim"),
    ):
        status, out, error = run([*LAUNCH, *arguments], tmp_path)
        assert (status, out) == (2, "")
        assert message in error
    (tmp_path / "no-program").write_text("")
    (tmp_path / "no-program").chmod(0o755)
    assert run([*LAUNCH, "./no-program"], tmp_path)[0] == 2
    missing = run([*LAUNCH, "missing.py"], tmp_path)
    assert missing == run([sys.executable, "missing.py"], tmp_path)
    status, _, error = run([sys.executable, "-E", "-m", "adamnx_hf.launch", "x.py"], tmp_path)
    assert status == 2
    assert "start without them" in error


def test_another_sitecustomize_runs_too(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('theirs', __name__, flush=True)\nvalue = 3\n")
    (tmp_path / "script.py").write_text("import sitecustomize, sys; print(sitecustomize.value)")
    status, out, error = run([*LAUNCH, "script.py"], tmp_path, PYTHONPATH=str(tmp_path))
    assert (status, error) == (0, "")
    assert out.splitlines() == ["theirs sitecustomize"] * 2 + ["3"]
    # One that fails is reported as Python reports it, and the script runs.
    (tmp_path / "sitecustomize.py").write_text("import no_such_module")
    (tmp_path / "script.py").write_text("print('script')")
    direct = run([sys.executable, "script.py"], tmp_path, PYTHONPATH=str(tmp_path))
    launched = run([*LAUNCH, "script.py"], tmp_path, PYTHONPATH=str(tmp_path))
    assert launched[:2] == direct[:2] == (0, "script\n")
    # Of the launcher's own start, and of the script's.
    assert launched[2].count("No module named 'no_such_module'") == 2
    assert direct[2].count("No module named 'no_such_module'") == 1


# Imported in a process of the script's, too; a script may ask whether there is one.
OWN_SITECUSTOMIZE = """
import importlib.util, subprocess, sys
print("sitecustomize" in sys.modules, flush=True)
if sys.argv[1:] == ["child"]:
    print(importlib.util.find_spec("sitecustomize").origin)
else:
    subprocess.run([sys.executable, __file__, "child"], check=True)
import sitecustomize
print(sitecustomize.__file__, sitecustomize.value)
"""


@pytest.mark.skipif("sitecustomize" in sys.modules, reason="this Python has one of its own")
def test_a_sitecustomize_beside_the_script_is_the_scripts(tmp_path):
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("print('theirs', flush=True)\nvalue = 3\n")
    script = folder / "script.py"
    script.write_text(OWN_SITECUSTOMIZE)
    direct = run([sys.executable, script], tmp_path)
    assert direct[0] == 0
    assert direct[1].splitlines()[-1] == f"{folder / 'sitecustomize.py'} 3"
    assert run([*LAUNCH, script], tmp_path) == direct
    # And where there is none, there is none.
    (folder / "sitecustomize.py").unlink()
    script.write_text("import sitecustomize")
    direct = run([sys.executable, script], tmp_path)
    assert "No module named 'sitecustomize'" in direct[2]
    assert run([*LAUNCH, script], tmp_path) == direct


def test_environment_is_added_to():
    made = launch.build_environment(["b"], {"PYTHONPATH": "x", "TRAINER_PATCHES_MODULES": "a", "HOME": "h"})
    assert made == {
        "PYTHONPATH": f"{launch.BOOTSTRAP}{os.pathsep}x",
        "TRAINER_PATCHES_MODULES": "a,b",
        "HOME": "h",
    }
    assert launch.build_environment(["b"], made) == made  # a launch within a launch
    assert launch.build_environment(["a"], {})["PYTHONPATH"] == str(launch.BOOTSTRAP)


def test_a_process_that_needs_no_names_pays_next_to_nothing(tmp_path):
    (tmp_path / "script.py").write_text(
        "import sys; print(sorted({'torch', 'wrapt', 'transformers', 'trainer_patches'} & set(sys.modules)))"
    )
    assert run([*LAUNCH, "script.py"], tmp_path) == (0, "[]\n", "")


def test_names_that_cannot_be_had_are_reported(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "script.py").write_text("import accelerate; print('runs')")
    (tmp_path / "broken_module.py").write_text("raise ValueError('as it happens')")
    env = {"TRAINER_PATCHES_MODULES": "no_such_module,broken_module", "PYTHONPATH": str(tmp_path)}
    status, out, error = run([*LAUNCH, "script.py"], tmp_path, **env)
    assert (status, out) == (0, "runs\n")
    assert "no optimizer names of no_such_module: No module named" in error
    assert "no optimizer names of broken_module: as it happens" in error
    assert "Traceback" not in error


# Somebody else's script: it knows nothing of us, and neither do the processes it starts.
SOMEBODYS = """
import multiprocessing, os, subprocess, sys
from transformers import HfArgumentParser, TrainingArguments

USE = '''
from transformers import TrainingArguments
print(TrainingArguments("x", optim="adamnx", report_to="none").adam_beta2)
'''

def work(_):
    return TrainingArguments("x", optim="adamnx", report_to="none").adam_beta2

if __name__ == "__main__":
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    rank = int(os.environ["RANK"])
    said = [f"rank {rank}", args.optim.value, args.adam_beta2, sys.argv[0]]
    if rank == 0 and "CHILDREN" in os.environ:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            del os.environ[name]  # what it starts is no part of the training
        said.append(multiprocessing.get_context("spawn").Pool(1).map(work, [0]))
        said.append(subprocess.check_output([sys.executable, "-c", USE], text=True).strip())
    os.write(1, (" ".join(map(str, said)) + "\\n").encode())  # at once, as the other process writes there too
"""


@pytest.mark.parametrize("starter", ["accelerate", "torchrun"])
def test_unmodified_script(tmp_path, starter):
    pytest.importorskip("accelerate")
    (tmp_path / "somebodys.py").write_text(SOMEBODYS)
    command = {
        "accelerate": [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
        "torchrun": [*TORCHRUN, "--standalone", "--nproc-per-node", "1"],
    }[starter]
    arguments = ["--output_dir", "x", "--optim", "adamnx", "--report_to", "none", "--use_cpu"]
    # Of one starter, to be quick: a second process, and that the script's own children know the names, too.
    all_of_it = starter == "accelerate"
    env = {**lean(), "ACCELERATE_USE_CPU": "true"} | ({"CHILDREN": "1"} if all_of_it else {})
    status, out, error = run(
        [*command, "-m", "adamnx_hf.launch", "somebodys.py", *arguments], tmp_path, **env
    )
    assert status == 0, error
    lines = sorted(line for line in out.splitlines() if line.startswith("rank"))
    if all_of_it:
        assert lines == ["rank 0 adamnx 0.99 somebodys.py [0.99] 0.99", "rank 1 adamnx 0.99 somebodys.py"]
    else:
        assert lines == ["rank 0 adamnx 0.99 somebodys.py"]


def test_failure_of_a_worker_is_the_launchers_failure(tmp_path):
    pytest.importorskip("accelerate")
    (tmp_path / "fails.py").write_text("import sys; sys.exit(3)")
    status, _, error = run(
        [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "adamnx_hf.launch", "fails.py"],
        tmp_path,
    )
    assert status == 1
    assert "exitcode" in error
    assert ": 3 " in error


@pytest.fixture
def tiny(tmp_path):
    sys.path.insert(0, str(Path(__file__).parent / "faults"))
    import crash

    crash.make_tiny(tmp_path / "tiny")
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("\n".join(f'{{"text": "{i} {i + 1} 3 4 5 6"}}' for i in range(20)))
    return tmp_path


def test_trl_sft(tiny):
    """TRL checks the arguments in the parent, then spawns `accelerate launch` with a script of its own."""
    pytest.importorskip("trl")
    trl = Path(sys.executable).with_name("trl")
    arguments = (
        "sft --model_name_or_path tiny --dataset_name data --optim adamnx --output_dir out --max_steps 2"
    )
    arguments += " --report_to none --use_cpu true --per_device_train_batch_size 2 --save_strategy steps"
    status, out, error = run([*LAUNCH, trl, *arguments.split()], tiny, **lean())
    assert status == 0, error
    assert "Training completed" in out + error
    import torch

    saved = torch.load(tiny / "out" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert saved["param_groups"][0]["betas"] == (0.9, 0.99)
    assert saved["param_groups"][0]["beta2_schedule"] == "adamnx"
