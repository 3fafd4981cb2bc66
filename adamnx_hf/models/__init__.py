"""Models that Transformers lacks, or that the paper changes, as PreTrainedModels.

`save_pretrained`, `from_pretrained`, `push_to_hub` and the task's `pipeline` work as for any other:
`import adamnx_hf` makes the model types known to the Auto classes, as soon as those are imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from typing import Any

__all__ = [
    "TorchvisionNetConfig",
    "TorchvisionNetForImageClassification",
    "UNetConfig",
    "UNetForSemanticSegmentation",
    "Yolov7TinyConfig",
    "Yolov7TinyForObjectDetection",
    "Yolov7TinyImageProcessor",
    "register",
]

_HOMES = {
    "TorchvisionNetConfig": "configuration",
    "TorchvisionNetForImageClassification": "image_classifier",
    "UNetConfig": "configuration",
    "UNetForSemanticSegmentation": "unet",
    "Yolov7TinyConfig": "configuration",
    "Yolov7TinyForObjectDetection": "yolov7_tiny",
    "Yolov7TinyImageProcessor": "yolov7_image_processor",
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
    if importlib.util.find_spec("torchvision") is not None:
        register_post_import_hook(_register_image_processor, "transformers.models.auto.image_processing_auto")
        register_post_import_hook(_register_detector, "transformers.models.auto.modeling_auto")


def _register_config(auto: Any) -> None:
    from adamnx_hf.models.configuration import TorchvisionNetConfig, UNetConfig, Yolov7TinyConfig

    for config in (TorchvisionNetConfig, UNetConfig, Yolov7TinyConfig):
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_model(auto: Any) -> None:
    from adamnx_hf.models.configuration import TorchvisionNetConfig, UNetConfig
    from adamnx_hf.models.image_classifier import TorchvisionNetForImageClassification
    from adamnx_hf.models.unet import UNetForSemanticSegmentation

    auto.AutoModelForImageClassification.register(
        TorchvisionNetConfig, TorchvisionNetForImageClassification, exist_ok=True
    )
    auto.AutoModelForSemanticSegmentation.register(UNetConfig, UNetForSemanticSegmentation, exist_ok=True)
    # pipeline("image-segmentation") goes by these names alone, and would call the model unsupported.
    names = auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    names[UNetConfig.model_type] = UNetForSemanticSegmentation.__name__


def _register_detector(auto: Any) -> None:
    from adamnx_hf.models.configuration import Yolov7TinyConfig
    from adamnx_hf.models.yolov7_tiny import Yolov7TinyForObjectDetection

    auto.AutoModelForObjectDetection.register(Yolov7TinyConfig, Yolov7TinyForObjectDetection, exist_ok=True)
    # pipeline("object-detection") goes by these names alone, and would call the model unsupported.
    names = auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
    names[Yolov7TinyConfig.model_type] = Yolov7TinyForObjectDetection.__name__


def _register_image_processor(auto: Any) -> None:
    from adamnx_hf.models.configuration import Yolov7TinyConfig
    from adamnx_hf.models.yolov7_image_processor import Yolov7TinyImageProcessor

    processor: dict[str, Any] = {"slow_image_processor_class": Yolov7TinyImageProcessor}
    if "image_processor_classes" in inspect.signature(auto.AutoImageProcessor.register).parameters:
        processor = {"image_processor_classes": {"torchvision": Yolov7TinyImageProcessor}}  # Transformers 5
    auto.AutoImageProcessor.register(Yolov7TinyConfig, exist_ok=True, **processor)
