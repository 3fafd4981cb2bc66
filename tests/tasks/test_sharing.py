"""Runs of a comparison decode the same rows once."""

import torch

from adamnx_hf import cli
from adamnx_hf.tasks.image_classification import dataset as images
from adamnx_hf.tasks.sharing import decode_once, share_decoded


class Rows:
    def __init__(self, fingerprint):
        self._fingerprint = fingerprint


def count_calls():
    calls = []

    def decode():
        calls.append(None)
        return torch.zeros(len(calls))

    return decode, calls


def test_equal_rows_are_decoded_once_within():
    decode, calls = count_calls()
    with share_decoded():
        first = decode_once(decode, Rows("a"), "train", 32)
        assert decode_once(decode, Rows("a"), "train", 32) is first and len(calls) == 1
        for other in ((Rows("b"), "train", 32), (Rows("a"), "train", 64), (Rows("a"), "test", 32)):
            assert decode_once(decode, *other) is not first
        with share_decoded():  # one in another does not forget
            assert decode_once(decode, Rows("a"), "train", 32) is first
        assert decode_once(decode, Rows("a"), "train", 32) is first


def test_outside_nothing_is_kept():
    decode, calls = count_calls()
    for _ in range(2):
        decode_once(decode, Rows("a"), "train")
    with share_decoded():
        decode_once(decode, Rows("a"), "train")
    decode_once(decode, Rows("a"), "train")
    assert len(calls) == 4


def test_a_comparison_decodes_each_row_once(tiny, tmp_path, monkeypatch):
    read, rows = images.read_images, []

    def count_rows(data, column, indices, split):
        rows.extend((split, index) for index in indices)
        return read(data, column, indices, split)

    monkeypatch.setattr(images, "read_images", count_rows)
    words = ["compare", tiny, "--optim", "adamnx", "adamw", "--seeds", "2", "--max_steps", "2"]
    words += ["--keep_decoded", "true", "--output-dir", str(tmp_path / "out")]
    assert cli.main(words) == 0
    assert sorted(rows) == [("test", i) for i in range(21)] + [("train", i) for i in range(48)]
    assert not list((tmp_path / "out").rglob("curves.png"))
