"""YOLOv7-tiny for object detection."""

from adamnx_hf.common.lazy import import_on_access

__getattr__ = import_on_access(
    __name__,
    {
        "Yolov7TinyConfig": "configuration",
        "ConvNormAct": "network",
        "ElanTiny": "network",
        "Prediction": "network",
        "SppCspcTiny": "network",
        "Yolov7TinyForObjectDetection": "network",
        "Yolov7TinyNet": "network",
        "Yolov7TinyOutput": "network",
        "Yolov7TinyImageProcessor": "image_processor",
    },
)
