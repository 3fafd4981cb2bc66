"""Makes any torch optimizer a valid `optim=` string of the Transformers Trainer.

    from trainer_patches import register_optimizer

    register_optimizer("my_lion", "pytorch_optimizer:Lion", defaults={"betas": (0.95, 0.98)})
    TrainingArguments(..., optim="my_lion", optim_args="weight_decouple=true")

Importing this package imports neither Transformers nor torch.
"""

from trainer_patches.checkpoints import last_complete_checkpoint
from trainer_patches.registry import RunInfo, register_optimizer, registered_optimizers
from trainer_patches.unwrap import unwrap_optimizer

__all__ = [
    "RunInfo",
    "last_complete_checkpoint",
    "register_optimizer",
    "registered_optimizers",
    "unwrap_optimizer",
]
