"""Splits and parts of them."""

import dataclasses

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features
from hub_server import serving

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.tasks import load_task
from adamnx_hf.tasks.data import DataArguments
from adamnx_hf.tasks.loading import load_splits


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        Dataset.from_dict({"row": range(20)}).to_parquet(tmp_path / f"{split}.parquet")
    return str(tmp_path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub, and the clients of huggingface_hub and datasets set to it as HF_ENDPOINT would set them."""
    with serving(monkeypatch, tmp_path / "cache") as server:
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        yield server


def rows(folder, **fields):
    return [list(split["row"]) for split in load_splits(DataArguments(dataset_name=folder, **fields))]


def test_parts_of_a_split(folder):
    train, held_out = rows(folder, train_split="train[:90%]", eval_split="train[90%:]")
    assert train == list(range(18)) and held_out == [18, 19]
    assert rows(folder, train_split="train[5:8]", max_train_samples=2)[0] == [5, 6]
    assert rows(folder)[1] == list(range(20))


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("trian", "no split 'trian'; did you mean 'train'?"),
        ("trian[:5]", "no split 'trian'; did you mean 'train'?"),
        ("train[:x]", "'train[:x]' is not a part of a split, such as train[:90%]"),
        ("train[:10]+train[12:]", "is not a part of a split"),
        ("train[8:8]", "'train[8:8]' holds no rows; train has 20"),
        ("train[30:40]", "'train[30:40]' "),
    ],
)
def test_no_such_part(folder, spec, told):
    with pytest.raises(RecipeError) as caught:
        rows(folder, train_split=spec)
    assert str(caught.value).startswith("train_split: ") and told in str(caught.value)


def test_rows_held_out_are_drawn_and_not_trained_on(folder):
    train, judged = rows(folder, hold_out=20)
    held_out = sorted(set(range(20)) - set(train))
    assert train == sorted(train) and len(held_out) == 4 and judged == list(range(20))
    assert held_out not in ([16, 17, 18, 19], [2, 7, 12, 17])  # neither the last ones nor at even distances
    assert rows(folder, hold_out=20, eval_on_held_out=True) == [train, held_out]
    assert rows(folder, hold_out=20, hold_out_seed=1, eval_on_held_out=True)[1] != held_out
    train, judged = rows(
        folder, train_split="train[:50%]", max_train_samples=4, hold_out=1, eval_on_held_out=True
    )
    assert len(judged) == 1 and sorted(train + judged) == [0, 1, 2, 3]


def test_of_each_class_its_share_is_held_out(folder):
    """Sorted by class, as folders of images are, or not."""
    for classes in ([0] * 10 + [1] * 5 + [2] * 5, [0, 1, 0, 2] * 5, ["b"] * 15 + ["a"] * 5):
        arguments = DataArguments(dataset_name=folder, hold_out=20, eval_on_held_out=True)
        _, judged = load_splits(arguments, labels=lambda train, classes=classes: classes)
        share = [classes.count(name) / 5 for name in sorted(set(classes))]
        assert [[classes[row] for row in judged["row"]].count(n) for n in sorted(set(classes))] == share


def test_rows_for_a_sweep_are_others_than_those_that_judge(folder):
    """A data set of one split is parted in three, each class in its share."""
    fields = {"hold_out": 20, "eval_on_held_out": True, "sweep_hold_out": 25}
    train, judged = rows(folder, **fields)
    swept_on, sweep = rows(folder, **fields, eval_on_sweep_rows=True)
    assert train == swept_on and len(judged) == 4 and len(sweep) == 4
    assert sorted(train + judged + sweep) == list(range(20))
    assert rows(folder, sweep_hold_out=25)[1] == list(range(20))  # the test split


def test_a_split_that_is_not_needed_may_be_missing(tmp_path):
    Dataset.from_dict({"row": range(10)}).to_parquet(tmp_path / "train.parquet")
    train, judged = rows(str(tmp_path), hold_out=20, eval_on_held_out=True)
    assert len(train) == 8 and len(judged) == 2
    with pytest.raises(RecipeError, match=r"no split 'test'; valid: train; .*--hold_out 20 --eval_on_held"):
        rows(str(tmp_path))


def test_rows_from_all_over_a_split(folder):
    arguments = DataArguments(dataset_name=folder, max_train_samples=4)
    assert list(load_splits(arguments, spread=True)[0]["row"]) == [2, 7, 12, 17]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "saved", "saved whole"])
def test_local_forms(form, tmp_path):
    """A single file, and what `save_to_disk` writes."""
    data, place = Dataset.from_dict({"row": [5, 6, 7]}), tmp_path / f"data.{form}"
    if form == "saved":
        datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(place)
        assert rows(str(place)) == [[5, 6, 7], [6]]
        return
    write = {"csv": data.to_csv, "jsonl": data.to_json, "parquet": data.to_parquet}
    write.get(form, data.save_to_disk)(place)
    (tmp_path / "other.csv").write_text("row\n8\n")  # is none of its business
    train, judged = rows(str(place), hold_out=34, eval_on_held_out=True)
    assert sorted(train + judged) == [5, 6, 7] and len(judged) == 1


def test_files_of_a_folder(folder):
    files = '{"train": "test.parquet", "test": ["train.parquet", "test.parquet"]}'
    assert [len(split) for split in rows(folder, data_files=files)] == [20, 40]
    with pytest.raises(RecipeError, match=r"dataset_name: .* cannot be read as a data set"):
        rows(folder, data_files={"train": "no.parquet"})


def test_an_empty_split_is_refused(tmp_path):
    Dataset.from_dict({"row": range(10)}).to_parquet(tmp_path / "train.parquet")
    Dataset.from_dict({"row": [1]}).select([]).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(RecipeError, match=r"eval_split: .*'test' has no rows"):
        rows(str(tmp_path))


@pytest.mark.parametrize("nested", [False, True])
def test_files_that_number_their_classes_differently(nested, tmp_path):
    """`datasets` would take the names of one file for the numbers of all: a perfect model errs then."""

    def write(split, names):
        label = ClassLabel(names=names)
        feature = {"objects": [{"category": label}]} if nested else {"label": label}
        values = [[{"category": 0}]] if nested else [0]
        Dataset.from_dict({next(iter(feature)): values}, features=Features(feature)).to_parquet(
            tmp_path / f"{split}.parquet"
        )

    write("train", ["cat", "dog", "eel"])
    write("test", ["dog", "cat", "eel"])
    column = "objects.category" if nested else "label"
    with pytest.raises(
        RecipeError, match=rf"^dataset_name: {column} 0 is '\w+' in test\S+, and '\w+' in train\S+; write"
    ):
        rows(str(tmp_path))
    write("test", ["cat", "dog"])  # fewer, and the same: both orders of reading
    load_splits(DataArguments(dataset_name=str(tmp_path)))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hold_out": 60}, "hold_out: 60 is not a percentage from 0 to 50"),
        ({"hold_out_seed": -1}, "hold_out_seed: -1 is not from 0 to 4294967295"),
        ({"eval_on_held_out": True}, "nothing is held out; set hold_out, too"),
        ({"eval_on_sweep_rows": True}, "nothing is held out; set sweep_hold_out, too"),
        ({"hold_out": 10, "train_split": "train[:1]"}, "of 1 training row none can be held out"),
    ],
)
def test_what_cannot_be_held_out(folder, fields, told):
    with pytest.raises(ValueError, match=told):
        rows(folder, **fields)


@pytest.mark.parametrize(
    "pattern", ["/etc/*", "~/x.parquet", "a/../../x", "https://example.org/x.parquet", 3]
)
def test_data_files_are_the_data_sets_own(pattern):
    for patterns in (pattern, ["a.parquet", pattern]):
        with pytest.raises(ValueError, match="is no file or pattern in the data set's repository"):
            DataArguments(data_files={"train": patterns})
    for other in ("[]", "{}", '{"train": []}'):
        with pytest.raises(ValueError, match="data_files: "):
            DataArguments(data_files=other)


@pytest.mark.parametrize(
    ("task", "architecture"),
    [
        ("image_classification", "convnext_tiny"),
        ("object_detection", "yolov7_tiny"),
        ("semantic_segmentation", "unet"),
    ],
)
def test_what_every_task_on_images_checks(task, architecture):
    kind = load_task(task).Arguments
    for wrong, message in (
        ({"flip_probability": -0.5}, "flip_probability: -0.5 is not a probability from 0 to 1"),
        ({"image_std": [0.5]}, r"image_std: needs 3 numbers, one a channel, got \[0.5\]"),
        ({"model_name_or_path": "x"}, "give either architecture or model_name_or_path"),
        ({"architecture": None}, "give either architecture or model_name_or_path"),
        ({"max_eval_samples": 0}, "max_eval_samples: 0 is not a number of examples"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(**{"architecture": architecture, **wrong})
    assert kind(architecture=architecture, architecture_options="{}").architecture_options == {}
    for field in dataclasses.fields(kind):
        assert field.metadata["help"].endswith("."), field.name


@pytest.mark.parametrize("name", ["text", "pandas", "imagefolder"])
def test_a_format_is_no_data_set(name, tmp_path, monkeypatch):
    """A recipe of somebody else would have files of the current folder read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("SECRET=1")
    with pytest.raises(RecipeError, match=f"dataset_name: '{name}' is a format of files, no data set"):
        rows(name, data_files={"train": ".env", "test": ".env"})


def test_files_of_a_branch_of_the_hub(hub, monkeypatch, tmp_path):
    """As the recipe voc_yolov7_tiny has it: two folders of a branch make one split; the rest is not read."""

    def parquet(*values):
        Dataset.from_dict({"row": values}).to_parquet(tmp_path / "x.parquet")
        return (tmp_path / "x.parquet").read_bytes()

    hub.datasets["me/data@main"] = {"data.py": b"raise SystemExit"}
    hub.datasets["me/data@refs/convert/parquet"] = {
        "y07/train/0000.parquet": parquet(0, 1),
        "y07/test/0000.parquet": parquet(2),
        "y12/train/0000.parquet": parquet(3),
        "y12/train/0001.parquet": parquet(4),
        "y12/test/0000.parquet": parquet(5),
    }
    fields = {
        "dataset_revision": "refs/convert/parquet",
        "data_files": '{"train": ["y07/train/*.parquet", "y12/train/*.parquet"], "test": "y07/test/*"}',
    }
    assert rows("me/data", **fields) == [[0, 1, 3, 4], [2]]
    assert "y12/test/0000.parquet" not in hub.served and "data.py" not in hub.served
    with pytest.raises(RecipeError, match="'me/data' is not a local folder and did not come from the Hub"):
        rows("me/data", **fields | {"dataset_revision": "other"})
    with pytest.raises(RecipeError, match="did not come from the Hub"):
        rows("me/data", **fields | {"data_files": {"train": "y13/*.parquet"}})
    Dataset.from_dict({"row": [7]}).to_parquet(tmp_path / "local" / "train.parquet")
    Dataset.from_dict({"row": [8]}).to_parquet(tmp_path / "local" / "test.parquet")
    assert rows(str(tmp_path / "local"), dataset_revision="other") == [[7], [8]]


def test_none_is_no_value_of_a_number_with_a_default():
    for name in ("hold_out", "hold_out_seed"):
        with pytest.raises(TypeError):
            DataArguments(dataset_name="x", **{name: None})
