"""Pairs of images and masks from the row to the score, and whole runs."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, Features, Image, load_dataset
from PIL import Image as Picture
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index
from transformers import SegformerConfig, SegformerForSemanticSegmentation, pipeline

from adamnx_hf import cli, recipes
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.models import UNetConfig, UNetForSemanticSegmentation
from adamnx_hf.tasks import semantic_segmentation as task
from adamnx_hf.tasks.loading import load_splits
from adamnx_hf.tasks.semantic_segmentation.charts import make_colours
from adamnx_hf.tasks.semantic_segmentation.dataset import (
    SegmentationDataset,
    collate,
    make_eval_transform,
    make_train_transform,
)
from adamnx_hf.tasks.semantic_segmentation.evaluation import SegmentationTrainer, compute_scores, segment
from adamnx_hf.tasks.semantic_segmentation.made_up import make_pairs
from adamnx_hf.tasks.semantic_segmentation.masks import PairFormat, check_pairs
from adamnx_hf.tasks.semantic_segmentation.task import balance_weights
from adamnx_hf.tasks.trainer import RecipeTrainingArguments

VOID = 255
COLUMNS = PairFormat("image", "mask")
TINY = {
    "task": "semantic_segmentation",
    "architecture": "unet",
    "architecture_options": {"base_width": 8, "depth": 2},
    "class_names": ["around", "disc", "square"],
    "eval_split": "validation",
    "image_size": 40,
    "crop_size": 40,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 3,
    "num_train_epochs": 2,
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 2,
    "optim": "adamnx",
    "learning_rate": 0.01,
    "use_cpu": True,
    "disable_tqdm": True,
}


def write(root, **splits):
    (root / "data").mkdir(parents=True, exist_ok=True)
    for split, data in splits.items():
        data.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


def made_up(count, seed):
    return make_pairs(count, COLUMNS, classes=3, ignore_index=VOID, seed=seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shapes"
    return write(root, train=made_up(24, 0), validation=made_up(7, 1))


@pytest.fixture
def tiny(tmp_path, folder):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "dataset_name": str(folder)}))
    return str(path)


# The metric


def test_scores_by_hand():
    """Two images of two pixels that count: the total matrix decides, not the mean over images."""
    first = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 0]])
    second = torch.tensor([[0, 0, 0], [0, 2, 0], [0, 0, 0]])
    together = compute_scores(first + second)
    # Class 0: 1 right of 2 in the union. Class 1: 2 right, 1 wrongly taken for it. Class 2 is nowhere.
    assert together["mean_iou"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert together["pixel_accuracy"] == pytest.approx(75)
    apart = [compute_scores(one)["mean_iou"] for one in (first, second)]
    assert apart == [pytest.approx(25), pytest.approx(100)]
    assert together["mean_iou"] != pytest.approx(sum(apart) / 2)


def test_a_class_that_is_predicted_but_not_there_counts():
    confusion = torch.tensor([[3, 0, 1], [0, 0, 0], [0, 0, 0]])
    assert compute_scores(confusion)["mean_iou"] == pytest.approx(100 * (3 / 4 + 0) / 2)
    assert compute_scores(torch.zeros(3, 3)) == {"mean_iou": 0, "pixel_accuracy": 0}


def test_many_pixels_are_counted_exactly():
    confusion = torch.tensor([[2**24 + 1, 0], [0, 1]])  # float32 would round
    assert compute_scores(confusion) == {"mean_iou": 100, "pixel_accuracy": 100}


@pytest.mark.parametrize("void", [0, 1, 3, -1, 4, 255])
def test_the_id_of_void_counts_nowhere(void):
    """torchmetrics', with the void id at either end of the ids, among them and outside."""
    draws = torch.Generator().manual_seed(void + 1)
    for _ in range(4):
        true = torch.randint(4, (200,), generator=draws)
        true[torch.rand(200, generator=draws) < 0.3] = void
        predicted = torch.randint(4, (200,), generator=draws)  # also the void id, where it is one of the four
        confusion = multiclass_confusion_matrix(predicted, true, 4, ignore_index=void)
        expected = multiclass_jaccard_index(predicted, true, 4, average="macro", ignore_index=void)
        assert compute_scores(confusion, void)["mean_iou"] == pytest.approx(100 * expected.item(), rel=1e-6)


