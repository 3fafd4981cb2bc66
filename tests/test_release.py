"""The version is in one place, and what goes with a release fits it."""

import re
from pathlib import Path

import yaml
from packaging.version import Version

import adamnx_hf

ROOT = Path(__file__).parents[1]


def test_the_changelog_fits_the_version():
    """What is unreleased becomes the version; without that the newest release is it."""
    text = (ROOT / "CHANGELOG.md").read_text()
    parts = re.split(r"^## \[(.+)\](?: - (\d{4}-\d\d-\d\d))?$", text, flags=re.MULTILINE)[1:]
    sections = list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))
    assert len(sections) == text.count("\n## "), (
        "a heading is `## [version] - yyyy-mm-dd` or `## [Unreleased]`"
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+", adamnx_hf.__version__)
    name, _, changes = sections[0]
    assert name == "Unreleased"
    released = [(Version(version), day) for version, day, _ in sections[1:]]
    assert all(day for _, day in released) and released == sorted(released, reverse=True)
    newest = released[0][0] if released else Version("0")
    version = Version(adamnx_hf.__version__)
    assert version > newest if changes.strip() else version == newest


def test_the_citation_fits_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == adamnx_hf.__version__ and citation["cff-version"] == "1.2.0"
    assert citation["title"].startswith("adamnx-hf: ") and citation["type"] == "software"
    (paper,) = citation["references"]
    title = (
        " ".join((ROOT / "README.md").read_text().split()).partition("The algorithm: *")[2].partition("*")[0]
    )
    assert paper["title"] == title and paper["authors"] and paper["url"].startswith("https://arxiv.org/abs/")


def test_the_package_takes_its_version_from_one_place():
    project = (ROOT / "pyproject.toml").read_text()
    assert not re.search(r"^version\s*=", project, re.MULTILINE) and 'dynamic = ["version"]' in project
    assert 'path = "adamnx_hf/__init__.py"' in project
