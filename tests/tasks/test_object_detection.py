"""Detection data, its checks and augmentation, evaluation, and whole runs on a folder."""

import io
import json

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Picture
from torchvision.ops import box_convert, box_iou
from transformers import pipeline

from adamnx_hf import cli, metrics, recipes
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.models import Yolov7TinyConfig, Yolov7TinyForObjectDetection, Yolov7TinyImageProcessor
from adamnx_hf.tasks import loading
from adamnx_hf.tasks import object_detection as task
from adamnx_hf.tasks.object_detection.dataset import Augmentation, DetectionDataset, collate
from adamnx_hf.tasks.object_detection.evaluation import DetectionTrainer, compute_metrics
from adamnx_hf.tasks.object_detection.schema import check_features, name_classes
from adamnx_hf.tasks.trainer import RecipeTrainingArguments

NAMES = ["red", "green", "blue"]
TINY = {
    "task": "object_detection",
    "architecture": "yolov7_tiny",
    "architecture_options": {"width": 0.125},
    "image_size": 64,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 5,
    "eval_strategy": "epoch",
    "report_to": "none",
    "logging_steps": 2,
    "optim": "adamnx",
    "learning_rate": 0.005,
    "num_train_epochs": 2,
    "use_cpu": True,
}


def rows(count, seed=0, scale=1):
    """Images of 64 x 48 times `scale` with one or two rectangles whose colour is their class."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        image = random.integers(0, 60, (48 * scale, 64 * scale, 3), dtype=np.uint8)
        objects = {"bbox": [], "category": [], "difficult": []}
        for left in scale * random.permutation([4, 34])[: random.integers(1, 3)]:
            label = int(random.integers(0, 3))
            w, h = (int(side) for side in random.integers(12 * scale, 25 * scale, 2))
            top = int(random.integers(0, 48 * scale - h))
            image[top : top + h, left : left + w] = 40
            image[top : top + h, left : left + w, label] = 230
            objects["bbox"].append([int(left), top, w, h])
            objects["category"].append(label)
            objects["difficult"].append(False)
        made.append({"image": image, "objects": objects})
    return made


def dataset(made, category=None, difficult=True):
    fields = {"bbox": List(List(Value("float32"))), "category": List(category or ClassLabel(names=NAMES))}
    if difficult:
        fields["difficult"] = List(Value("bool"))
    objects = [{name: row["objects"][name] for name in fields} for row in made]
    return Dataset.from_dict(
        {"image": [row["image"] for row in made], "objects": objects},
        features=Features({"image": Image(), "objects": fields}),
    )


def arguments(**changes):
    return task.Arguments(**{"architecture": "yolov7_tiny", "image_size": 64, **changes})


def example(made=None, index=0, with_difficult=False, **changes):
    data = dataset(made or rows(1))
    return DetectionDataset(data, arguments(**changes), "train", NAMES, with_difficult=with_difficult)[index]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A local data set that can be learned, without `difficult`, as many have none."""
    root = tmp_path_factory.mktemp("data") / "rectangles" / "data"
    root.mkdir(parents=True)
    for split, count, seed in (("train", 16, 0), ("test", 9, 1)):
        data = dataset(rows(count, seed), difficult=False)
        data.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root.parent


@pytest.fixture
def tiny(tmp_path, folder):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "dataset_name": str(folder)}))
    return str(path)


def painted(pixels, label):
    """The corners of what is painted in a class's colour, in an image of floats in [0, 1]."""
    others = [c for c in range(3) if c != label]
    mine = (pixels[label] - pixels[others].amax(0)) > 0.25
    ys, xs = mine.nonzero(as_tuple=True)
    return torch.tensor([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]).float()


def test_boxes_are_where_the_objects_are():
    made = rows(1, seed=4)
    got = example(made, image_mean=[0, 0, 0], image_std=[1, 1, 1])
    labels = got["labels"]
    assert got["pixel_values"].shape == (3, 64, 64) and labels["orig_size"].tolist() == [48, 64]
    for box, label in zip(labels["boxes"], labels["class_labels"], strict=True):
        corners = box_convert(box[None], "cxcywh", "xyxy") * 64
        assert box_iou(corners, painted(got["pixel_values"], int(label))) > 0.95
    x, y, w, h = made[0]["objects"]["bbox"][0]
    assert labels["objects"][0].tolist() == [made[0]["objects"]["category"][0], 0, x, y, x + w, y + h]