def test_void_among_the_ids_by_hand():
    """Of class 1's four pixels one is taken for the void id 0: 3 of 4. Class 2: 2 of 2. Not a third for 0."""
    confusion = torch.tensor([[0, 0, 0], [1, 3, 0], [0, 0, 2]])
    assert compute_scores(confusion, 0)["mean_iou"] == pytest.approx(100 * (3 / 4 + 1) / 2)
    assert compute_scores(confusion, 0)["pixel_accuracy"] == pytest.approx(100 * 5 / 6)
    assert compute_scores(confusion)["mean_iou"] == pytest.approx(100 * (0 + 3 / 4 + 1) / 3)


def trainer_of(tmp_path, data, batch, size=24, void=VOID, model=None, **more):
    if model is None:
        torch.manual_seed(0)
        config = UNetConfig(base_width=4, depth=2, num_labels=3, semantic_loss_ignore_index=void)
        model = UNetForSemanticSegmentation(config).eval()
        with torch.no_grad():
            model.classifier.weight *= 100  # of its own, each class is somewhere the likeliest
    normal = {"mean": [0.5] * 3, "std": [0.5] * 3}
    return SegmentationTrainer(
        num_labels=3,
        ignore_index=void,
        model=model,
        args=RecipeTrainingArguments(
            str(tmp_path),
            per_device_eval_batch_size=batch,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            **more,
        ),
        eval_dataset=SegmentationDataset(
            data, COLUMNS, transform=make_eval_transform(image_size=size, **normal), keep_mask=True
        ),
        data_collator=lambda examples: collate(examples, ignore_index=void),
    )


