"""`adamnx-hf sharpness`."""

from adamnx_hf.studies.sharpness import EXTRA, add_arguments, run

__all__ = ["EXTRA", "add_arguments", "run"]
