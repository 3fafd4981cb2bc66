"""Publishes a run: commits its package to a repository, or writes the package into a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from adamnx_hf.common import hub
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.files import beside
from adamnx_hf.runs.publishing.card import merge_cards
from adamnx_hf.runs.publishing.package import NO_LICENCE, PUBLISHED, Package, package_run

__all__ = ["push_run", "write_package"]


def push_run(
    run_dir: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    update: bool = False,
    token: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
) -> str:
    """Publishes a run, and prints what was left out and what was removed.

    Args:
        run_dir: what `adamnx-hf run` wrote.
        repo_id, private, token: see :func:`adamnx_hf.common.hub.upload`.
        update: commit to the repository if there is one. What an earlier run put there and this one has
            not is removed in the same commit. Other files, other metadata of the card and what its owner
            wrote above or below ours stay.
        license, license_name: see :func:`adamnx_hf.runs.publishing.package.package_run`.

    Returns:
        The repository's address.

    Raises:
        RecipeError: see :func:`adamnx_hf.runs.publishing.package.package_run` and
            :func:`adamnx_hf.common.hub.upload`; nothing has been sent by then, save where it says so.
    """
    package = package_run(run_dir, repo_id, license=license, license_name=license_name)
    hub.check_access(repo_id, token)
    if update:
        _fit(package, repo_id, token)
    _print_changes(package)
    url = hub.upload(
        repo_id, package.files, remove=package.removed, private=private, update=update, token=token
    )
    print(f"Published: {url}\nAgain, from anywhere: {package.command}")
    return url


def write_package(
    run_dir: Path, folder: Path, repo_id: str, *, update: bool = False, **licence: str | None
) -> list[str]:
    """Writes what would be published into a folder, and prints what was left out.

    Args:
        run_dir: what `adamnx-hf run` wrote.
        folder: where the files go; empty, or not there yet.
        repo_id: `me/name`.
        update: whether the files are to fit to what is in the repository already.
        licence: see :func:`adamnx_hf.runs.publishing.package.package_run`.

    Returns:
        The names of the files.

    Raises:
        RecipeError: `folder` is not empty, or see :func:`push_run`.
    """
    package = package_run(run_dir, repo_id, **licence)
    if update:
        _fit(package, repo_id)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder} is not an empty folder; choose another --output-dir")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in package.files.items():
        with beside(folder / name) as draft:
            if isinstance(content, bytes):
                draft.write_bytes(content)
            else:
                shutil.copyfile(content, draft)
    _print_changes(package)
    return sorted(package.files)


def _fit(package: Package, repo_id: str, token: str | None = None) -> None:
    """Fits a package to what is in the repository already."""
    there = hub.list_files(repo_id, token)
    earlier = _read_earlier(hub.read_text(repo_id, "results.json", token)) if "results.json" in there else {}
    published = earlier.get("published", ())
    ours = {name for name in published if PUBLISHED.fullmatch(name)}
    package.removed = sorted(ours & set(there) - set(package.files))
    package.replaced = sorted(set(package.files) & set(there) - {*published, "README.md"})
    if "README.md" in there:
        theirs = hub.read_text(repo_id, "README.md", token)
        card, licensed = merge_cards(theirs, _read(package.files["README.md"]), str(earlier.get("optim")))
        package.files["README.md"] = card.encode()
        if licensed and NO_LICENCE in package.left_out:
            package.left_out.remove(NO_LICENCE)


def _read_earlier(text: str) -> dict[str, Any]:
    """Returns the results.json of an earlier run; an empty dict if it is somebody else's."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    names = content.get("published") if isinstance(content, dict) else None
    return content if isinstance(names, list) and all(isinstance(name, str) for name in names) else {}


def _read(content: Path | bytes) -> str:
    return content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8")


def _print_changes(package: Package) -> None:
    for item in package.left_out:
        print(f"left out: {item}")
    for name in package.removed:
        print(f"removed: {name} (of an earlier run)")
    for name in package.replaced:
        print(f"replaced: {name} (not of an earlier run; the Hub's history has it)")