@pytest.mark.parametrize(("batch", "void"), [(1, VOID), (3, VOID), (2, 0), (2, 2)])
def test_evaluation_is_torchmetrics_over_all_images(batch, void, tmp_path):
    """Images of different sizes, void pixels: as torchmetrics has it, and the model image by image."""
    data = made_up(7, 3)
    trainer = trainer_of(tmp_path, data, batch=batch, void=void)
    if void != VOID:  # among the ids: what the made-up masks call void is another class, then
        rename = trainer.eval_dataset._decode
        trainer.eval_dataset._decode = lambda row: (rename(row)[0], rename(row)[1].clamp(max=2))
    scores = trainer.evaluate()
    metric, losses = MulticlassJaccardIndex(3, ignore_index=void), []
    for row in trainer.eval_dataset:
        with torch.no_grad():
            output = trainer.model(row["pixel_values"][None], labels=row["labels"][None])
        full = torch.nn.functional.interpolate(output.logits, size=row["mask"].shape, mode="bilinear")
        metric.update(full.argmax(1)[0], row["mask"])
        losses.append(output.loss.item())
    assert len({row["mask"].shape for row in trainer.eval_dataset}) > 3
    assert scores["eval_mean_iou"] == pytest.approx(100 * metric.compute().item(), rel=1e-5)
    assert scores["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert 2 < scores["eval_mean_iou"] < 95
    again = trainer.evaluate()  # nothing is left of the first
    assert all(again[key] == scores[key] for key in ("eval_mean_iou", "eval_loss"))


def test_figures_do_not_depend_on_the_batch(tmp_path):
    data = made_up(7, 3)
    found = [trainer_of(tmp_path, data, batch=batch).evaluate() for batch in (1, 2, 7)]
    for key in ("eval_mean_iou", "eval_pixel_accuracy", "eval_loss"):
        assert found[0][key] == found[1][key] == found[2][key]


def test_an_image_that_is_all_void_has_the_loss_0(tmp_path):
    """Transformers' own losses are NaN there, and one would make NaN of the mean."""
    torch.manual_seed(0)
    small = {"num_encoder_blocks": 1, "depths": [1], "hidden_sizes": [8], "decoder_hidden_size": 8}
    small |= {
        "sr_ratios": [2],
        "patch_sizes": [7],
        "strides": [4],
        "num_attention_heads": [1],
        "mlp_ratios": [2],
    }
    config = SegformerConfig(**small, num_labels=3, semantic_loss_ignore_index=VOID)
    model = SegformerForSemanticSegmentation(config).eval()
    data = made_up(2, 4)
    first, second = (np.array(mask) for mask in data["mask"])
    half_void = Dataset.from_dict(
        {"image": data["image"], "mask": [first, np.full_like(second, VOID)]}, features=data.features
    )
    trainer = trainer_of(tmp_path, half_void, batch=2, model=model)
    alone = trainer.eval_dataset[0]
    with torch.no_grad():
        loss = model(alone["pixel_values"][None], labels=alone["labels"][None]).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx((loss + 0) / 2, rel=1e-6)


def test_void_pixels_do_not_count_whatever_is_predicted(tmp_path):
    data = made_up(3, 4)
    all_void = Dataset.from_dict(
        {"image": data["image"], "mask": [np.full_like(np.array(mask), VOID) for mask in data["mask"]]},
        features=data.features,
    )
    scores = trainer_of(tmp_path, all_void, batch=2).evaluate()
    assert scores["eval_mean_iou"] == 0 and scores["eval_loss"] == 0


def test_no_more_than_a_confusion_matrix_is_kept_of_a_batch(tmp_path):
    trainer = trainer_of(tmp_path, made_up(5, 5), batch=5)
    batch = next(iter(trainer.get_eval_dataloader()))
    loss, confusion, losses = trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
    assert loss.ndim == 0 and confusion.shape == (5, 3, 3) and losses.shape == (5,)
    true = torch.stack([torch.bincount(mask[mask != VOID], minlength=3) for mask in batch["masks"]])
    assert torch.equal(confusion.sum(2), true) and torch.equal(loss, losses.mean())
    assert "masks" in batch  # the batch is whole still
    assert trainer.prediction_step(trainer.model, batch, prediction_loss_only=True) == (loss, None, None)


def test_logits_of_a_lower_resolution():
    """What `post_process_semantic_segmentation` does."""
    logits = torch.randn(2, 4, 6, 8)
    found = segment(logits, (12, 16), (13, 14))
    upsample = torch.nn.functional.interpolate
    full = upsample(logits, size=(12, 16), mode="bilinear")
    assert torch.equal(found, upsample(full, size=(13, 14), mode="bilinear").argmax(1))


def test_curvature_is_of_the_pixels_that_count(tmp_path):
    trainer = trainer_of(tmp_path, made_up(2, 6), batch=2)
    labels = torch.randint(3, (2, 8, 12))
    labels[0, :4] = VOID
    loss, count = trainer.sampled_loss({"pixel_values": torch.randn(2, 3, 8, 12), "labels": labels})
    assert count == 2 * 8 * 12 - 4 * 12 and loss.isfinite()
    logits = torch.arange(3.0)[None, :, None, None].expand(2, 3, 8, 12)
    assert torch.equal(trainer.select_logits(logits, labels), torch.arange(3.0).expand(count, 3))


# Images and masks


def test_image_and_mask_are_changed_alike():
    """The mask can be read off the image, before and after."""
    transform = make_train_transform(
        image_size=48,
        scale_range=(0.5, 2.0),
        crop_size=40,
        flip=0.5,
        mean=[0.0] * 3,
        std=[1.0] * 3,
        ignore_index=VOID,
    )
    side = np.arange(48) // 12
    mask = (side[:, None] + 4 * side[None]).astype(np.uint8)  # 16 squares with ids of their own
    picture = Picture.fromarray(np.stack([mask * 10 + 50] * 3, -1))
    data = Dataset.from_dict(
        {"image": [picture], "mask": [Picture.fromarray(mask)]},
        features=Features({"image": Image(), "mask": Image()}),
    )
    pairs = SegmentationDataset(data, COLUMNS, transform=transform)
    torch.manual_seed(0)
    flipped, void, zoomed = set(), 0, set()
    for _ in range(40):
        example = pairs[0]
        pixels, labels = example["pixel_values"], example["labels"]
        assert type(pixels) is type(labels) is torch.Tensor
        assert pixels.shape == (3, 40, 40) and labels.shape == (40, 40) and labels.dtype == torch.int64
        inside = labels != VOID
        read = (pixels[0] * 255 - 50) / 10
        near = (read - labels).abs()[inside] < 1
        assert near.float().mean() > 0.75  # not at the squares' edges, where images are smoothed
        assert set(labels[inside].tolist()) <= set(range(16))
        assert (pixels[:, ~inside] == 0).all()  # the mean's colour is what has been added
        void += int((~inside).any())
        zoomed.add(len(set(labels[inside].tolist())))
        row = labels[20][inside[20]]
        flipped.add(bool(row[0] > row[-1]))
    assert flipped == {True, False} and 0 < void < 40 and len(zoomed) > 2


def test_examples_for_evaluation_keep_the_mask_as_it_is():
    data = made_up(3, 0)
    transform = make_eval_transform(image_size=20, mean=[0.5] * 3, std=[0.5] * 3)
    examples = [
        SegmentationDataset(data, COLUMNS, transform=transform, keep_mask=True, keep_decoded=kept)[1]
        for kept in (True, False)
    ]
    original = np.array(data[1]["mask"])
    for example in examples:
        assert example["mask"].dtype == torch.int64 and np.array_equal(example["mask"], original)
        assert min(example["labels"].shape) == 20 == min(example["pixel_values"].shape[1:])
        assert example["pixel_values"].min() >= -1 and example["pixel_values"].max() <= 1
    assert all(torch.equal(examples[0][key], examples[1][key]) for key in examples[0])


def test_batches_of_different_sizes():
    sizes = [(4, 9), (7, 5)]
    examples = [
        {
            "pixel_values": torch.ones(3, *size),
            "labels": torch.ones(size, dtype=torch.int64),
            "mask": torch.ones(2, 2, dtype=torch.int64),
        }
        for size in sizes
    ]
    batch = collate(examples, ignore_index=VOID)
    assert batch["pixel_values"].shape == (2, 3, 7, 9) and batch["labels"].shape == (2, 7, 9)
    assert batch["sizes"].tolist() == [[4, 9], [7, 5]] and len(batch["masks"]) == 2
    for i, (height, width) in enumerate(sizes):
        assert batch["pixel_values"][i].sum() == 3 * height * width
        assert (batch["labels"][i, :height, :width] == 1).all()
        assert (batch["labels"][i] == VOID).sum() == 7 * 9 - height * width


def test_palette_and_grey_masks_are_ids():
    grey = np.array([[0, 1], [2, VOID]], dtype=np.uint8)
    palette = Picture.fromarray(grey, mode="P")
    palette.putpalette([7, 7, 7] * 256)
    image = Picture.fromarray(np.zeros((2, 2), np.uint8))  # and grey images are RGB
    data = Dataset.from_dict(
        {"image": [image] * 2, "mask": [palette, Picture.fromarray(grey)]},
        features=Features({"image": Image(), "mask": Image()}),
    )
    pairs = SegmentationDataset(data, COLUMNS, transform=lambda image, mask: (image, mask))
    for i in range(2):
        assert torch.equal(pairs[i]["labels"], torch.from_numpy(grey).long())
        assert pairs[i]["pixel_values"].shape == (3, 2, 2)
    counts, uncounted = check_pairs(data, COLUMNS, split="train", classes=3, ignore_index=VOID)
    assert counts.tolist() == [2, 2, 2] and uncounted == 2


def test_vocs_colours():
    """The development kit's first, 19th and last but one."""
    assert make_colours(21)[[0, 1, 2, 15, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]
    assert make_colours(256)[255].tolist() == [224, 224, 192]


# Data that do not fit


def spoilt(kind):
    """Rows 0 to 3, of which row 2 is wrong."""
    images = [np.zeros((6, 8, 3), np.uint8)] * 4
    good = np.zeros((6, 8), np.uint8)
    wrong = {
        "missing": None,
        "size": np.zeros((8, 6), np.uint8),
        "id": np.full((6, 8), 3, np.uint8),
        "colours": np.zeros((6, 8, 3), np.uint8),
        "bytes": {"bytes": b"not a picture", "path": None},
        "fractions": Picture.fromarray(np.full((6, 8), 0.7, np.float32)),
    }
    if kind == "image":
        images = [*images[:2], None, images[3]]
    if kind == "16 bits":
        images = [*images[:2], np.full((6, 8), 30000, np.uint16), images[3]]
    rows = {"image": images, "mask": [good, good, wrong.get(kind, good), good]}
    return Dataset.from_dict(rows, features=Features({"image": Image(), "mask": Image()}))


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "mask: row 2 of the split '{}' has none; leave the row out"),
        ("image", "image: row 2 of the split '{}' has none; leave the row out"),
        ("size", "mask: row 2 of the split '{}' is 6 x 8 pixels, its image 8 x 6; a mask has to have its"),
        ("id", "mask: row 2 of the split '{}' holds the class id 3; known are 0 to 2 and 255, "),
        ("colours", "mask: row 2 of the split '{}' is a picture in colours (RGB), not one channel "),
        ("bytes", "mask: row 2 of the split '{}' cannot be read"),
        ("fractions", "mask: row 2 of the split '{}' holds fractions (PIL's mode F), not class ids"),
        ("16 bits", "image: row 2 of the split '{}' cannot be read (its pixels have more than 8 bits, "),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_named(kind, message, split, tmp_path, capsys):
    good = made_up(4, 0)
    splits = {"train": good, "validation": good, split: spoilt(kind)}
    root = write(tmp_path / "bad", **splits)
    path, out = tmp_path / "tiny.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump({**TINY, "dataset_name": str(root)}))
    assert cli.main(["run", str(path), "--output_dir", str(out)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adamnx-hf")]
    assert len(errors) == 1 and message.format(split) in errors[0]
    assert not out.exists()


def test_an_image_that_breaks_off_is_named_when_it_is_read(tmp_path):
    picture = Picture.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture.save(tmp_path / "whole.jpg")
    (tmp_path / "part.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-60])
    images = [str(tmp_path / name) for name in ("whole.jpg", "part.jpg")]
    data = Dataset.from_dict(
        {"image": images, "mask": [np.zeros((6, 8), np.uint8)] * 2},
        features=Features({"image": Image(), "mask": Image()}),
    )
    pairs = SegmentationDataset(
        data, COLUMNS, transform=lambda image, mask: (image, mask), split="validation"
    )
    assert pairs[0]["pixel_values"].shape == (3, 6, 8)
    with pytest.raises(
        RecipeError, match=r"image: row 1 of the split 'validation' cannot be read .*[Tt]runcated"
    ):
        pairs[1]


@pytest.mark.parametrize("kept", [True, False])
def test_a_mask_that_breaks_off_is_named(kept, tmp_path):
    """When it is read, and before that when pairs are checked."""
    mask = np.random.default_rng(0).integers(0, 3, (60, 80), dtype=np.uint8)
    Picture.fromarray(mask).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "part.png").write_bytes(whole[: len(whole) // 2])
    data = Dataset.from_dict(
        {
            "image": [np.zeros((60, 80, 3), np.uint8)] * 2,
            "mask": [str(tmp_path / name) for name in ("whole.png", "part.png")],
        },
        features=Features({"image": Image(), "mask": Image()}),
    )
    with pytest.raises(RecipeError, match=r"mask: row 1 of the split 'test' cannot be read .*truncated"):
        check_pairs(data, COLUMNS, split="test", classes=3, ignore_index=VOID)
    with pytest.raises(RecipeError, match=r"mask: row 1 of the split 'test' cannot be read .*truncated"):
        SegmentationDataset(
            data, COLUMNS, transform=lambda *pair: pair, split="test", keep_decoded=kept, quiet=True
        )[1]


@pytest.mark.parametrize("mask_too", [False, True])
def test_a_picture_turned_by_its_camera_fits_its_mask(mask_too, tmp_path):
    turned = Picture.fromarray(np.zeros((6, 8, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6  # stands on its side
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Picture.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "mask.png", exif=exif)
    mask = str(tmp_path / "mask.png") if mask_too else np.zeros((8, 6), np.uint8)
    data = Dataset.from_dict(
        {"image": [str(tmp_path / "turned.jpg")], "mask": [mask]},
        features=Features({"image": Image(), "mask": Image()}),
    )
    counts, _ = check_pairs(data, COLUMNS, split="train", classes=1, ignore_index=VOID)
    assert counts.tolist() == [48]
    pair = SegmentationDataset(data, COLUMNS, transform=lambda image, mask: (image, mask))[0]
    assert pair["pixel_values"].shape[1:] == pair["labels"].shape == (8, 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mask_column", "maks"], "mask_column: the data set has no column 'maks'; did you mean 'mask'"),
        (["--image_column", "picture"], "image_column: the data set has no column 'picture'"),
        (["--class_names", "a", "b"], "row 0 of the split 'train' holds the class id 2; known are 0 to 1"),
        (["--class_names", "a", "b", "a"], "class_names: 'a' is given twice"),
        (["--ignore_index", "1"], "ignore_index: 1 is the id of 'disc' in class_names"),
        (["--architecture", "unett"], "architecture: 'unett' is not known; did you mean 'unet'"),
        (["--architecture_options", '{"base_with": 8}'], "no 'base_with'; did you mean 'base_width'"),
        (["--architecture_options", '{"depth": 0}'], "architecture_options: depth: 0 is not a whole number"),
        (["--scale_range", "2", "1"], "two numbers above 0, the lower first, got [2.0, 1.0]"),
        (["--crop_size", "0"], "crop_size: 0 is not a size in pixels"),
        (["--class_balance", "2"], "class_balance: 2.0 is not a number from 0 to 1"),
        (["--eval_split", "val"], "eval_split: "),
    ],
)  # fmt: skip
def test_what_does_not_fit_ends_in_one_line(words, message, tiny, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["run", tiny, "--output_dir", str(out), *words]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adamnx-hf")]
    assert len(errors) == 1 and message in errors[0]
    assert not out.exists()


def test_masks_have_to_be_images(tmp_path, capsys):
    data = made_up(2, 0).add_column("label", [0, 1])
    root = write(tmp_path / "data", train=data, validation=data)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "dataset_name": str(root), "mask_column": "label"}))
    assert cli.main(["run", str(path), "--output_dir", str(tmp_path / "out")]) == 1
    assert "mask_column: 'label' does not hold images; those that do: image, mask" in capsys.readouterr().err


# Whole runs


def results_of(out):
    return json.loads((out / "results.json").read_text())


def test_a_run_and_its_model_in_a_pipeline(tiny, tmp_path, folder, capsys):
    out = tmp_path / "out"
    words = ["--num_train_epochs", "12", "--per_device_eval_batch_size", "1", "--eval_strategy", "no"]
    assert cli.main(["run", tiny, "--output_dir", str(out), *words]) == 0
    results = results_of(out)
    assert set(results["metrics"]) == {"mean_iou", "pixel_accuracy"}
    mean_iou = results["metrics"]["mean_iou"]
    test = load_dataset(str(folder), split="validation")
    constant = np.mean(
        [(np.array(mask) == 0).sum() / (np.array(mask) != VOID).sum() for mask in test["mask"]]
    )
    assert mean_iou["last"] > 45 > 100 * constant / 3
    assert "'around' everywhere would have a mean IoU of" in capsys.readouterr().out
    assert results["notes"] and results["throughput"]["model"] > 0
    with Picture.open(out / "predictions.png") as picture:
        assert picture.width > 1000

    # What was saved segments as what was trained.
    segment = pipeline("image-segmentation", model=str(out))
    confusion = torch.zeros(3, 3)
    for row in test:
        truth = torch.from_numpy(np.array(row["mask"])).long()
        predicted = torch.full_like(truth, -1)
        for answer in segment(row["image"]):
            predicted[torch.from_numpy(np.array(answer["mask"])) > 0] = TINY["class_names"].index(
                answer["label"]
            )
        assert (predicted >= 0).all()
        for one, other in zip(truth[truth != VOID], predicted[truth != VOID], strict=True):
            confusion[one, other] += 1
    # Pillow and torchvision resize a little differently.
    assert compute_scores(confusion)["mean_iou"] == pytest.approx(mean_iou["last"], abs=1.0)


def test_an_optimizer_that_needs_curvature_trains(tiny, tmp_path):
    out = tmp_path / "out"
    words = ["--smoke", "--optim", "sophiag", "--max_steps", "11", "--learning_rate", "0.001"]
    assert cli.main(["run", tiny, *words, "--output_dir", str(out)]) == 0
    assert results_of(out)["optim"] == "sophiag" and np.isfinite(
        results_of(out)["per_epoch"][-1]["eval_loss"]
    )


def test_fine_tuning_a_model_of_transformers(tiny, tmp_path):
    """From scratch by its model_type, then from its folder, with logits at a quarter of the resolution."""
    small = {"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [8, 16], "decoder_hidden_size": 8}
    small |= {"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2]}
    small |= {"num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--smoke", "--max_steps", "1"]
    architecture = ["--architecture", "segformer", "--architecture_options", json.dumps(small)]
    assert cli.main(["run", tiny, *words, *architecture, "--output_dir", str(first)]) == 0
    path = tmp_path / "tune.yaml"
    values = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    values = {key: value for key, value in values.items() if not key.startswith("architecture")}
    path.write_text(yaml.safe_dump({**values, "model_name_or_path": str(first)}))
    assert cli.main(["run", str(path), *words, "--output_dir", str(second)]) == 0
    assert results_of(second)["parameters"] == results_of(first)["parameters"]


def test_balanced_weights_by_hand():
    pixels = np.array([75, 25, 0])
    assert balance_weights(pixels, 0.0) == pytest.approx([1, 1, 1])
    whole = balance_weights(pixels, 1.0)
    assert whole == pytest.approx(
        [1 / 1.5, 2, 2]
    )  # 75 and 25 pixels have the same sum; the rest the rarest's
    half = balance_weights(pixels, 0.5)
    assert half[1] / half[0] == pytest.approx(3**0.5) and 0.75 * half[0] + 0.25 * half[1] == pytest.approx(1)


def test_rare_classes_count_more(tiny, tmp_path, folder, capsys):
    """The weights are those of the training masks, are saved, and not taken over to other data."""
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--max_steps", "1", "--eval_strategy", "no"]
    assert cli.main(["run", tiny, *words, "--class_balance", "0.5", "--output_dir", str(first)]) == 0
    pixels = np.bincount(
        np.concatenate([np.array(mask).ravel() for mask in load_dataset(str(folder), split="train")["mask"]]),
        minlength=256,
    )[:3]
    weights = json.loads((first / "config.json").read_text())["class_weights"]
    assert weights == pytest.approx(balance_weights(pixels, 0.5)) and weights[0] < 1 < min(weights[1:])
    path = tmp_path / "tune.yaml"
    values = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    values = {key: value for key, value in values.items() if not key.startswith("architecture")}
    path.write_text(yaml.safe_dump({**values, "model_name_or_path": str(first)}))
    assert cli.main(["run", str(path), *words, "--output_dir", str(second)]) == 0
    assert json.loads((second / "config.json").read_text())["class_weights"] is None
    small = json.dumps({"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4})
    words += ["--architecture", "segformer", "--architecture_options", small, "--class_balance", "1"]
    assert cli.main(["run", tiny, *words, "--output_dir", str(tmp_path / "third")]) == 1
    assert "class_balance: segformer has a loss of its own that weighs no classes" in capsys.readouterr().err


def test_accumulated_batches_are_a_larger_batch(tiny, tmp_path):
    small = {"hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4, "num_attention_heads": [1] * 4,
             "decoder_hidden_size": 8, "classifier_dropout_prob": 0.0, "drop_path_rate": 0.0}  # fmt: skip
    words = ["--architecture", "segformer", "--architecture_options", json.dumps(small), "--max_steps", "1"]
    words += ["--flip_probability", "0", "--scale_range", "1", "1", "--logging_steps", "1"]
    losses = []
    for batch, steps in ((8, 1), (2, 4)):
        out = tmp_path / f"out{steps}"
        more = ["--per_device_train_batch_size", str(batch), "--gradient_accumulation_steps", str(steps)]
        assert cli.main(["run", tiny, *words, *more, "--output_dir", str(out)]) == 0
        losses.append(results_of(out)["per_epoch"][-1]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.1)  # not four times as much


def test_a_folder_without_configurations_takes_the_recipes_place(folder):
    """`segmentation_aug` is one of the Hub's."""
    arguments = recipes.resolve("sbd_unet", ["--dataset_name", str(folder)]).task_arguments
    assert arguments.dataset_config_name == "segmentation_aug"
    train, test = load_splits(arguments)
    assert (len(train), len(test)) == (24, 7)


def test_a_missing_torchmetrics_is_named_at_once(tiny, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    for name in [name for name in sys.modules if name.startswith((task.__name__, "torchmetrics."))]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["run", tiny, "--output_dir", str(tmp_path / "out")]) == 1
    message = 'torchmetrics is not installed: pip install "adamnx-hf[recipes]"'
    assert message in capsys.readouterr().err


def test_numbers_for_names(tiny, tmp_path):
    values = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    del values["class_names"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    out = tmp_path / "out"
    assert cli.main(["run", tiny, "--smoke", "--max_steps", "1", "--output_dir", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "0", "1": "1", "2": "2"}


def test_the_recipes_of_the_paper():
    resolved = recipes.resolve("sbd_unet")
    arguments = resolved.task_arguments
    assert resolved.arguments.paper_tables == [6, 10] and len(arguments.class_names) == 21
    assert (arguments.image_column, arguments.mask_column, arguments.ignore_index) == ("image", "mask", 255)
    assert arguments.architecture_options == {"base_width": 64, "depth": 4, "dice_weight": 0.5}
    assert recipes.resolve("sbd_unet", ["--optim", "adam"]).training_arguments.adam_beta2 == 0.999


@pytest.mark.slow
def test_eight_images_are_learned_by_heart(tiny, tmp_path):
    """Loss, augmentation and metric fit each other: near-perfect scores on the images it was trained on."""
    root = write(tmp_path / "eight", train=made_up(8, 0))
    out = tmp_path / "out"
    words = [
        "--dataset_name", str(root), "--eval_split", "train", "--max_steps", "400",
        "--architecture_options", '{"base_width": 8, "depth": 3}', "--image_size", "64", "--crop_size", "56",
        "--eval_strategy", "no", "--lr_scheduler_type", "cosine",
    ]  # fmt: skip
    assert cli.main(["run", tiny, *words, "--output_dir", str(out)]) == 0
    metrics = results_of(out)["metrics"]
    assert metrics["mean_iou"]["last"] > 97 and metrics["pixel_accuracy"]["last"] > 99
