"""Boxes and classes as people's own data have them: units, sizes, names of fields and of classes."""

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from torchvision.ops import box_convert

from adamnx_hf import recipes as recipe
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks import loading
from adamnx_hf.tasks import object_detection as task
from adamnx_hf.tasks.object_detection.dataset import DetectionDataset
from adamnx_hf.tasks.object_detection.made_up import make_up
from adamnx_hf.tasks.object_detection.schema import find_fields

NAMES = ["red", "green", "blue"]
WIDTH, HEIGHT = 64, 48
#: Two boxes of an image of 64 x 48 pixels, as corners.
CORNERS = [[8.0, 12.0, 40.0, 36.0], [0.0, 24.0, 16.0, 48.0]]
#: The same as shares of its width and height, reckoned by hand.
SHARES = {
    "xywh": [[0.125, 0.25, 0.5, 0.5], [0.0, 0.5, 0.25, 0.5]],
    "xyxy": [[0.125, 0.25, 0.625, 0.75], [0.0, 0.5, 0.25, 1.0]],
    "cxcywh": [[0.375, 0.5, 0.5, 0.5], [0.125, 0.75, 0.25, 0.5]],
}


def split_of(rows, category=None, fields=("bbox", "category"), column="objects", size=(HEIGHT, WIDTH)):
    """Black images with the given (boxes, classes, difficult or not) of each."""
    kinds = {fields[0]: List(List(Value("float32"))), fields[1]: List(category or ClassLabel(names=NAMES))}
    kinds["difficult"] = List(Value("bool"))
    objects = [
        {fields[0]: boxes, fields[1]: labels, "difficult": list(marks[0]) if marks else [False] * len(boxes)}
        for boxes, labels, *marks in rows
    ]
    return Dataset.from_dict(
        {"image": [np.zeros((*size, 3), dtype=np.uint8)] * len(rows), column: objects},
        features=Features({"image": Image(), column: kinds}),
    )


def arguments(**changes):
    return task.Arguments(**{"architecture": "yolov7_tiny", "image_size": 64, **changes})


def corners(data, **changes):
    return DetectionDataset(data, arguments(**changes), "train", NAMES).objects[0][:, 2:]


@pytest.fixture
def trainer_of(tmp_path, monkeypatch):
    """Makes the trainer of a tiny recipe on two splits."""

    def make(train, test=None, **changes):
        fields = {
            "task": "object_detection",
            "architecture": "yolov7_tiny",
            "architecture_options": {"width": 0.125},
            "image_size": 64,
            "report_to": "none",
            "use_cpu": True,
            "dataset_name": "anything",
            "output_dir": str(tmp_path / "out"),
        }
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({**fields, **changes}))
        monkeypatch.setattr(loading, "load_splits", lambda arguments, **_: (train, test or train))
        resolved = recipe.resolve(str(tmp_path / "own.yaml"))
        resolved.given = set()  # no flag
        return task.make_trainer(resolved)

    return make


# The unit


@pytest.mark.parametrize("kind", SHARES)
def test_shares_become_the_pixels_that_they_are(kind):
    data = split_of([(SHARES[kind], [0, 1])])
    assert corners(data, box_format=kind, box_unit="shares").tolist() == CORNERS


def test_centres_in_pixels():
    data = split_of([([[24.0, 24.0, 32.0, 24.0], [8.0, 36.0, 16.0, 24.0]], [0, 1])])
    assert corners(data, box_format="cxcywh").tolist() == CORNERS


@pytest.mark.parametrize("kind", SHARES)
@pytest.mark.parametrize("which", ["train", "test"])
def test_shares_are_not_taken_for_pixels(kind, which, trainer_of):
    splits = [split_of([(CORNERS, [0, 1])]), split_of([(SHARES[kind], [0, 1])] * 3)]
    train, test = splits if which == "test" else splits[::-1]
    with pytest.raises(RecipeError) as error:
        # As xyxy boxes of another format may have no area, which is not what is wrong with them.
        trainer_of(train, test, box_format="xyxy")
    assert str(error.value) == (
        f"box_unit: these look like shares of the image, not pixels: the 6 boxes of the split {which!r} have "
        "numbers from 0 to 1 alone; pass --box_unit shares, and --box_format cxcywh if they are YOLO's"
    )


