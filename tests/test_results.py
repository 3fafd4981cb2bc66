"""The pages of results: their figures come from the data beside them, which names no folder of a machine."""

import re
import shutil
from pathlib import Path

import pytest

from adamnx_hf import figures

RESULTS = Path(__file__).parent.parent / "docs" / "results"
PAGES = ("ablation", "adax", "flatness", "horizon", "jitter")


def test_the_figures_are_drawn_from_the_data(tmp_path, capsys):
    for page in PAGES:
        shutil.copytree(RESULTS / page, tmp_path / page, ignore=shutil.ignore_patterns("*.png"))
    figures.main(["--results", str(tmp_path)])
    drawn = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.png")}
    assert drawn == {path.relative_to(RESULTS) for page in PAGES for path in (RESULTS / page).glob("*.png")}
    assert len(capsys.readouterr().out.split()) == len(drawn)


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_is_shown_and_the_data_names_no_folder_of_a_machine(page):
    text = (RESULTS / page / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"!\[[^\]]+\]\(([\w.]+)\)", text))
    assert shown == {path.name for path in (RESULTS / page).glob("*.png")}
    for path in (RESULTS / page).glob("*.json"):
        assert f"({path.name})" in text
        assert not re.search(r'"[^"]*(?<![\w.])/(home|root|tmp|work|dev|mnt|Users)/', path.read_text())
