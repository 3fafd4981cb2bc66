"""Classification of people's own images: the classes are right, or one line says why they cannot be."""

import json

import datasets
import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture
from tiny_recipe import TINY

from adamnx_hf import recipes
from adamnx_hf.common.errors import RecipeError


def picture(value=0):
    return Picture.fromarray(np.full((32, 32, 3), value, np.uint8))


def write(folder, labels, names=None, columns=("img", "fine_label")):
    """Parquet files by split, of rows with these labels."""
    for split, values in labels.items():
        kind = ClassLabel(names=names[split] if isinstance(names, dict) else names) if names else None
        text = any(isinstance(value, str) for value in values)
        kind = kind or Value("string" if text else "int64")
        content = {columns[0]: [picture()] * len(values), columns[1]: values}
        features = Features({columns[0]: Image(), columns[1]: kind})
        folder.mkdir(exist_ok=True)
        Dataset.from_dict(content, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture
def make(tmp_path):
    """Makes the trainer of the tiny recipe on the data set in `place`."""

    def make(place, *words):
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**TINY, "dataset_name": str(place)}))
        resolved = recipes.resolve(str(path), [f"--output_dir={tmp_path / 'out'}", *words])
        return resolved.task.make_trainer(resolved)

    return make


def names_of(trainer):
    return list(trainer.model.config.id2label.values())


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, -1], [0], "fine_label: row 2 of the split 'train' has the class -1, which stands for none"),
        ([0, None, 1], [0], "fine_label: row 1 of the split 'train' has no class"),
        ([0, 1, 2], [0, None], "fine_label: row 1 of the split 'test' has no class"),
        (
            [0, 1, 2],
            [0, 3],
            "fine_label: row 1 of the split 'test' has the class 3; those of 'train' are 0 to 2",
        ),
        ([0, 1], [-2], "fine_label: row 0 of the split 'test' has the class -2; those of 'train' are 0 to 1"),
        (["a", "b"], ["b", "c"], "row 1 of the split 'test' has the class 'c', which no row to train on has"),
        (["a", ""], ["b"], "row 1 of the split 'train' has the class '', which stands for none"),
        ([0, 10**6], [0], "label_column: 'fine_label' goes up to 1000000, and class ids are counted from 0"),
        ([1, 1], [1], "label_column: every row of 'train' is of one class, '1'; if the rows are sorted"),
    ],
)
def test_labels_that_will_not_do(train, test, message, tmp_path, make):
    with pytest.raises(RecipeError) as error:
        make(write(tmp_path / "data", {"train": train, "test": test}))
    assert message in str(error.value)


@pytest.mark.parametrize("missing", [-1, None])
def test_a_row_without_its_class_among_named_ones(missing, tmp_path, make):
    place = write(tmp_path / "data", {"train": [0, 1], "test": [0, missing]}, ["cat", "dog"])
    with pytest.raises(RecipeError, match="fine_label: row 1 of the split 'test' has "):
        make(place)


def test_names_are_numbered_in_their_order_in_both_splits(tmp_path, make):
    place = write(tmp_path / "data", {"train": ["dog", "cat", "eel", "dog"], "test": ["eel", "cat"]})
    trainer = make(place)
    assert names_of(trainer) == ["cat", "dog", "eel"]
    assert trainer.train_dataset.labels.tolist() == [1, 0, 2, 1]
    assert trainer.eval_dataset.labels.tolist() == [2, 0]


def test_names_in_one_split_and_their_numbers_in_the_other(tmp_path, make):
    """Each split of save_to_disk has its own features."""
    labelled = Features({"img": Image(), "fine_label": ClassLabel(names=["eel", "cat", "dog"])})
    numbers = Dataset.from_dict({"img": [picture()] * 3, "fine_label": [0, 1, 2]}, features=labelled)
    words = Dataset.from_dict({"img": [picture()] * 3, "fine_label": ["cat", "dog", "eel"]})
    words = words.cast_column("img", Image())
    for train, test, names in (
        (numbers, words, ["eel", "cat", "dog"]),
        (words, numbers, ["cat", "dog", "eel"]),
    ):
        datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / names[0])
        trainer = make(tmp_path / names[0])
        assert names_of(trainer) == names
        shown = [[names[i] for i in part.labels] for part in (trainer.train_dataset, trainer.eval_dataset)]
        assert sorted(map(tuple, shown)) == [("cat", "dog", "eel"), ("eel", "cat", "dog")]
    bare = numbers.cast_column("fine_label", Value("int64"))
    for name, parts in (("train", (bare, words)), ("test", (words, bare))):
        datasets.DatasetDict(zip(("train", "test"), parts, strict=True)).save_to_disk(tmp_path / name)
        with pytest.raises(RecipeError, match=f"'fine_label' holds numbers in the split '{name}', and names"):
            make(tmp_path / name)


