"""`python -m adamnx_hf.launch` runs somebody else's training script, which then knows `optim="adamnx"`.

python -m adamnx_hf.launch run_clm.py --optim adamnx ...
python -m adamnx_hf.launch trl sft --optim adamnx ...
accelerate launch -m adamnx_hf.launch run_clm.py --optim adamnx ...

The script runs unmodified, as if it had been started directly. The processes that it starts know the name,
too.
"""

from __future__ import annotations

import sys

from trainer_patches.launch import launch

__all__ = ["main"]


def main() -> int:
    """Runs the script or module that `sys.argv` names; see :func:`trainer_patches.launch.launch`."""
    return launch(["adamnx_hf"], "adamnx_hf.launch")


if __name__ == "__main__":
    sys.exit(main())