@pytest.mark.parametrize("keep_decoded", [True, False])
def test_pixels_are_the_processors(keep_decoded):
    made = rows(2)
    data = DetectionDataset(dataset(made), arguments(keep_decoded=keep_decoded), "train", NAMES)
    processor = Yolov7TinyImageProcessor(64, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    expected = processor([Picture.fromarray(row["image"]) for row in made], return_tensors="pt")
    got = collate([data[0], data[1]])
    assert torch.allclose(got["pixel_values"], expected["pixel_values"], atol=1e-6)
    assert len(got["labels"]) == len(data) == 2


def test_objects_as_a_list_of_dictionaries_and_as_corners():
    made = rows(3)
    expected = example(made, 1)["labels"]["objects"]
    objects = [
        [
            {"label": label, "corners": [x, y, x + w, y + h]}
            for (x, y, w, h), label in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True)
        ]
        for row in made
    ]
    fields = {"label": ClassLabel(names=NAMES), "corners": List(Value("float32"))}
    data = Dataset.from_dict(
        {"image": [row["image"] for row in made], "objects": objects},
        features=Features({"image": Image(), "objects": List(fields)}),
    )
    given = arguments(box_field="corners", box_format="xyxy", category_field="label")
    check_features(data, given)
    assert name_classes(data, given) == NAMES
    got = DetectionDataset(data, given, "train", NAMES)
    assert torch.equal(got[1]["labels"]["objects"], expected)


def test_objects_as_the_hubs_voc_has_them():
    """Other names, corners that count from 1 with the last pixel in the box, and ids of more than objects."""
    made = rows(3)
    expected = example(made, 1)["labels"]["objects"]
    objects = [
        {
            "bboxes": [[x + 1, y + 1, x + w, y + h] for x, y, w, h in row["objects"]["bbox"]],
            "classes": row["objects"]["category"],
        }
        for row in made
    ]
    labels = ClassLabel(names=[*NAMES, "background", "borderingregion"])
    fields = {"bboxes": List(List(Value("float32"))), "classes": List(labels)}
    data = Dataset.from_dict(
        {"image": [row["image"] for row in made], "objects": objects},
        features=Features({"image": Image(), "objects": fields}),
    )
    schema = {"box_field": "bboxes", "box_format": "voc", "category_field": "classes", "class_names": NAMES}
    given = arguments(**schema)
    assert name_classes(data, given) == NAMES
    assert torch.equal(DetectionDataset(data, given, "train", NAMES)[1]["labels"]["objects"], expected)


def test_made_up_boxes_in_every_format(tiny):
    kinds = [["--dataset_name", "none", "--box_format", kind] for kind in ("xywh", "xyxy", "voc")]
    xywh, xyxy, voc = (
        task.make_trainer(recipes.resolve(tiny, ["--smoke", *words])).eval_dataset.objects for words in kinds
    )
    for other in (xyxy, voc):
        assert all(torch.equal(one, two) for one, two in zip(xywh, other, strict=True))


def test_it_is_said_where_no_object_is_marked_difficult(tiny, monkeypatch):
    splits = [dataset(rows(4)), dataset(rows(4), difficult=False)]
    monkeypatch.setattr(loading, "load_splits", lambda arguments, **_: splits)
    assert "no field 'difficult': every one" in task.make_trainer(recipes.resolve(tiny)).notes[-1]


def test_class_ids_without_names():
    data = dataset(rows(6), category=Value("int64"))
    assert name_classes(data, arguments()) == ["0", "1", "2"]


def test_classes_of_the_splits_have_to_agree(tiny, monkeypatch):
    splits = [dataset(rows(4)), dataset(rows(4), category=ClassLabel(names=["red", "blue", "green"]))]
    monkeypatch.setattr(loading, "load_splits", lambda arguments, **_: splits)
    with pytest.raises(RecipeError, match="eval_split: class 1 is 'blue' there, and 'green' in train_split"):
        task.make_trainer(recipes.resolve(tiny))


