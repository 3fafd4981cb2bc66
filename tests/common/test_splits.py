"""Whether what is judged on has been trained on."""

from types import SimpleNamespace

import pytest

from adamnx_hf.common.splits import judged_on_training_rows, overlap, training_rows
from adamnx_hf.tasks.data import DataArguments


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [
        ("train", "train", True),
        ("train", "test", False),
        ("train", "train[90%:]", True),
        ("train[:80%]", "train[50%:]", True),
        ("train[:80%]", "train[80%:]", False),
        ("train[:100]", "train[100:200]", False),
        ("train[:101]", "train[100:200]", True),
        ("train", "train[nonsense]", False),  # loading has a word of its own for it
    ],
)
def test_what_parts_of_splits_have_in_common(first, second, common):
    assert overlap(first, second) == overlap(second, first) == common


@pytest.mark.parametrize(
    ("fields", "judged"),
    [
        ({}, False),
        ({"eval_split": "train"}, True),
        ({"eval_split": "train", "hold_out": 10}, True),  # nine tenths of them have been trained on
        ({"eval_split": "train", "hold_out": 10, "eval_on_held_out": True}, False),
        ({"eval_split": "train[90%:]"}, True),
        ({"eval_split": "train[90%:]", "train_split": "train[:90%]"}, False),
        ({"eval_split": "train[50:]", "max_train_samples": 50}, False),
        ({"eval_split": "train[50:]", "max_train_samples": 51}, True),
        ({"train_split": "train[50:]", "eval_split": "train", "max_eval_samples": 50}, False),
        ({"train_split": "train[50:]", "eval_split": "train", "max_eval_samples": 51}, True),
    ],
)
def test_runs_that_are_judged_on_training_rows(fields, judged):
    data = DataArguments(**fields)
    assert judged_on_training_rows(SimpleNamespace(task_arguments=data, synthetic_data=False)) == judged
    # Made-up rows to train on and to judge by are always two draws.
    assert not judged_on_training_rows(SimpleNamespace(task_arguments=data, synthetic_data=True))


def test_what_is_said_of_them():
    said = training_rows(DataArguments(train_split="train[:80%]", eval_split="train[50%:]"))
    assert said.startswith(
        "eval_split: train[50%:] has rows of train_split (train[:80%]): what is judged on has "
    )
