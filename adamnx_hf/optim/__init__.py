"""The optimizer AdamNX. This package needs torch alone (and torch's Triton, where there is a GPU).

A gradient goes from `optimizer` by way of `part`, `functional` and `step` to one of the `engines`. `formats`
knows how moments and parameters are stored, `schedules` how β̂2 rises; `update` has the algorithm.
"""

from adamnx_hf.optim.convert import from_adamw
from adamnx_hf.optim.functional import adamnx
from adamnx_hf.optim.grouping import param_groups
from adamnx_hf.optim.layerwise import LayerwiseAdamNX
from adamnx_hf.optim.optimizer import AdamNX
from adamnx_hf.optim.schedules import beta2_for_horizon, horizon

__all__ = [
    "AdamNX",
    "LayerwiseAdamNX",
    "adamnx",
    "beta2_for_horizon",
    "from_adamw",
    "horizon",
    "param_groups",
]
