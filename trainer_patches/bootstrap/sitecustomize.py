"""Python runs this at every start while `trainer_patches.launch` has this folder on PYTHONPATH.

The hook waits until Transformers or Accelerate is about to be imported, and only then imports the modules
that register names. Other processes, also those of another Python, pay next to nothing and notice nothing.
"""

import os
import sys


class _Waiting(object):
    """An import hook that finds nothing: it only sees which module is about to be imported."""

    done = False

    def find_spec(self, name, path=None, target=None):
        if name in ("transformers", "accelerate") and not self.done:
            self.done = True
            _register()
        return None


def _register():
    import importlib

    for module in os.environ.get("TRAINER_PATCHES_MODULES", "").split(","):
        try:
            if module:
                importlib.import_module(module)
        except Exception as error:  # whatever it is, the script is to run
            sys.stderr.write("%s: no optimizer names of %s: %s\n" % (sys.executable, module, error))


def _go_on():
    """Takes this folder off the path and runs the sitecustomize that it hid.

    If there is none, the ImportError tells Python so. The name is then free for a sitecustomize.py that lies
    beside the script. If the hidden one fails, Python reports that.
    """
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    del sys.modules["sitecustomize"]
    import sitecustomize  # noqa: F401


if sys.version_info[0] > 2:
    sys.meta_path.insert(0, _Waiting())
_go_on()
