"""U-Net for semantic segmentation."""

from adamnx_hf.common.lazy import import_on_access

__getattr__ = import_on_access(
    __name__,
    {
        "UNetConfig": "configuration",
        "UNetForSemanticSegmentation": "network",
        "ConvBlock": "network",
        "cross_entropy_loss": "loss",
        "dice_loss": "loss",
    },
)
