"""The import path that configurations were pickled with, in saved networks too."""

from adamnx_hf.models.torchvision_net.configuration import TorchvisionNetConfig
from adamnx_hf.models.unet.configuration import UNetConfig
from adamnx_hf.models.yolov7_tiny.configuration import Yolov7TinyConfig

__all__ = ["TorchvisionNetConfig", "UNetConfig", "Yolov7TinyConfig"]
