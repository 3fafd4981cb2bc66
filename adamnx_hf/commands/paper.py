"""`adamnx-hf paper`."""

from adamnx_hf.studies.paper import EXTRA, add_arguments, run

__all__ = ["EXTRA", "add_arguments", "run"]
