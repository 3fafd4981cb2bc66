"""torchvision's image classifiers, with the options that the paper changes."""

from adamnx_hf.common.lazy import import_on_access

__getattr__ = import_on_access(
    __name__,
    {"TorchvisionNetConfig": "configuration", "TorchvisionNetForImageClassification": "network"},
)
