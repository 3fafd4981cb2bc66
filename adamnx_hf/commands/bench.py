"""`adamnx-hf bench`."""

from adamnx_hf.bench.run import add_arguments, run

__all__ = ["add_arguments", "run"]
