"""`adamnx-hf compare`."""

from adamnx_hf.studies.compare import EXTRA, TAKES_FLAGS, add_arguments, run

__all__ = ["EXTRA", "TAKES_FLAGS", "add_arguments", "run"]
