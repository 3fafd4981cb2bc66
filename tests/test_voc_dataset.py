"""docs/examples/voc_dataset.py on folders of an image or two, written as VOC's are."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from adamnx_hf import recipes
from adamnx_hf.tasks import object_detection

SCRIPT = Path(__file__).parents[1] / "docs" / "examples" / "voc_dataset.py"
OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


def write(root, sets, objects):
    """`sets`: lists of images, of 80 x 60 pixels, by name."""
    random = np.random.default_rng(0)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for image_set, names in sets.items():
        (root / "ImageSets/Main" / f"{image_set}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            pixels = random.integers(0, 256, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
            (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")


def read(name, folder, tmp_path, *more):
    words = ["--dataset_name", str(folder), "--smoke", "--output_dir", str(tmp_path / "out"), *more]
    words.append("--per_device_train_batch_size=1")
    return object_detection.make_trainer(recipes.resolve(name, words))


def test_voc(tmp_path, capsys):
    objects = OBJECT.format("dog", 0, 1, 1, 80, 60) + OBJECT.format("person", 1, 11, 21, 30.5, 40)
    devkit = tmp_path / "VOCdevkit"
    write(devkit / "VOC2007", {"trainval": ["000005"], "test": ["000001"]}, objects)
    write(devkit / "VOC2012", {"trainval": ["2008_000002"]}, objects)
    script, out = runpy.run_path(str(SCRIPT)), tmp_path / "voc0712"
    script["main"]([str(out), "--source", str(tmp_path)])
    assert "train: 2 images" in capsys.readouterr().out
    first = load_dataset(str(out))["test"][0]["objects"]
    assert first["bbox"] == [[0, 0, 80, 60], [10, 20, 20.5, 20]]
    assert first["category"] == [11, 14] and first["difficult"] == [False, True]
    schema = ["--box_field", "bbox", "--category_field", "category", "--box_format", "xywh"]
    trainer = read("voc_yolov7_tiny", out, tmp_path, *schema)
    assert len(trainer.train_dataset) == 2 and len(trainer.eval_dataset) == 1
    assert trainer.model.config.id2label[11] == "dog"
    assert len(trainer.train_dataset[0]["labels"]["boxes"]) <= 1  # the person is difficult
    with pytest.raises(SystemExit):
        script["main"]([str(out), "--source", str(tmp_path)])
    assert "is there already" in capsys.readouterr().err


def test_bccd(tmp_path, capsys):
    objects = OBJECT.format("RBC", 0, 5, 6, 20, 30) + OBJECT.format("RBC", 0, 0, 0, 0, 0)
    sets = {"train": ["BloodImage_00001"], "val": ["BloodImage_00002"], "test": ["BloodImage_00003"]}
    write(tmp_path / "BCCD", sets, objects)
    script, out = runpy.run_path(str(SCRIPT)), tmp_path / "bccd"
    script["main"]([str(out), "--source", str(tmp_path), "--layout", "bccd"])
    assert "BloodImage_00003: left out a RBC without area" in capsys.readouterr().out
    trainer = read("bccd_yolov7_tiny", out, tmp_path)
    assert trainer.eval_dataset.objects[0].tolist() == [[1, 0, 4, 5, 20, 30]]
    with pytest.raises(SystemExit):
        script["main"]([str(tmp_path / "none"), "--source", str(tmp_path)])
    assert "trainval.txt: no such file" in capsys.readouterr().err