def test_splits_that_number_their_classes_differently(tmp_path, make):
    """Such as those of save_to_disk, each of which has names of its own."""
    splits = {}
    for split, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
        features = Features({"img": Image(), "fine_label": ClassLabel(names=names)})
        rows = {"img": [picture()] * 2, "fine_label": [0, 1]}
        splits[split] = Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    with pytest.raises(RecipeError, match=r"^eval_split: class 0 is 'dog' there, and 'cat' in train_split"):
        make(tmp_path / "saved")
    more = Features({"img": Image(), "fine_label": ClassLabel(names=["cat", "dog", "eel"])})
    rows = {"img": [picture()] * 2, "fine_label": [0, 2]}
    splits["test"] = Dataset.from_dict(rows, features=more)
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "more")
    with pytest.raises(
        RecipeError, match="row 1 of the split 'test' has the class 2; those of 'train' are 0"
    ):
        make(tmp_path / "more")


def test_a_folder_of_images_cut_by_its_rows(tmp_path, make):
    """Its rows are sorted by class: the last ones are all of one, which training never saw."""
    names = ["cat", "dog", "eel"]
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            picture().save(tmp_path / "images" / name / f"{i}.png")
    cut = ("--train_split=train[:66%]", "--eval_split=train[66%:]")
    trainer = make(tmp_path / "images", *cut)
    unseen, alone = trainer.notes[-2:]
    assert unseen.startswith(
        "5 of the 5 rows of train[66%:] are of classes that no row to train on has: 'eel'"
    )
    assert alone.startswith(
        "every row of train[66%:] is of one class, 'eel'; if the rows are sorted by class"
    )
    assert "--hold_out 20 --eval_on_held_out" in unseen
    # The remedy: of each class its share, and the columns by themselves.
    trainer = make(tmp_path / "images", "--hold_out=20", "--eval_on_held_out=true")
    assert np.bincount(trainer.train_dataset.labels).tolist() == [4, 4, 4]
    assert np.bincount(trainer.eval_dataset.labels).tolist() == [1, 1, 1]
    assert trainer.notes == [
        "image_column: the data set has no 'img'; 'image' holds images",
        "label_column: the data set has no 'fine_label'; 'label' holds classes",
    ]
    # A smoke run's few rows are from all over the folder.
    smoke = ("--smoke", "--hold_out=20", "--eval_on_held_out=true", "--max_train_samples=6")
    assert set(make(tmp_path / "images", *smoke).train_dataset.labels.tolist()) == {0, 1, 2}
    with pytest.raises(RecipeError, match="every row of 'train' is of one class, 'cat'"):
        make(tmp_path / "images", "--eval_split=train", "--max_train_samples=5")


def test_image_folder_with_a_table(tmp_path, make):
    """`metadata.jsonl` beside the images, as the image folders of `datasets` have it: names, no ids."""
    for split, labels in (("train", "bcab"), ("test", "ba")):
        folder = tmp_path / "images" / split
        folder.mkdir(parents=True)
        rows = [{"file_name": f"{i}.png", "label": name} for i, name in enumerate(labels)]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for row in rows:
            picture().save(folder / row["file_name"])
    trainer = make(tmp_path / "images")
    assert names_of(trainer) == ["a", "b", "c"]
    assert trainer.train_dataset.labels.tolist() == [1, 2, 0, 1]
    assert trainer.eval_dataset.labels.tolist() == [1, 0]


def test_parquet_of_image_files_bytes(tmp_path, make):
    """As pandas writes it: a struct, or the bytes alone, without any word that they are images."""
    picture(77).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    for i, cell in enumerate((content, {"bytes": content, "path": None})):
        place = tmp_path / f"data{i}"
        place.mkdir()
        for split in ("train", "test"):
            rows = {"picture": [cell] * 4, "class": [0, 1, 2, 1]}
            Dataset.from_dict(rows).to_pandas().to_parquet(place / f"{split}.parquet")
        trainer = make(place)
        assert (trainer.train_dataset.__getitems__([2])["pixel_values"].std() < 1e-6).all()
        assert trainer.train_dataset.labels.tolist() == [0, 1, 2, 1]


def test_columns_that_flags_name_are_not_replaced(tmp_path, make):
    place = write(tmp_path / "data", {"train": [0, 1], "test": [0, 1]}, columns=("image", "label"))
    assert len(make(place).notes) == 2
    with pytest.raises(RecipeError, match=r"^label_column: the data set has no column 'kind'; pass --label_"):
        make(place, "--label_column=kind")
    with pytest.raises(
        RecipeError, match=r"^image_column: the data set has no column 'pic'; pass --image_co"
    ):
        make(place, "--image_column=pic")
    with pytest.raises(
        RecipeError, match=r"^image_column: 'label' does not hold images; those that do: image"
    ):
        make(place, "--image_column=label")