def test_shares_are_told_by_the_whole_split():
    """A box of one pixel in the corner is no share if another box is none, nor is the only one of a pixel."""
    corner = [[0.0, 0.0, 1.0, 1.0]]
    assert corners(split_of([(corner, [0]), ([[5.0, 5.0, 9.0, 9.0]], [0])])).tolist() == corner
    assert corners(split_of([(corner, [0])], size=(1, 1))).tolist() == corner
    for rounded in (corner, [[-0.001, 0.0, 1.001, 1.0]]):
        with pytest.raises(RecipeError, match="look like shares"):
            corners(split_of([(rounded, [0]), ([], [])]), box_format="xyxy")


def test_pixels_are_not_taken_for_shares():
    data = split_of([(SHARES["xywh"], [0, 1]), ([[0.1, 0.1, 0.2, 0.2], [8.0, 12.0, 32.0, 24.0]], [0, 1])])
    with pytest.raises(RecipeError) as error:
        corners(data, box_unit="shares")
    assert str(error.value) == (
        "train, row 1: the xywh box [8.0, 12.0, 32.0, 24.0] has numbers far above 1, and is no share of its "
        "image; correct it, or are they pixels: --box_unit pixels?"
    )
    with pytest.raises(ValueError, match=r"box_unit: VOC's .* --box_format xyxy"):
        arguments(box_unit="shares", box_format="voc")


@pytest.mark.parametrize(("right", "fits"), [(1 + 0.9 / WIDTH, True), (1 + 1.1 / WIDTH, False)])
def test_rounding_is_a_pixel_of_the_image_also_for_shares(right, fits):
    data = split_of([([[0.5, 0.25, right, 0.75]], [0])])
    given = {"box_format": "xyxy", "box_unit": "shares"}
    if fits:
        assert corners(data, **given).tolist() == [[32, 12, 64, 36]]
        return
    with pytest.raises(RecipeError, match=r"row 0: the xyxy box \[0.5, 0.25, 1.0172, 0.75\] reaches out of"):
        corners(data, **given)


@pytest.mark.parametrize(
    ("kind", "unit"),
    [("cxcywh", "pixels"), ("cxcywh", "shares"), ("xyxy", "shares"), ("xywh", "shares")],
)
def test_made_up_boxes_are_the_same_in_every_format_and_unit(kind, unit):
    few = {"max_train_samples": 4, "max_eval_samples": 1}
    (plain, _), (other, _) = (
        make_up(arguments(**few, **changes)) for changes in ({}, {"box_format": kind, "box_unit": unit})
    )
    for one, two in zip(plain["objects"], other["objects"], strict=True):
        assert len(one["bbox"]) == len(two["bbox"]) and (np.max(two["bbox"]) <= 1) == (unit == "shares")
    read = [
        DetectionDataset(data, given, "train", [f"class {i}" for i in range(20)]).objects
        for data, given in ((plain, arguments()), (other, arguments(box_format=kind, box_unit=unit)))
    ]
    assert all(torch.allclose(one, two, atol=1e-4) for one, two in zip(*read, strict=True))


# Boxes too small to be learned


def wide(*sides):
    """Boxes of these sides, each as wide as high, beside each other in an image of 64 x 48 pixels."""
    return [[8.0 * i, 4.0, side, side] for i, side in enumerate(sides)]


def test_boxes_that_augmentation_drops_at_scale_one_are_counted(trainer_of):
    """In 32 pixels an image of 64 x 48 is half as large: boxes under 4 pixels are under the limit of 2."""
    sides = [2.0, 3.9, 4.0, 6.0, 1.0]
    train = split_of([(wide(*sides), [0, 1, 2, 0, 1], [False] * 4 + [True]), ([], [])])
    trainer = trainer_of(train, image_size=32, scale_range=[1.0, 1.0], jitter_probability=0.0)
    assert trainer.notes[0] == (
        "boxes of the split 'train' too small to be learned, under 2 pixels wide or high in images of "
        "32 x 32 at scale 1: 2 of 4; a larger --image_size helps 2"
    )
    assert len(trainer.train_dataset[0]["labels"]["boxes"]) == 4 - 2
    trainer = trainer_of(train, image_size=32, scale_range=[1.0, 1.0], train_on_difficult=True)
    assert "at scale 1: 3 of 5; a larger --image_size helps 3" in trainer.notes[0]


