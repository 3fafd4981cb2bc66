"""Interpreters whose imports are made once, and each code is run in a fork: python forks.py IMPORTS."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

#: To run first where this package is to be imported by the code itself.
APART = "import sys; assert 'adamnx_hf' not in sys.modules"


def lean(environment=None):
    """The environment of a process that is to start fast: see lean/sitecustomize.py."""
    environment = os.environ if environment is None else environment
    path = [str(Path(__file__).with_name("lean")), environment.get("PYTHONPATH")]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, path))}


@contextlib.contextmanager
def forking(imports, environment=None, check=True):
    """Runs code in forks of an interpreter that has made `imports`; returns their output and errors.

    Without `check` the status comes first, as :attr:`subprocess.Popen.returncode` has it; else it must be 0.
    """
    if not hasattr(os, "fork"):
        pytest.skip("forks, to be fast")
    command, pipe = [sys.executable, __file__, imports], subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=lean(environment))

    def run(code, folder):
        print(json.dumps([code, str(folder)]), file=process.stdin, flush=True)
        status, out, err = json.loads(process.stdout.readline())
        assert not check or status == 0, err
        return (out, err) if check else (status, out, err)

    try:
        yield run
    finally:
        process.kill()
        process.communicate()


def main(imports):
    with os.fdopen(os.dup(1), "w", 1) as answers:
        os.dup2(2, 1)  # what the imports may say is no answer
        exec(imports)
        for line in sys.stdin:
            code, folder = json.loads(line)
            with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
                child = os.fork()
                if not child:
                    signal.alarm(300)
                    os.dup2(out.fileno(), 1)
                    os.dup2(err.fileno(), 2)
                    os.chdir(folder)
                    sys.exit(exec(code, {"__name__": "__main__"}))
                _, status = os.waitpid(child, 0)
                out.seek(0)
                err.seek(0)
                print(json.dumps([os.waitstatus_to_exitcode(status), out.read(), err.read()]), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
