"""`adamnx-hf publish`."""

from adamnx_hf.runs.publish import EXTRA, add_arguments, run

__all__ = ["EXTRA", "add_arguments", "run"]
