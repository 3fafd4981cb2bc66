"""`adamnx-hf recipes`."""

from adamnx_hf.recipes.listing import add_arguments, run

__all__ = ["add_arguments", "run"]
