"""Splits and parts of them."""

import dataclasses

import datasets
import pytest
from datasets import Dataset
from hub_server import serving

from adamnx_hf.errors import RecipeError
from adamnx_hf.tasks import load_task
from adamnx_hf.tasks.data import DataArguments, load_splits


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


def test_rows_held_out_are_spread_evenly_and_not_trained_on(folder):
    train, judged = rows(folder, hold_out=20)
    assert train == [row for row in range(20) if row not in (2, 7, 12, 17)] and judged == list(range(20))
    train, judged = rows(folder, hold_out=20, eval_on_held_out=True)
    assert judged == [2, 7, 12, 17] and not set(train) & set(judged)
    train, judged = rows(
        folder, train_split="train[:50%]", max_train_samples=4, hold_out=1, eval_on_held_out=True
    )
    assert judged == [2] and train == [0, 1, 3]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hold_out": 60}, "hold_out: 60 is not a percentage from 0 to 50"),
        ({"eval_on_held_out": True}, "nothing is held out"),
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
    assert rows(str(tmp_path / "local"), **fields) == [[7], [8]]  # a folder is read whole