def test_under_a_hundredth_of_the_side_a_larger_image_does_not_help(trainer_of):
    """640 pixels: 6.4 are the limit, and a box of 3 x 3 in 640 x 480 has 3, in 1280 pixels 6 of 12.8."""
    train = split_of([([[0.0, 0.0, 3.0, 3.0], [9.0, 9.0, 7.0, 7.0]], [0, 1])], size=(480, 640))
    assert trainer_of(train, image_size=640).notes[0] == (
        "boxes of the split 'train' too small to be learned, under 6.4 pixels wide or high in images of "
        "640 x 640 at scale 1: 1 of 2; under 1 % of the longer side, which only images cut in parts help: 1"
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [(wide(2.5), [0])],
            "image_size: nothing can be learned: boxes of the split 'train' too small to be learned, under 2 "
            "pixels wide or high in images of 32 x 32 at scale 1: 1 of 1; a larger --image_size helps 1",
        ),
        (
            [(wide(9.0, 9.0), [0, 1], [True, True])],
            "train_split: there is no object to learn in the split 'train': all of them are marked "
            "difficult; pass --train_on_difficult",
        ),
        (
            [([], [])],
            "train_split: there is no object to learn in the split 'train': no row has one",
        ),
    ],
)
def test_where_nothing_can_be_learned_nothing_is_trained(rows, message, trainer_of):
    with pytest.raises(RecipeError) as error:
        trainer_of(split_of(rows), split_of([(CORNERS, [0, 1])]), image_size=32)
    assert str(error.value) == message


def test_what_only_a_scale_above_one_makes_large_enough_is_trained(trainer_of):
    """3 pixels are 1.5 in an image of half the size, and up to 2.25 at a scale of 1.5."""
    notes = trainer_of(split_of([(wide(3.0), [0])]), image_size=32, scale_range=[0.5, 1.5]).notes
    assert "at scale 1: 1 of 1; " in notes[0]


# Classes


ONE = [[8.0, 12.0, 32.0, 24.0]]


@pytest.mark.parametrize("names", [["red", "green", "blue", "grey"], ["red", "green"]])
def test_an_evaluation_split_with_more_or_fewer_names(names, trainer_of):
    """The names in common have the same ids. More are harmless until a row has one of them."""
    train = split_of([(ONE, [label]) for label in range(3)])
    same = split_of([(ONE, [label]) for label in range(2)], ClassLabel(names=names))
    trainer = trainer_of(train, same)
    assert trainer.model.config.id2label == dict(enumerate(NAMES))
    assert [rows[0, 0] for rows in trainer.eval_dataset.objects] == [0, 1]
    if len(names) > 3:
        with pytest.raises(RecipeError, match="test, row 1: 3 is not a class id; there are 3, from 0 to 2; "):
            trainer_of(train, split_of([(ONE, [0]), (ONE, [3])], ClassLabel(names=names)))


def test_other_names_do_not_hide_that_the_splits_have_the_classes_in_another_order(trainer_of):
    train = split_of([(ONE, [0])])
    test = split_of([(ONE, [0])], ClassLabel(names=["blue", "green", "red"]))
    with pytest.raises(RecipeError, match="eval_split: class 0 is 'blue' there, and 'red' in train_split"):
        trainer_of(train, test, class_names=["rouge", "vert", "bleu"])
    notes = trainer_of(train, class_names=["rouge", "green", "bleu"]).notes
    assert "class_names: 2 classes have other names than in the data set, such as 'rouge' for 'red'" in notes


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (7, "7 is not a class id; there are 3, from 0 to 2; correct it, leave the row out, or name every"),
        (-1, "-1 is not a class id; they are counted from 0; correct it, or leave the row out"),
        (None, "category of its objects: [None] (int() argument must be"),
    ],
)
@pytest.mark.parametrize("which", ["train", "test"])
def test_a_class_that_is_none_is_named_with_its_row(label, message, which, trainer_of):
    right = split_of([(ONE, [2]), (ONE, [0])], Value("int64"))
    wrong = split_of([(ONE, [2]), (ONE, [label])], Value("int64"))
    if (label, which) == (7, "train"):
        assert len(trainer_of(wrong, right).model.config.id2label) == 8
        return
    with pytest.raises(RecipeError) as error:
        trainer_of(*((wrong, right) if which == "train" else (right, wrong)))
    assert str(error.value).startswith(f"{which}, row 1: {message}")


def test_ids_with_gaps_as_cocos(trainer_of):
    """Ids 1, 3 and 8 are three classes of nine."""
    trainer = trainer_of(split_of([(ONE, [1]), (ONE * 2, [3, 8])], Value("int64")))
    assert trainer.model.config.num_labels == 9
    assert "6 of 9 classes have no box to learn in the split 'train': 0, 2, 4, 5, 6, ..." in trainer.notes
    with pytest.raises(RecipeError, match="category_field: 'category' goes up to 123456789, and class ids"):
        trainer_of(split_of([(ONE, [123456789])], Value("int64")))


