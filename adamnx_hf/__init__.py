"""AdamNX as a first-class optimizer of the Hugging Face stack."""

from adamnx_hf.optim import AdamNX, adamnx, beta2_for_horizon, from_adamw, horizon, param_groups

__version__ = "0.1.0"

__all__ = ["AdamNX", "adamnx", "beta2_for_horizon", "from_adamw", "horizon", "param_groups"]
