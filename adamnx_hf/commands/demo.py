"""`adamnx-hf demo`."""

from adamnx_hf.studies.demo import add_arguments, run

__all__ = ["add_arguments", "run"]
