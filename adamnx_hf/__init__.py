"""AdamNX as a first-class optimizer of the Hugging Face stack.

Importing it makes `TrainingArguments(optim="adamnx")` valid.
"""

from adamnx_hf import models, names
from adamnx_hf.optim import AdamNX, adamnx, beta2_for_horizon, from_adamw, horizon, param_groups
from trainer_patches import register_optimizer

__version__ = "0.1.0"

__all__ = [
    "AdamNX",
    "adamnx",
    "beta2_for_horizon",
    "from_adamw",
    "horizon",
    "param_groups",
    "register_optimizer",
]

names.register()
models.register()
