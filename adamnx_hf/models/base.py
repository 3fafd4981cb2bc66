"""The base of our models."""

from __future__ import annotations

from transformers import PreTrainedModel

__all__ = ["ImageModel"]


class ImageModel(PreTrainedModel):
    """A model of images, `pixel_values`, with convolutions and a loss of its own."""

    main_input_name = "pixel_values"
    _supports_sdpa = False
    accepts_loss_kwargs = False  # the loss is the mean over the batch it is given: the Trainer has to average
