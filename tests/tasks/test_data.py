"""Splits and parts of them."""

import pytest
from datasets import Dataset

from adamnx_hf.errors import RecipeError
from adamnx_hf.tasks.data import DataArguments, load_splits


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        Dataset.from_dict({"row": range(20)}).to_parquet(tmp_path / f"{split}.parquet")
    return str(tmp_path)


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
