"""Masks as people have them: 0 and 255, one bit, values that are no ids, classes that are not there."""

import re

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, Features, Image

from adamnx_hf import recipes
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.recipes import policy
from adamnx_hf.tasks import loading
from adamnx_hf.tasks import semantic_segmentation as task
from adamnx_hf.tasks.semantic_segmentation import charts, masks
from adamnx_hf.tasks.semantic_segmentation.made_up import make_pairs
from adamnx_hf.tasks.semantic_segmentation.masks import PairFormat, check_pairs

COLUMNS = PairFormat("image", "mask")
RECIPE = {
    "task": "semantic_segmentation",
    "dataset_name": "mine",
    "architecture": "unet",
    "architecture_options": {"base_width": 4, "depth": 1},
    "image_size": 8,
    "crop_size": 8,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}
#: 15 pixels of the one kind and 9 of the other.
HALVES = np.repeat([0, 0, 0, 0, 0, 1, 1, 1], 3).reshape(8, 3).T


def pairs(*of_masks):
    shown = [
        np.random.default_rng(0).integers(0, 256, (*np.shape(mask), 3), dtype=np.uint8) for mask in of_masks
    ]
    return Dataset.from_dict(
        {"image": shown, "mask": list(of_masks)}, features=Features({"image": Image(), "mask": Image()})
    )


def in_values(*values, mask=HALVES, dtype=np.uint8):
    """A mask whose classes 0, 1, ... have these values."""
    return np.array(values)[mask].astype(dtype)


@pytest.fixture
def trainer_for(tmp_path, monkeypatch):
    """The trainer of a recipe on these masks, and the recipe."""

    def make(data, **fields):
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, "output_dir": str(tmp_path / "out"), **fields}))
        resolved = recipes.resolve(str(path))
        monkeypatch.setattr(loading, "load_splits", lambda arguments, **_: (data, data))
        return task.make_trainer(resolved), resolved

    return make


# Values that stand for ids


@pytest.mark.parametrize("times", [1, 200])  # large masks of 8 bits go through a table
@pytest.mark.parametrize(
    ("values", "mask_values", "ids"),
    [
        (np.uint8([0, 255, 255, 7]), [0, 255], [0, 1, 1, 255]),
        (np.uint8([0, 255, 255, 7]), [255, 7], [255, 0, 0, 1]),
        (np.uint8([0, 255, 255, 7]), None, [0, 255, 255, 7]),
        (np.array([False, True]), [1, 0], [1, 0]),
        (np.array([False, True]), None, [0, 1]),
        (np.int32([-1, 70_000, 3]), [70_000, -1], [1, 0, 255]),
        (np.array([300, 2], dtype=">u2"), None, [300, 2]),
        (np.uint16([0, 300, 301]), list(range(301)), [0, 300, 301]),  # 255 is a class there
    ],
)  # fmt: skip
def test_the_ids_of_values_by_hand(values, mask_values, ids, times):
    found = masks.find_class_ids(np.tile(values, (times, 1)), mask_values)
    assert found.tolist() == [ids] * times and found.dtype in (np.uint8, np.int64)


