"""Networks that Transformers lacks, or that the paper changes, as PreTrainedModels.

`save_pretrained`, `from_pretrained`, `push_to_hub` and the task's `pipeline` work as for any other:
`import adamnx_hf` makes the model types known to the Auto classes, as soon as those are imported.

To add one: a folder by the name of its model_type, and a line in :data:`MODELS`.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from typing import Any, NamedTuple

from adamnx_hf.common.lazy import import_on_access

__all__ = [
    "MODELS",
    "Model",
    "TorchvisionNetConfig",
    "TorchvisionNetForImageClassification",
    "UNetConfig",
    "UNetForSemanticSegmentation",
    "Yolov7TinyConfig",
    "Yolov7TinyForObjectDetection",
    "Yolov7TinyImageProcessor",
    "is_ours",
    "register",
]


class Model(NamedTuple):
    """The names of a model's classes. Each lives in the file of the model's folder that its field names."""

    auto_class: str
    """Transformers' Auto class for its task."""
    network: str
    configuration: str
    image_processor: str | None = None
    """None: one of Transformers' own."""
    needs: str | None = None
    """A package without which `network` and `image_processor` cannot be imported."""


#: The models by their model_type, which is the name of their folder.
MODELS = {
    "torchvision_net": Model(
        "AutoModelForImageClassification", "TorchvisionNetForImageClassification", "TorchvisionNetConfig"
    ),
    "unet": Model("AutoModelForSemanticSegmentation", "UNetForSemanticSegmentation", "UNetConfig"),
    "yolov7_tiny": Model(
        "AutoModelForObjectDetection",
        "Yolov7TinyForObjectDetection",
        "Yolov7TinyConfig",
        "Yolov7TinyImageProcessor",
        needs="torchvision",
    ),
}

__getattr__ = import_on_access(
    __name__,
    {
        name: f"{model_type}.{file}"
        for model_type, model in MODELS.items()
        for file, name in model._asdict().items()
        if name and file in ("network", "configuration", "image_processor")
    },
)


def is_ours(model_type: str | None) -> bool:
    """Says whether a model type is one of ours."""
    return model_type in MODELS


def register() -> None:
    """Makes our model types known to Transformers' Auto classes, when those are imported."""
    if importlib.util.find_spec("transformers") is None:
        return
    from wrapt import register_post_import_hook

    for register_classes, module in (
        (_register_configurations, "configuration_auto"),
        (_register_networks, "modeling_auto"),
        (_register_image_processors, "image_processing_auto"),
    ):
        register_post_import_hook(register_classes, f"transformers.models.auto.{module}")


def _list_importable() -> list[Model]:
    """Lists the models whose packages are installed."""
    return [m for m in MODELS.values() if m.needs is None or importlib.util.find_spec(m.needs) is not None]


def _register_configurations(auto: Any) -> None:
    for model_type, model in MODELS.items():
        auto.AutoConfig.register(model_type, __getattr__(model.configuration), exist_ok=True)


def _register_networks(auto: Any) -> None:
    for model in _list_importable():
        configuration, network = __getattr__(model.configuration), __getattr__(model.network)
        getattr(auto, model.auto_class).register(configuration, network, exist_ok=True)
        # Pipelines look here alone, and would call the model unsupported.
        task = re.sub("(?<!^)(?=[A-Z])", "_", model.auto_class.removeprefix("Auto")).upper()
        getattr(auto, f"{task}_MAPPING_NAMES")[configuration.model_type] = model.network


def _register_image_processors(auto: Any) -> None:
    register = auto.AutoImageProcessor.register
    for model in _list_importable():
        if model.image_processor is not None:
            kind = __getattr__(model.image_processor)
            processor: dict[str, Any] = {"slow_image_processor_class": kind}
            if "image_processor_classes" in inspect.signature(register).parameters:  # Transformers 5
                processor = {"image_processor_classes": {"torchvision": kind}}
            register(__getattr__(model.configuration), exist_ok=True, **processor)