def test_top5_is_judged_where_there_are_more_classes(tmp_path, make):
    """Of five or fewer the five likeliest hold the right one, whatever the model."""

    def metrics(trainer):
        logits = np.eye(len(names_of(trainer)))[[0, 0]]
        prediction = type("P", (), {"predictions": logits, "label_ids": np.array([0, 4])})
        return trainer.compute_metrics(prediction)

    five = write(tmp_path / "five", {"train": range(5), "test": [0]})
    assert metrics(make(five)) == {"top1_error": 50.0}
    with pytest.raises(RecipeError, match=r"^metric_for_best_model: top5_error is always 0 with 5 classes"):
        make(five, "--metric_for_best_model=eval_top5_error")
    six = write(tmp_path / "six", {"train": range(6), "test": [0]})
    assert metrics(make(six)).keys() == {"top1_error", "top5_error"}


@pytest.fixture
def vit(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTForImageClassification(ViTConfig(**sizes, image_size=32)).save_pretrained(tmp_path / "vit")
    return str(tmp_path / "vit")


@pytest.mark.parametrize("load", ["best", "resume"])
def test_weights_saved_by_other_names_are_loaded_whole(load, vit, tmp_path, make):
    """Transformers 5 saves a ViT by the names of before, of which its Trainer then knows but a few."""
    place = write(tmp_path / "data", {"train": [0, 1], "test": [0]})
    trainer = make(place, f"--model_name_or_path={vit}", "--image_size=32")
    saved = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.save_model(str(tmp_path / "checkpoint-1"))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 1
    if load == "best":
        trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
        trainer._load_best_model()
    else:
        trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, saved[name]), name


def test_weights_of_another_model_are_refused(vit, tmp_path, make):
    place = write(tmp_path / "data", {"train": [0, 1], "test": [0]})
    make(place).save_model(str(tmp_path / "checkpoint-1"))
    trainer = make(place, f"--model_name_or_path={vit}", "--image_size=32")
    with pytest.raises(RecipeError, match="checkpoint-1: its weights are not those of this model"):
        trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))


def test_a_size_that_the_model_does_not_take(vit, tmp_path, make):
    place = write(tmp_path / "data", {"train": [0, 1], "test": [0]})
    with pytest.raises(RecipeError, match=r"^image_size: the model does not take .* pass --image_size 32 \("):
        make(place, f"--model_name_or_path={vit}", "--image_size=48")


def test_a_row_is_named_by_its_number_in_the_data(tmp_path, make):
    """Also where rows before it are held out, or not of the part that is trained on."""
    labels = [0, 1] * 10
    labels[17] = None
    place = write(tmp_path / "data", {"train": labels, "test": [0]})
    part = "--train_split=train[10:]"
    for words in (
        [part],
        ["--hold_out=40"],
        [part, "--hold_out=40"],
        ["--hold_out=40", "--sweep_hold_out=10"],
    ):
        with pytest.raises(RecipeError, match="fine_label: row 17 of the split 'train' has no class"):
            make(place, *words)


def test_what_is_said_of_classes_and_rows(tmp_path, make):
    place = write(tmp_path / "data", {"train": ["cat", "dog", "cat ", "Dog", "eel"], "test": ["cat"]})
    notes = make(place).notes
    assert "these are different classes: 'cat', 'cat '" in notes
    assert "these are different classes: 'Dog', 'dog'" in notes
    gaps = write(tmp_path / "gaps", {"train": [1, 2, 10, 1], "test": [1, 2]})
    trainer = make(gaps, "--train_split=train[:3]")
    assert trainer.notes[:2] == [
        "1 of the 4 rows of the split 'train' are neither trained nor judged on: see --train_split "
        "(train[:3]) and --eval_split (test)",
        "8 of the 11 classes have no row to train on: '0', '3', '4', '5', '6', ...",
    ]
    logits = np.eye(11)[[1, 2]]
    prediction = type("P", (), {"predictions": logits, "label_ids": np.array([1, 2])})
    assert trainer.compute_metrics(prediction) == {"top1_error": 0.0}  # of three classes


@pytest.mark.parametrize("rows", [7, 8])
def test_fewer_rows_than_a_batch(rows, tmp_path, make):
    """Where incomplete batches are left out, nothing would be trained."""
    place = write(tmp_path / "data", {"train": [0, 1] * 4, "test": [0]})
    words = (f"--max_train_samples={rows}", "--dataloader_drop_last=true")
    if rows == 8:
        assert len(make(place, *words).get_train_dataloader()) == 1
        return
    with pytest.raises(
        RecipeError,
        match=r"^dataloader_drop_last: leaves out all 7 training examples: they are fewer than a batch of 8; "
        "pass --dataloader_drop_last false, or --per_device_train_batch_size 7$",
    ):
        make(place, *words)
    assert len(make(place, words[0]).get_train_dataloader()) == 1
