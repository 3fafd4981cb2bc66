"""Starts somebody else's script with our optimizer names in it and in every Python process it starts.

Nothing is emulated: the process *becomes* the script's (`exec`), so that `sys.argv`, `__main__`, exit codes,
signals and tracebacks are those of the script started directly. All that differs is PYTHONPATH, which has
the folder `bootstrap` in front; Python runs the `sitecustomize.py` in it at every start.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["BOOTSTRAP", "command_of", "environment", "launch"]

BOOTSTRAP = Path(__file__).resolve().parent / "bootstrap"

# Read by bootstrap/sitecustomize.py: the modules to import, separated by commas.
_MODULES = "TRAINER_PATCHES_MODULES"

_USAGE = """\
usage: python -m {prog} [-m MODULE | SCRIPT.py | COMMAND] [ARGUMENT ...]

Runs a Python module, a Python script or any other command as if it had been started directly, with the
optimizer names of {modules} known to Transformers in it and in every Python process that it starts.

  python -m {prog} run_clm.py --optim adamnx ...
  python -m {prog} trl sft --optim adamnx ...
  accelerate launch -m {prog} run_clm.py --optim adamnx ...
  torchrun --nproc-per-node 2 -m {prog} run_clm.py --optim adamnx ...
"""


def environment(modules: Sequence[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environ`, so changed that every Python started in it knows the names that `modules` register.

    Args:
        modules: importable names of modules that call :func:`trainer_patches.register_optimizer`. Those
            that `environ` has already in TRAINER_PATCHES_MODULES stay.
        environ: the environment to start from.
    """
    names = dict.fromkeys([*filter(None, environ.get(_MODULES, "").split(",")), *modules])
    path = environ.get("PYTHONPATH", "")
    if path.split(os.pathsep)[0] != str(BOOTSTRAP):
        path = os.pathsep.join(filter(None, [str(BOOTSTRAP), path]))
    return {**environ, _MODULES: ",".join(names), "PYTHONPATH": path}


def command_of(argv: Sequence[str], flags: Sequence[str] = ()) -> list[str]:
    """The command line that `argv` stands for: a Python module, a Python script or another command.

    Args:
        argv: `-m MODULE`, a script or a command, with its arguments.
        flags: options of the interpreter.

    Raises:
        FileNotFoundError: no such file or command.
    """
    first = argv[0]
    is_python = first.endswith((".py", ".pyw", ".pyz")) or os.path.isdir(first)
    if first == "-m" or is_python or (os.path.isfile(first) and not os.access(first, os.X_OK)):
        return [sys.executable, *flags, *argv]
    if program := shutil.which(first):
        return [program, *argv[1:]]
    raise FileNotFoundError(f"{first!r} is neither a file nor a command")


def launch(modules: Sequence[str], prog: str, argv: Sequence[str] | None = None) -> int:
    """Becomes the script, module or command in `argv`; returns only where it cannot.

    Args:
        modules: see :func:`environment`.
        prog: the module that the user started with `python -m`.
        argv: `sys.argv[1:]` by default.

    Returns:
        An exit status (on Windows, which has no exec, that of the command).
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE.format(prog=prog, modules=", ".join(modules)), end="")
        return 0 if argv else 2
    if argv[0].startswith("-") and argv[0] != "-m":
        return _error(prog, f"unknown option {argv[0]}; the script's own come after it")
    if argv[0] == "-m" and len(argv) == 1:
        return _error(prog, "-m needs the name of a module")
    if sys.flags.ignore_environment or sys.flags.no_site:
        return _error(prog, "Python's options -E, -I and -S switch off what it works by; start without them")
    try:
        command = command_of(argv, _flags_before(prog, argv))
    except FileNotFoundError as error:
        return _error(prog, str(error))
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":  # exec there starts a child and ends the parent at once
        return subprocess.call(command, env=environment(modules))
    try:
        os.execve(command[0], command, environment(modules))
    except OSError as error:
        return _error(prog, f"{command[0]}: {error.strerror}")


def _error(prog: str, message: str) -> int:
    print(f"{prog}: error: {message} (see python -m {prog} --help)", file=sys.stderr)
    return 2


def _flags_before(prog: str, argv: Sequence[str]) -> list[str]:
    """The interpreter's options, such as -u or -X: what stood before `-m prog`."""
    before = sys.orig_argv[1 : len(sys.orig_argv) - len(argv)]
    if before[-1:] != [prog] or not before[-2:][0].endswith("m"):
        return []  # called from elsewhere
    *flags, minus_m = before[:-1]
    return flags if minus_m == "-m" else [*flags, minus_m[:-1]]  # -um