def test_difficult_objects_are_judged_but_not_learned():
    made = rows(8, seed=3)
    index = next(i for i, row in enumerate(made) if len(row["objects"]["bbox"]) == 2)
    made[index]["objects"]["difficult"] = [True, False]
    labels = example(made, index)["labels"]
    assert len(labels["boxes"]) == len(labels["class_labels"]) == 1
    assert labels["objects"][:, 1].tolist() == [1, 0]
    assert len(example(made, index, with_difficult=True)["labels"]["boxes"]) == 2


def test_an_image_without_objects():
    made = rows(1)
    made[0]["objects"] = {"bbox": [], "category": [], "difficult": []}
    labels = example(made)["labels"]
    assert labels["boxes"].shape == (0, 4) and labels["objects"].shape == (0, 6)


def test_boxes_a_rounding_out_of_the_image_are_cut():
    made = rows(1)
    made[0]["objects"] = {"bbox": [[-0.5, 10, 65, 20]], "category": [1], "difficult": [False]}
    assert example(made)["labels"]["objects"][0].tolist() == [1, 0, 0, 10, 64, 30]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [[5, 5, 10, 10], [40, 30, 30, 5]]}, "the xywh box [40.0, 30.0, 30.0, 5.0] reaches out"),
        ({"bbox": [[5, 5, 10, 10], [-3, 5, 10, 5]]}, "reaches out of its image of 64 x 48 pixels; "),
        ({"bbox": [[5, 5, 10, 10], [-1, 5, 1, 5]]}, "reaches out of its image of 64 x 48 pixels; "),
        ({"bbox": [[5, 5, 0, 10], [40, 30, 3, 5]]}, "the xywh box [5.0, 5.0, 0.0, 10.0] has no area; "),
        ({"bbox": [[5, 5, 3, -10], [40, 30, 3, 5]]}, "has no area"),
        ({"bbox": [[5, 5, float("nan"), 10], [40, 30, 3, 5]]}, "has no area"),
        ({"category": [0, 7]}, "7 is not a class id; there are 3, from 0 to 2"),
        ({"category": [0]}, "class ids and marks of difficult ones do not match: (2, 4), (1,)"),
        ({"bbox": [[5, 5, 3], [4, 3, 3]]}, "do not match: (2, 3), (2,), (2,)"),
        ({"bbox": [[5, 5, 10, 10], [4, 3, 3]]}, "bbox of its objects: [[5.0, 5.0, 10.0, 10.0], [4.0, 3.0, "),
        ({"bbox": None}, "do not match: (0, 4), (2,), (2,)"),
        ({"category": [0, None]}, "category of its objects: [0, None] ("),
        ({"category": None}, "do not match: (2, 4), (0,), (2,)"),
    ],
)  # fmt: skip
def test_bad_objects_are_named_with_their_row(changes, message):
    made = rows(4)
    objects = {"bbox": [[5, 5, 10, 10], [40, 30, 3, 5]], "category": [0, 1], "difficult": [False, False]}
    made[2]["objects"] = {**objects, **changes}
    with pytest.raises(RecipeError) as error:
        DetectionDataset(dataset(made, category=Value("int64")), arguments(), "train", NAMES)
    assert str(error.value).startswith("train, row 2: ") and message in str(error.value)


def test_rows_without_objects_or_without_marks():
    none, empty, unmarked = rows(3)
    none["objects"] = {"bbox": None, "category": None, "difficult": None}
    empty["objects"] = {"bbox": [], "category": [], "difficult": []}
    unmarked["objects"]["difficult"] = None
    data = dataset([none, empty, unmarked], category=Value("int64"))
    assert len(name_classes(data, arguments())) == max(unmarked["objects"]["category"]) + 1
    objects = DetectionDataset(data, arguments(), "train", NAMES).objects
    assert [len(one) for one in objects[:2]] == [0, 0] and not objects[2][:, 1].any() and len(objects[2])
    features = Features(
        {"image": Image(), "objects": List({"bbox": List(Value("float32")), "category": Value("int64")})}
    )
    listed = Dataset.from_dict({"image": [none["image"]] * 2, "objects": [None, []]}, features=features)
    assert all(len(one) == 0 for one in DetectionDataset(listed, arguments(), "train", NAMES).objects)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (b"no image", "image: row 1 of the split 'test' cannot be read (cannot identify"),
        (None, "image: row 1 of the split 'test' has none; leave the row out"),
        (
            np.full((48, 64), 30000, np.uint16),
            "row 1 of the split 'test' cannot be read (its pixels have more than",
        ),
    ],
)
def test_an_image_that_cannot_be_read(stored, message):
    data = dataset(rows(2))
    images = [data[0]["image"], {"bytes": stored, "path": None} if isinstance(stored, bytes) else stored]
    data = Dataset.from_dict({"image": images, "objects": data["objects"][:]}, features=data.features)
    with pytest.raises(RecipeError) as error:
        DetectionDataset(data, arguments(), "test", NAMES)
    assert message in str(error.value)


