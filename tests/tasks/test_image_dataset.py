"""The images of a classification data set, as the model gets them."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks.image_classification.dataset import ImageDataset


@pytest.mark.parametrize("keep_decoded", [True, False])
def test_images_are_read_as_they_are(keep_decoded):
    random = np.random.default_rng(0)
    colour = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pictures = [
        Picture.fromarray(colour),
        Picture.fromarray(colour[..., 0]),  # grey
        Picture.fromarray(np.full((48, 64, 3), 77, np.uint8)),  # of another size
    ]
    data = Dataset.from_dict(
        {"image": pictures, "label": [4, 2, 0]}, features=Features({"image": Image(), "label": ClassLabel(5)})
    )
    images = ImageDataset(
        data, image_column="image", labels=data["label"], size=32, keep_decoded=keep_decoded
    )
    batch = images.__getitems__([0, 2, 1])
    assert batch["labels"].tolist() == [4, 0, 2] and batch["labels"].dtype == torch.int64
    pixels = batch["pixel_values"]
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 3, 32, 32)
    assert torch.equal(pixels[0], torch.tensor(colour).permute(2, 0, 1))
    assert (pixels[1] == 77).all()
    assert torch.equal(pixels[2], torch.tensor(colour[..., 0]).expand(3, 32, 32))
    assert torch.equal(images[1]["pixel_values"], pixels[2]) and len(images) == 3


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "has none; leave the row out"),
        (np.full((32, 32), 30000, np.uint16), "cannot be read (its pixels have more than 8 bits"),
        ({"bytes": b"no image", "path": None}, "cannot be read (cannot identify image file"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(image, message):
    good = Picture.fromarray(np.zeros((32, 32, 3), np.uint8))
    features = Features({"image": Image(), "label": ClassLabel(5)})
    data = Dataset.from_dict({"image": [good, image, good], "label": [4, 2, 0]}, features=features)
    images = ImageDataset(data, image_column="image", labels=[4, 2, 0], size=32, split="test")
    with pytest.raises(RecipeError) as error:
        images.__getitems__([0, 2, 1])
    assert str(error.value).startswith("image: row 1 of the split 'test' ") and message in str(error.value)
