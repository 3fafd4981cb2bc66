"""`adamnx-hf run`."""

from adamnx_hf.runs.train import EXTRA, add_arguments, run

__all__ = ["EXTRA", "add_arguments", "run"]