@pytest.mark.parametrize("keep_decoded", [True, False])
def test_an_image_that_breaks_off_is_named_when_it_is_read(keep_decoded):
    """Its header is whole, and nothing else has been looked at."""
    data = dataset(rows(2))
    buffer = io.BytesIO()
    data[1]["image"].save(buffer, format="JPEG")
    images = [data[0]["image"], {"bytes": buffer.getvalue()[:-300], "path": None}]
    data = Dataset.from_dict({"image": images, "objects": data["objects"][:]}, features=data.features)
    with pytest.raises(RecipeError, match=r"image: row 1 of the split 'test' cannot be read .*truncated"):
        DetectionDataset(data, arguments(keep_decoded=keep_decoded), "test", NAMES)[1]


def test_an_image_that_a_worker_cannot_read_is_said_in_one_line(tiny, tmp_path, folder, capsys):
    data = Dataset.from_parquet(
        str(folder / "data" / "train-00000-of-00001.parquet"), cache_dir=str(tmp_path)
    )
    buffer = io.BytesIO()
    data[2]["image"].save(buffer, format="JPEG")
    images = [row["image"] for row in data]
    images[2] = {"bytes": buffer.getvalue()[:-300], "path": None}
    spoilt = Dataset.from_dict({"image": images, "objects": data["objects"][:]}, features=data.features)
    for split, rows_of in (("train", spoilt), ("test", data)):
        (tmp_path / "spoilt" / "data").mkdir(parents=True, exist_ok=True)
        rows_of.to_parquet(tmp_path / "spoilt" / "data" / f"{split}-00000-of-00001.parquet")
    words = ["--dataset_name", str(tmp_path / "spoilt"), "--dataloader_num_workers", "1"]
    assert cli.main(["run", tiny, *words, "--output_dir", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.partition("adamnx-hf run: error: ")[2].strip()
    assert said.startswith("image: row 2 of the split 'train' cannot be read (") and "\n" not in said


def test_class_names_in_another_order_than_the_data_sets():
    data = dataset(rows(1))
    with pytest.raises(RecipeError, match="class_names: 'green' is class 0 there, and 1 in the data set"):
        name_classes(data, arguments(class_names=["green", "red", "blue"]))
    others = ["rouge", "vert", "bleu"]
    assert name_classes(data, arguments(class_names=others)) == others


def test_an_optimizer_that_needs_curvature_trains(tiny, tmp_path):
    out = tmp_path / "out"
    words = ["--smoke", "--optim", "sophiag", "--max_steps", "11", "--learning_rate", "0.001"]
    assert cli.main(["run", tiny, *words, "--output_dir", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["optim"] == "sophiag" and np.isfinite(results["per_epoch"][-1]["eval_loss"])


def test_what_cannot_be_trained_is_said_first(tiny, monkeypatch):
    with pytest.raises(RecipeError, match=r"label_smoothing_factor: .* leave it at 0"):
        task.make_trainer(recipes.resolve(tiny, ["--label_smoothing_factor", "0.1"]))
    several = recipes.resolve(tiny)
    monkeypatch.setattr(type(several.training_arguments), "n_gpu", 2)
    with pytest.raises(
        RecipeError, match=r"2 GPUs.*accelerate launch --num_processes 2 -m adamnx_hf.cli run"
    ):
        task.make_trainer(several)


def test_an_image_that_its_camera_says_to_turn():
    picture = Picture.fromarray(rows(1)[0]["image"])
    exif = picture.getexif()
    exif[0x0112] = 6  # a quarter turn
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", exif=exif)
    objects = [{"bbox": [[0, 0, 48, 64]], "category": [1], "difficult": [False]}]
    data = Dataset.from_dict(
        {"image": [{"bytes": buffer.getvalue(), "path": None}], "objects": objects},
        features=dataset(rows(1)).features,
    )
    turned = DetectionDataset(data, arguments(), "train", NAMES)
    assert turned.sizes == [(64, 48)] and turned.read_picture(0).size == (48, 64)


def test_augmentation_carries_the_boxes_along():
    torch.manual_seed(0)
    augment = Augmentation(96, (0.5, 1.5), jitter=0.0, flip=0.5)
    image = torch.full((3, 96, 96), 20, dtype=torch.uint8)
    image[1, 30:50, 40:70] = 230
    whole, gone, sides = 0, 0, []
    for _ in range(200):
        pixels, boxes, labels = augment(image, torch.tensor([[40.0, 30.0, 70.0, 50.0]]), torch.tensor([1]))
        assert pixels.shape == (3, 96, 96) and pixels.dtype == torch.float32 and 0 <= pixels.min()
        if not len(boxes):
            gone += 1
            continue
        assert labels.tolist() == [1]
        assert box_iou(boxes, painted(pixels, 1)) > 0.8
        sides.append((boxes[0, 2] - boxes[0, 0]).item())
        whole += 1
    assert whole > 150  # now and then it is cut away
    assert min(sides) < 20 and max(sides) > 40  # 30 pixels, times 0.5 to 1.5


def test_no_augmentation_is_none():
    augment = Augmentation(64, (1.0, 1.0), jitter=0.0, flip=0.0)
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0], [3.0, 4.0, 9.0, 12.0]])
    pixels, same, labels = augment(image, boxes, torch.tensor([2, 0]))
    assert torch.allclose(pixels, image / 255) and torch.equal(same, boxes) and labels.tolist() == [2, 0]
    mirrored = Augmentation(64, (1.0, 1.0), jitter=0.0, flip=1.0)(image, boxes, torch.tensor([2, 0]))
    assert torch.allclose(mirrored[0], image.flip(-1) / 255)
    assert mirrored[1][1].tolist() == [55, 4, 61, 12]


def make_trainer(path, count=9, **changes):
    torch.manual_seed(0)
    data = DetectionDataset(dataset(rows(count)), arguments(), "test", NAMES)
    args = RecipeTrainingArguments(
        output_dir=str(path),
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        **{"per_device_eval_batch_size": 4, "per_device_train_batch_size": 4, **changes},
    )
    model = Yolov7TinyForObjectDetection(Yolov7TinyConfig(image_size=64, width=0.125, num_labels=3))
    return DetectionTrainer(
        model=model,
        args=args,
        train_dataset=data,
        eval_dataset=data,
        data_collator=collate,
        compute_metrics=compute_metrics,
        processing_class=Yolov7TinyImageProcessor(64, image_mean=[0.5] * 3, image_std=[0.5] * 3),
    )


def test_evaluation_is_the_metric_over_the_whole_set(tmp_path, monkeypatch):
    """Batches of 4, 4 and 1 with varying numbers of boxes come together as if judged at once."""
    trainer = make_trainer(tmp_path)
    random = np.random.default_rng(0)
    found, true = [], []
    for objects in trainer.eval_dataset.objects:
        boxes = objects[:, 2:].numpy()
        true.append({"boxes": boxes, "labels": objects[:, 0].int().numpy(), "difficult": objects[:, 1] > 0})
        count = random.integers(0, 4)
        which = random.integers(0, len(boxes), count)
        moved = boxes[which] + random.integers(0, 5, (count, 4))
        found.append({"boxes": moved, "labels": true[-1]["labels"][which], "scores": random.random(count)})
    expected = metrics.load("voc_map").compute(predictions=found, references=true)
    assert 0 < expected["map_75"] < expected["map_50"] < 100
    seen = iter(found)

    def answers(outputs, threshold, target_sizes):
        assert set(map(tuple, target_sizes)) == {(48, 64)} and threshold == 0.001
        return [{k: torch.tensor(v) for k, v in next(seen).items()} for _ in outputs.logits]

    monkeypatch.setattr(trainer.processing_class, "post_process_object_detection", answers)
    got = trainer.evaluate()
    assert got["eval_map_50"] == pytest.approx(expected["map_50"], abs=1e-3)
    assert got["eval_map_75"] == pytest.approx(expected["map_75"], abs=1e-3)
    assert np.isfinite(got["eval_loss"])


def test_a_run_on_a_local_folder(tiny, tmp_path, folder):
    out = tmp_path / "out"
    assert cli.main(["run", tiny, "--output_dir", str(out), "--keep_decoded"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["train_examples"] == 16 and results["eval_examples"] == 9 and results["steps"] == 8
    assert set(results["metrics"]) == {"map_50", "map_75"}
    # That it learns is test_eight_images_are_learned_by_heart's; eight steps tell nothing.
    assert [0 < row["train_loss"] < 1 for row in results["per_epoch"]] == [True, True]
    with Picture.open(out / "predictions.png") as picture:
        assert picture.width > 1000
    from datasets import load_dataset

    first = load_dataset(str(folder), split="test")[0]["image"]
    answers = pipeline("object-detection", model=str(out))(first, threshold=0.0)
    assert {answer["label"] for answer in answers} <= set(NAMES) and answers
    # The saved model is fine-tuned on.
    again = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    again |= {"architecture": None, "architecture_options": None, "model_name_or_path": str(out)}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(again))
    words = ["--output_dir", str(tmp_path / "more"), "--max_steps", "1"]
    assert cli.main(["run", str(tmp_path / "again.yaml"), *words]) == 0
    assert cli.main(["run", str(tmp_path / "again.yaml"), *words, "--image_size", "96"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objects_column", "object"], "objects_column: the data set has no column 'object'; did "),
        (["--objects_column", "image"], "objects_column: 'image' does not hold objects with boxes"),
        (["--image_column", "objects"], "image_column: 'objects' does not hold images; those that do: image"),
        (["--box_field", "box"], "box_field: the objects of 'objects' have no 'box'; did you mean 'bbox'?"),
        (["--category_field", "bbox"], "category_field: 'bbox' does not hold class ids"),
        (["--box_format", "xyxy"], "has no area; leave it out, or is --box_format another?"),
        (["--class_names", "a", "b", "a"], "class_names: 'a' is given twice"),
        (["--class_names", "a", "b"], "2 is not a class id; there are 2, from 0 to 1"),
        (["--image_size", "100"], "image_size: 100 is not a multiple of 32 pixels"),
        (["--architecture", "yolov7"], "architecture: 'yolov7' is not known; did you mean 'yolov7_tiny'?"),
        (["--architecture_options", '{"widht": 1}'], "yolov7_tiny has no 'widht'; did you mean 'width'?"),
        (["--architecture_options", '{"width": -1}'], "architecture_options: width: -1 is not a share"),
        (["--scale_range", "2", "1"], "scale_range: needs two factors above 0, the smaller first"),
    ],
)  # fmt: skip
def test_errors_leave_nothing_behind(words, message, tiny, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["run", tiny, "--output_dir", str(out), *words]) == 1
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adamnx-hf")]
    assert len(err) == 1 and message in err[0]
    assert not out.exists() or not any(out.iterdir())


@pytest.mark.slow
def test_eight_images_are_learned_by_heart(tmp_path):
    """Loss, matching, augmentation and metric fit each other: else this would not come near 100."""
    root = tmp_path / "eight" / "data"
    root.mkdir(parents=True)
    for split in ("train", "test"):
        dataset(rows(8, scale=2)).to_parquet(root / f"{split}-00000-of-00001.parquet")
    values = {
        **TINY,
        "dataset_name": str(root.parent),
        "image_size": 128,
        "architecture_options": {"width": 0.25},
        "per_device_train_batch_size": 8,
        "num_train_epochs": 200,
        "eval_strategy": "no",
        "scale_range": [0.8, 1.2],
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10,
        "keep_decoded": True,
    }
    (tmp_path / "eight.yaml").write_text(yaml.safe_dump(values))
    out = tmp_path / "out"
    assert cli.main(["run", str(tmp_path / "eight.yaml"), "--output_dir", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["metrics"]["map_50"]["last"] > 99
    assert results["metrics"]["map_75"]["last"] > 90
