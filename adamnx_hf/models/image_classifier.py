"""The import path that saved classifiers were pickled with."""

from adamnx_hf.models.torchvision_net.network import TorchvisionNetForImageClassification

__all__ = ["TorchvisionNetForImageClassification"]