def test_no_class_has_the_id_of_void():
    assert masks.find_void_id(0) == 0 and masks.find_void_id(-100) == -100
    assert (
        masks.find_void_id(0, [0, 1])
        == masks.find_void_id(255, [0, 255])
        == masks.find_void_id(-1, [5, 9])
        == 255
    )
    assert masks.find_void_id(255, range(300)) == 300


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_values": [7]}, "mask_values: [7] is not two classes or more"),
        ({"mask_values": []}, "mask_values: [] is not two classes or more"),
        ({"mask_values": [0, 255, 0]}, "mask_values: 0 is given twice"),
        ({"mask_values": [0, 2**31]}, "mask_values: 2147483648 is not a whole number of 32 bits"),
        ({"mask_values": [0, True]}, "mask_values: True is not a whole number"),
        ({"mask_values": [0, 1, 2], "class_names": ["a", "b"]}, "mask_values: 3 of them for 2 class_names"),
        ({"class_names": ["person"]}, "class_names: 'person' is the only one"),
    ],
)  # fmt: skip
def test_values_and_names_that_do_not_fit(fields, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        task.Arguments(architecture="unet", **fields)


def test_ignore_index_is_a_value_and_not_an_id():
    """0 is void in the masks, and the first class has the id 0 nevertheless."""
    arguments = task.Arguments(
        architecture="unet", class_names=["a", "b"], mask_values=[5, 9], ignore_index=0
    )
    assert arguments.void_id == 255


def test_a_recipe_of_the_hub_may_say_the_values():
    assert policy.why_not(policy.Origin.HUB, "mask_values", [0, 255]) is None
    assert policy.why_not(policy.Origin.HUB, "mask_values", ["x"])


# One class alone


@pytest.mark.parametrize(
    ("mask", "fields", "found", "remedy"),
    [
        (in_values(0, 255), {}, "of one class only, '0' (their value is 0); all others are 255, ", "0 255"),
        (in_values(255, 7), {"mask_values": [0, 7]}, "only, '1' (their value is 7); all others ", "7 255"),
        (in_values(0, 255), {"class_names": ["wall", "door"]}, "only, 'wall' (their value is 0); ", "0 255"),
        (in_values(0, 255), {"class_names": ["a", "b", "c"]}, "only, 'a' (", "VALUE VALUE VALUE"),
        (in_values(0, 1), {"ignore_index": 0}, "only, '1' (their value is 1); all others are 0, ", "0 1"),
    ],
)  # fmt: skip
def test_one_class_alone_is_refused(mask, fields, found, remedy, trainer_for):
    with pytest.raises(RecipeError) as caught:
        trainer_for(pairs(mask, mask), **fields)
    message = str(caught.value)
    assert message.startswith("mask_values: the masks of train have pixels ") and found in message
    assert message.endswith(f"if that is a class, too: --mask_values {remedy}")


def test_one_class_and_nothing_else_is_refused(trainer_for):
    with pytest.raises(RecipeError, match=r"only, '0' \(their value is 0\); there has to be another"):
        trainer_for(pairs(in_values(0, 0)))


def test_void_alone_is_refused(trainer_for):
    with pytest.raises(
        RecipeError, match=r"'train' no pixel counts, all are 255, .*: --mask_values VALUE 255"
    ):
        trainer_for(pairs(in_values(255, 255)))


# The remedy


@pytest.mark.parametrize(
    ("mask", "fields"),
    [
        (in_values(0, 255), {"mask_values": [0, 255]}),
        (in_values(0, 1), {"mask_values": [0, 1], "ignore_index": 0}),
        (in_values(1, 0), {"mask_values": [1, 0], "ignore_index": 1}),
        (in_values(-5, 70_000, dtype=np.int32), {"mask_values": [-5, 70_000]}),
        (in_values(0, 65535, dtype=np.uint16), {"mask_values": [0, 65535]}),
        (HALVES.astype(bool), {}),
        (HALVES.astype(bool), {"keep_decoded": True}),
    ],
)  # fmt: skip
def test_every_part_of_a_run_sees_the_same_two_classes(mask, fields, trainer_for, tmp_path, monkeypatch):
    """The check, training, evaluation, the classes' weights, the note and pictures: 15 pixels and 9."""
    drawn = {}
    monkeypatch.setattr(
        charts, "draw", lambda *args: drawn.update(zip(("columns", "void"), args[3:], strict=True))
    )
    trainer, resolved = trainer_for(pairs(mask, mask), class_balance=1.0, flip_probability=0.0, **fields)
    assert trainer.model.config.num_labels == 2 and trainer.model.config.semantic_loss_ignore_index == 255
    # Both classes weigh the same together, and a pixel 1 on average.
    assert trainer.model.config.class_weights == pytest.approx([24 / 2 / 15, 24 / 2 / 9])
    assert set(trainer.train_dataset[0]["labels"].unique().tolist()) <= {0, 1, 255}  # what is cropped is void
    assert np.array_equal(trainer.eval_dataset[0]["mask"], HALVES)
    assert trainer.notes == [
        f"'0' everywhere would have a mean IoU of {100 * (15 / 24 + 0) / 2:.2f} % on test"
    ]
    with torch.no_grad():  # answers 1 everywhere
        trainer.model.classifier.weight.zero_()
        trainer.model.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
    measured = trainer.evaluate()
    assert measured["eval_mean_iou"] == pytest.approx(100 * (9 / 24) / 2)
    assert measured["eval_pixel_accuracy"] == pytest.approx(100 * 9 / 24)
    task.draw_predictions(resolved, trainer, tmp_path / "drawn.png")
    _, truth, predicted = drawn["columns"]["row 0"]
    assert np.array_equal(truth, HALVES) and (predicted == 1).all() and drawn["void"] == 255


def test_void_beside_values(trainer_for):
    """Masks of 0, 255 and, around things, 128: 128 counts nowhere."""
    mask = in_values(0, 255)
    mask[0, 0] = 128
    trainer, _ = trainer_for(pairs(mask), mask_values=[0, 255], ignore_index=128)
    truth = trainer.eval_dataset[0]["mask"]
    assert truth[0, 0] == 255 and torch.equal(truth.unique(), torch.tensor([0, 1, 255]))
    with torch.no_grad():
        trainer.model.classifier.weight.zero_()
        trainer.model.classifier.bias.copy_(torch.tensor([1.0, 0.0]))
    assert trainer.evaluate()["eval_pixel_accuracy"] == pytest.approx(100 * 14 / 23)


@pytest.mark.parametrize(
    ("mask", "more", "message"),
    [
        (in_values(0, 255), {"classes": 2, "ignore_index": 9}, "class id 255; known are 0 to 1 and 9, which"),
        (in_values(0, 3), {"mask_values": [0, 255]}, "value 3; known are mask_values and ignore_index, 255"),
        (HALVES.astype(bool), {"mask_values": [0, 255]}, "value 1; known are mask_values and ignore_index"),
        (in_values(0, 65535, dtype=np.uint16), {}, "class id 65535; known are 0 to 1023 and 255, "),
        (in_values(0, -2, dtype=np.int32), {}, "class id -2; known are 0 to 1023 and 255, which does not"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_known_tells_of_mask_values(mask, more, message):
    data, options = pairs(in_values(0, 0), mask), {"classes": None, "ignore_index": 255, **more}
    form = COLUMNS._replace(mask_values=options.pop("mask_values", None))
    with pytest.raises(RecipeError) as caught:
        check_pairs(data, form, split="train", **options)
    assert str(caught.value).startswith(f"mask: row 1 of the split 'train' holds the {message}")
    assert "--mask_values VALUE VALUE ..." in str(caught.value)


# Classes without a pixel


@pytest.mark.parametrize(
    ("mask", "fields", "note"),
    [
        (
            in_values(0, 2),
            {"class_names": ["wall", "door", "roof", "tree"]},
            "train has no pixel of 'door', 'tree': such classes are not learned",
        ),
        (
            in_values(5, 9),
            {"mask_values": [5, 6, 9]},
            "train has no pixel of '1': such classes are not learned",
        ),
        (
            in_values(0, 128),
            {},
            "127 of the ids 0 to 128 have no pixel in train; to have classes of the others alone: "
            "--mask_values 0 128",
        ),
    ],
)
def test_classes_without_a_pixel_are_told_in_one_line(mask, fields, note, trainer_for):
    trainer, _ = trainer_for(pairs(mask), **fields)
    assert trainer.notes[0] == note and len(trainer.notes) == 2


def test_void_is_no_class_without_a_pixel(trainer_for):
    trainer, _ = trainer_for(pairs(in_values(0, 2)), ignore_index=1)
    assert trainer.model.config.num_labels == 3 and len(trainer.notes) == 1


# Made-up masks


@pytest.mark.parametrize(
    ("ignore_index", "mask_values", "values"),
    [(-1, None, {-1, 0, 1, 2}), (300, None, {300, 0, 1, 2}), (128, [0, 255, 7], {0, 255, 7, 128}),
     (255, [0, 255, 7], {0, 255, 7}), (0, [9, 4, 7], {9, 4, 7, 0})],
)  # fmt: skip
def test_made_up_masks_hold_the_recipes_values(ignore_index, mask_values, values):
    data = make_pairs(
        8,
        COLUMNS._replace(mask_values=mask_values),
        classes=3,
        ignore_index=ignore_index,
    )
    assert set().union(*(np.unique(mask).tolist() for mask in data["mask"])) == values
