"""Images that PIL does not read are named by column, row and split, wherever they are met."""

import io
import struct
import zlib

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Picture
from torch.utils.data import DataLoader

from adamnx_hf.common import images
from adamnx_hf.common.errors import RecipeError, in_one_line
from adamnx_hf.tasks import object_detection
from adamnx_hf.tasks.image_classification.dataset import ImageDataset, keep_batch
from adamnx_hf.tasks.object_detection.dataset import DetectionDataset
from adamnx_hf.tasks.semantic_segmentation.dataset import SegmentationDataset, make_eval_transform
from adamnx_hf.tasks.semantic_segmentation.masks import PairFormat, check_pairs

COLUMNS = PairFormat("image", "mask")


def encoded(kind="PNG", mode="RGB", **options):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 3, (48, 64, 3), dtype=np.uint8)
    Picture.fromarray(pixels).convert(mode).save(buffer, format=kind, **options)
    return buffer.getvalue()


def huge(mode="RGB"):
    """A PNG whose header says that it has 20,000 x 20,000 pixels: 400 million, of which PIL reads 179."""
    content = encoded(mode=mode)
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


#: What makes the bytes of an image, how PIL's reason begins, and the remedy.
STORED = {
    "large": (
        huge,
        "Image size (400000000 pixels) exceeds limit of 178956970 pixels, could be",
        "); resize it, or leave the row out",
    ),
    "broken": (
        lambda mode="RGB": encoded(mode=mode)[:-200],
        "image file is truncated",
        "); correct it, or leave the row out",
    ),
}


@pytest.fixture(params=STORED)
def stored(request):
    """Makes the bytes of an image that is not read, and checks what is said of it."""
    make, reason, remedy = STORED[request.param]

    def check(said, column="image"):
        assert said.startswith(f"{column}: row 1 of the split 'test' cannot be read ({reason}")
        assert said.endswith(remedy) and "\n" not in said

    return make, check


def data_of(image=None, mask=None):
    good = {"path": None, "bytes": encoded()}, {"path": None, "bytes": encoded(mode="L")}
    objects = {"bbox": [[8.0, 8.0, 20.0, 20.0]], "category": [0]}
    rows = {
        "image": [good[0], {"path": None, "bytes": image or good[0]["bytes"]}],
        "mask": [good[1], {"path": None, "bytes": mask or good[1]["bytes"]}],
        "label": [0, 1],
        "objects": [objects] * 2,
    }
    fields = {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=["a"]))}
    features = {"image": Image(), "mask": Image(), "label": ClassLabel(names=["a", "b"]), "objects": fields}
    return Dataset.from_dict(rows, features=Features(features))


def classified(data, **options):
    columns = {"image_column": "image", "labels": data["label"]}
    return ImageDataset(data, **columns, size=8, split="test", **options)


def segmented(data, **options):
    transform = make_eval_transform(image_size=48, mean=[0] * 3, std=[1] * 3)
    return SegmentationDataset(data, COLUMNS, split="test", transform=transform, quiet=True, **options)


def detected(data, **options):
    arguments = object_detection.Arguments(architecture="yolov7_tiny", image_size=64, **options)
    return DetectionDataset(data, arguments, "test", ["a"], quiet=True)


def check_masks(data):
    return check_pairs(data, COLUMNS, split="test", classes=3, ignore_index=255, quiet=True)


@pytest.mark.parametrize(
    "meet",
    [
        lambda data: classified(data)[1],
        lambda data: classified(data).__getitems__([0, 1]),
        lambda data: classified(data, keep_decoded=True),
        lambda data: segmented(data)[1],
        lambda data: segmented(data).read_picture(1),
        lambda data: segmented(data, keep_decoded=True),
        lambda data: detected(data)[1],
        lambda data: detected(data, keep_decoded=True),
    ],
    ids=[
        "classification", "batch", "classification kept",
        "segmentation", "picture", "segmentation kept",
        "detection", "detection kept",
    ],
)  # fmt: skip
def test_an_image_that_is_not_read_is_named(stored, meet):
    make, check = stored
    with pytest.raises(RecipeError) as error:
        meet(data_of(make()))
    check(str(error.value))


@pytest.mark.parametrize("column", ["image", "mask"])
def test_headers_of_images_and_masks_are_read_before_training(stored, column):
    make, check = stored
    with pytest.raises(RecipeError) as error:
        check_masks(data_of(**{column: make(mode="L" if column == "mask" else "RGB")}))
    check(str(error.value), column)


def test_a_worker_says_it_in_one_line(stored):
    make, check = stored
    data = classified(data_of(make()))
    loader = DataLoader(data, batch_size=2, num_workers=1, collate_fn=keep_batch)
    with pytest.raises(RecipeError) as error:
        next(iter(loader))
    check(str(in_one_line(error.value)))


def test_exif_data_that_are_broken():
    """PIL ends in a SyntaxError when it is asked which way up the image is."""
    content = encoded("WEBP", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00")
    content = content.replace(b"MM\x00*", b"MX\x00*")
    with pytest.raises(RecipeError, match=r"^image: row 3 of the split 'train' cannot be read \(not a TIFF"):
        images.find_size(
            images.open_image({"bytes": content, "path": None}, "image", 3, "train", as_rgb=True)
        )