def test_classes_by_name_have_their_ids_by_the_alphabet(trainer_of):
    train = split_of([(ONE * 2, ["rbc", "platelet"]), (ONE, ["wbc"])], Value("string"))
    test = split_of([(ONE, ["wbc"]), (ONE, ["rbc"])], Value("string"))
    trainer = trainer_of(train, test)
    assert trainer.model.config.id2label == {0: "platelet", 1: "rbc", 2: "wbc"}
    ids = [
        [rows[:, 0].tolist() for rows in data.objects]
        for data in (trainer.train_dataset, trainer.eval_dataset)
    ]
    assert ids == [[[1, 0], [2]], [[2], [1]]]
    names = ["wbc", "rbc", "platelet"]
    given = trainer_of(train, test, class_names=names)
    assert [rows[:, 0].tolist() for rows in given.eval_dataset.objects] == [[0], [1]]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("rcb", "'rcb' is not a class; did you mean 'rbc'?; correct it, leave"),
        (None, "None is not a class; "),
    ],
)
def test_a_name_that_the_training_split_lacks(label, message, trainer_of):
    train = split_of([(ONE, ["rbc"]), (ONE, ["wbc"])], Value("string"))
    test = split_of([(ONE, ["rbc"]), (ONE * 2, ["wbc", label])], Value("string"))
    with pytest.raises(RecipeError) as error:
        trainer_of(train, test)
    assert str(error.value).startswith(f"test, row 1: {message}")
    ids = split_of([(ONE, [1])], Value("int64"))
    with pytest.raises(RecipeError, match="eval_split: class 0 is '0' there, and 'rbc' in train_split"):
        trainer_of(train, ids)


# Names of fields


def test_fields_of_usual_names_are_found(trainer_of):
    data = split_of(
        [(CORNERS, [0, 2])], Value("int64"), fields=("boxes", "category_id"), column="annotations"
    )
    trainer = trainer_of(data, box_format="xyxy")
    assert trainer.train_dataset.objects[0][:, 2:].tolist() == CORNERS
    assert trainer.notes[:3] == [
        "objects_column: 'annotations' is used, as there is no 'objects'",
        "box_field: 'boxes' is used, as there is no 'bbox'; its boxes are read as xyxy in pixels",
        "category_field: 'category_id' is used, as there is no 'category'",
    ]


def test_a_list_of_objects_is_found_by_what_it_holds():
    kinds = {"box": List(Value("float32")), "label": Value("int64")}
    data = Dataset.from_dict(
        {"image": [np.zeros((8, 8, 3), np.uint8)], "labels": [[{"box": [1, 2, 3, 4], "label": 0}]]},
        features=Features({"image": Image(), "labels": List(kinds)}),
    )
    found = arguments()
    notes = find_fields(data, found, set())
    assert (found.objects_column, found.box_field, found.category_field) == ("labels", "box", "label")
    assert len(notes) == 3


def test_what_a_flag_says_or_what_is_not_clear_is_left_alone():
    data = split_of([(CORNERS, [0, 1])], fields=("boxes", "classes"), column="labels")
    for given in ("objects_column", "box_field", "category_field"):
        found = arguments()
        find_fields(data, found, {given})
        assert getattr(found, given) == getattr(arguments(), given)
    two = data.add_column("annotations", data["labels"][:], feature=data.features["labels"])
    assert find_fields(two, arguments(), set()) == []
    both = split_of([(CORNERS, [0, 1])], fields=("boxes", "classes"))
    both = both.map(lambda row: {"objects": {**row["objects"], "labels": [0, 1]}})
    found = arguments()
    notes = find_fields(both, found, set())
    assert (found.box_field, found.category_field, len(notes)) == ("boxes", "category", 1)
    own = split_of([(CORNERS, [0, 1])])
    assert find_fields(own, arguments(), set()) == []


def test_boxes_of_centres_are_what_torchvision_makes_of_them():
    random = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    boxes = torch.cat([random[:, :2], random[:, 2:] * 0.5], 1)
    data = split_of([(boxes.tolist(), [0] * 20)])
    expected = box_convert(boxes, "cxcywh", "xyxy") * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    assert torch.allclose(corners(data, box_format="cxcywh", box_unit="shares"), expected, atol=1e-4)
