"""Starts an unmodified script with registered optimizer names in it and in every Python process it starts.

Nothing is emulated: the process *becomes* the script's (`exec`), so that `sys.argv`, `__main__`, exit codes,
signals and tracebacks are those of the script started directly. Only PYTHONPATH differs: the folder
`bootstrap` stands in front. Python runs the `sitecustomize.py` in that folder at every start.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["BOOTSTRAP", "build_command", "build_environment", "launch"]

BOOTSTRAP = Path(__file__).resolve().parent / "bootstrap"

# The variable that bootstrap/sitecustomize.py reads: names of modules to import, separated by commas.
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


def build_environment(modules: Sequence[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns `environ`, changed so that every Python started in it knows the names that `modules` register.

    Args:
        modules: importable names of modules that call :func:`trainer_patches.register_optimizer`. Modules
            that `environ` names in TRAINER_PATCHES_MODULES already stay there.
        environ: the environment to start from.
    """
    names = dict.fromkeys([*filter(None, environ.get(_MODULES, "").split(",")), *modules])
    path = environ.get("PYTHONPATH", "")
    if path.split(os.pathsep)[0] != str(BOOTSTRAP):
        path = os.pathsep.join(filter(None, [str(BOOTSTRAP), path]))
    return {**environ, _MODULES: ",".join(names), "PYTHONPATH": path}


def build_command(argv: Sequence[str], flags: Sequence[str] = ()) -> list[str]:
    """Returns the command line that starts `argv`: a Python module, a Python script or another command.

    Args:
        argv: `-m MODULE`, a script or a command, with its arguments.
        flags: options of the interpreter, for a module or a script.

    Raises:
        FileNotFoundError: there is no such file or command.
    """
    first = argv[0]
    is_python = first.endswith((".py", ".pyw", ".pyz")) or os.path.isdir(first)
    if first == "-m" or is_python or (os.path.isfile(first) and not os.access(first, os.X_OK)):
        return [sys.executable, *flags, *argv]
    if program := shutil.which(first):
        return [program, *argv[1:]]
    raise FileNotFoundError(f"{first!r} is neither a file nor a command")


def launch(modules: Sequence[str], prog: str, argv: Sequence[str] | None = None) -> int:
    """Becomes the script, module or command in `argv`; returns only if that fails.

    Args:
        modules: see :func:`build_environment`.
        prog: the module that the user started with `python -m`.
        argv: `sys.argv[1:]` by default.

    Returns:
        An exit status. On Windows, which has no exec, the exit status of the command.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE.format(prog=prog, modules=", ".join(modules)), end="")
        return 0 if argv else 2
    if argv[0].startswith("-") and argv[0] != "-m":
        return _print_error(prog, f"unknown option {argv[0]}; the script's own come after it")
    if argv[0] == "-m" and len(argv) == 1:
        return _print_error(prog, "-m needs the name of a module")
    if sys.flags.ignore_environment or sys.flags.no_site:
        return _print_error(
            prog,
            "Python's options -E, -I and -S switch sitecustomize.py off; start without them",
        )
    try:
        command = build_command(argv, _find_flags(prog, argv))
    except FileNotFoundError as error:
        return _print_error(prog, str(error))
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":  # exec there starts a child and ends the parent at once
        return subprocess.call(command, env=build_environment(modules))
    try:
        os.execve(command[0], command, build_environment(modules))
    except OSError as error:
        return _print_error(prog, f"{command[0]}: {error.strerror}")


def _print_error(prog: str, message: str) -> int:
    print(f"{prog}: error: {message} (see python -m {prog} --help)", file=sys.stderr)
    return 2


def _find_flags(prog: str, argv: Sequence[str]) -> list[str]:
    """Returns the interpreter's options that stood before `-m prog`, such as -u or -X."""
    before = sys.orig_argv[1 : len(sys.orig_argv) - len(argv)]
    if before[-1:] != [prog] or not before[-2:][0].endswith("m"):
        return []  # called from elsewhere
    *flags, minus_m = before[:-1]
    return flags if minus_m == "-m" else [*flags, minus_m[:-1]]  # -um
