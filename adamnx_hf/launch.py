"""`python -m adamnx_hf.launch`: somebody else's training script, with `optim="adamnx"` known to it.

python -m adamnx_hf.launch run_clm.py --optim adamnx ...
python -m adamnx_hf.launch trl sft --optim adamnx ...
accelerate launch -m adamnx_hf.launch run_clm.py --optim adamnx ...

The script runs unmodified, as if started directly; so do the processes it starts.
"""

from __future__ import annotations

import sys

from trainer_patches.launch import launch

__all__ = ["main"]


def main() -> int:
    """Runs what `sys.argv` asks for; see :func:`trainer_patches.launch.launch`."""
    return launch(["adamnx_hf"], "adamnx_hf.launch")


if __name__ == "__main__":
    sys.exit(main())
