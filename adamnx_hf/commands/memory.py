"""`adamnx-hf memory`."""

from adamnx_hf.runs.memory import EXTRA, add_arguments, run

__all__ = ["EXTRA", "add_arguments", "run"]
