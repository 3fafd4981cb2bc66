"""Models that Transformers lacks, or that the paper changes, as PreTrainedModels.

`save_pretrained`, `from_pretrained`, `push_to_hub` and the task's `pipeline` work as for any other:
`import adamnx_hf` makes the model types known to the Auto classes, as soon as those are imported.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

__all__ = [
    "TorchvisionNetConfig",
    "TorchvisionNetForImageClassification",
    "UNetConfig",
    "UNetForSemanticSegmentation",
    "register",
]

_HOMES = {
    "TorchvisionNetConfig": "configuration",
    "TorchvisionNetForImageClassification": "image_classifier",
    "UNetConfig": "configuration",
    "UNetForSemanticSegmentation": "unet",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"adamnx_hf.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Makes our model types known to Transformers' Auto classes, when those are imported."""
    if importlib.util.find_spec("transformers") is None:
        return
    from wrapt import register_post_import_hook

    register_post_import_hook(_register_config, "transformers.models.auto.configuration_auto")
    register_post_import_hook(_register_model, "transformers.models.auto.modeling_auto")


def _register_config(auto: Any) -> None:
    from adamnx_hf.models.configuration import TorchvisionNetConfig, UNetConfig

    for config in (TorchvisionNetConfig, UNetConfig):
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_model(auto: Any) -> None:
    from adamnx_hf.models.configuration import TorchvisionNetConfig, UNetConfig
    from adamnx_hf.models.image_classifier import TorchvisionNetForImageClassification
    from adamnx_hf.models.unet import UNetForSemanticSegmentation

    auto.AutoModelForImageClassification.register(
        TorchvisionNetConfig, TorchvisionNetForImageClassification, exist_ok=True
    )
    auto.AutoModelForSemanticSegmentation.register(UNetConfig, UNetForSemanticSegmentation, exist_ok=True)
