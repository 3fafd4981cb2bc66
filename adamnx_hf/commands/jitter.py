"""`adamnx-hf jitter`."""

from adamnx_hf.studies.jitter import EXTRA, add_arguments, run

__all__ = ["EXTRA", "add_arguments", "run"]
