"""docs/examples/voc_dataset.py on a devkit of two images a year, written as VOC's are."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from adamnx_hf import recipe
from adamnx_hf.tasks import object_detection

SCRIPT = Path(__file__).parents[1] / "docs" / "examples" / "voc_dataset.py"
OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


@pytest.fixture
def devkit(tmp_path):
    random = np.random.default_rng(0)
    for year, sets in (
        ("2007", {"trainval": ["000005"], "test": ["000001"]}),
        ("2012", {"trainval": ["2008_000002"]}),
    ):
        root = tmp_path / "VOCdevkit" / f"VOC{year}"
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)
        for image_set, names in sets.items():
            (root / "ImageSets/Main" / f"{image_set}.txt").write_text("".join(f"{name}\n" for name in names))
            for name in names:
                pixels = random.integers(0, 256, (60, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
                objects = OBJECT.format("dog", 0, 1, 1, 80, 60) + OBJECT.format("person", 1, 11, 21, 30.5, 40)
                xml = f"<annotation><size><width>80</width></size>{objects}</annotation>"
                (root / "Annotations" / f"{name}.xml").write_text(xml)
    return tmp_path


def test_it_is_what_the_recipe_reads(devkit, tmp_path, capsys):
    out = tmp_path / "voc0712"
    script = runpy.run_path(str(SCRIPT))
    words = [str(out), "--devkit", str(devkit)]
    script["main"](words)
    assert "train: 2 images" in capsys.readouterr().out
    first = load_dataset(str(out))["test"][0]["objects"]
    assert first["bbox"] == [[0, 0, 80, 60], [10, 20, 20.5, 20]]
    assert first["category"] == [11, 14] and first["difficult"] == [False, True]
    words = ["--dataset_name", str(out), "--smoke", "--output_dir", str(tmp_path / "out")]
    trainer = object_detection.make_trainer(recipe.resolve("voc_yolov7_tiny", words))
    assert len(trainer.train_dataset) == 2 and len(trainer.eval_dataset) == 1
    assert trainer.model.config.id2label[11] == "dog"
    assert len(trainer.train_dataset[0]["labels"]["boxes"]) <= 1  # the person is difficult
    with pytest.raises(SystemExit):
        script["main"]([str(out)])
    assert "is there already" in capsys.readouterr().err
