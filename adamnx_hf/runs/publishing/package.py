"""The package of a run: the files that are published, checked and scrubbed."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import yaml

from adamnx_hf.common import hub
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.recipes.files import read_recipe
from adamnx_hf.runs.command_line import build_command
from adamnx_hf.runs.publishing.card import CardFacts, write_card
from adamnx_hf.runs.publishing.scrub import SCRUBBED, Scrubber, dump_json, is_local
from adamnx_hf.runs.titles import fits_title
from adamnx_hf.tasks import load_task

__all__ = ["MAX_FILE_SIZE", "NO_LICENCE", "PUBLISHED", "Package", "package_run"]

#: Bytes that one file may have on the Hub: "500GB is the hard limit for a single file size"
#: (https://huggingface.co/docs/hub/storage-limits, which recommends less than 200 GB).
MAX_FILE_SIZE = 500_000_000_000

#: The names of files that are published, beside the recipe and the card. All of these are data, none is a
#: pickle. Other files may hold anything, tokens included.
PUBLISHED = re.compile(
    r"(results|environment|metrics|config|generation_config|adapter_config|(pre)?processor_config|tokenizer\w*"
    r"|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
    r"|(vocab|merges)\.txt|\w+\.model|\w+\.jinja|(curves|predictions)\.png"
)

#: The words for the licence among the things that are left out.
NO_LICENCE = "the licence in README.md (yours to say: --license)"


@dataclasses.dataclass
class Package:
    """The files of a run that are published, and what happens to the others."""

    files: dict[str, Path | bytes]
    """The files by their paths in the repository."""
    left_out: list[str]
    """Things that are not published, each with the reason, in a few words."""
    command: str
    """The command that runs it again."""
    removed: list[str] = dataclasses.field(default_factory=list)
    """Files that an earlier run put into the repository and this one has not."""
    replaced: list[str] = dataclasses.field(default_factory=list)
    """Files of this run's that the repository has under the same names, and not from an earlier run."""


def package_run(
    run_dir: Path, repo_id: str, *, license: str | None = None, license_name: str | None = None
) -> Package:
    """Collects what is published of the run in `run_dir`.

    Args:
        run_dir: what `adamnx-hf run` wrote.
        repo_id: `me/name`.
        license: the licence of the weights, by the Hub's identifier, for the card; None: it names none.
        license_name: the name of the license `other`.

    Raises:
        RecipeError: `run_dir` holds no finished run, `repo_id` cannot be a repository's, `license` cannot be
            an identifier, or a file is too large.
    """
    _check_licence(license, license_name)
    address = f"{hub.SCHEME}{repo_id}"
    hub.recipe_name(address)  # checks it
    if "@" in repo_id:
        raise RecipeError(f"--repo-id {repo_id}: a revision cannot be chosen; write me/name")
    run_dir = Path(run_dir)
    for name in ("results.json", hub.RECIPE):
        if not (run_dir / name).is_file():
            raise RecipeError(f"{run_dir}: has no {name}; is it a folder of a finished `adamnx-hf run`?")
    scrubber = Scrubber()
    if license is None:
        scrubber.left_out.append(NO_LICENCE)
    files = _collect_files(run_dir, scrubber)

    results = json.loads(scrubber.scrub_json(run_dir / "results.json"))
    if not isinstance(results, dict) or not {"task", "metrics", "environment"} <= results.keys():
        raise RecipeError(f"{run_dir}: its results.json is not one of `adamnx-hf run`")
    written = read_recipe(run_dir / hub.RECIPE)
    values, flags = scrubber.scrub_recipe(written, load_task(results["task"]))
    if flags.get("dataset_name", "") is None and "predictions.png" in files:
        del files["predictions.png"]
        scrubber.left_out.append("predictions.png (pictures of a data set that is not on the Hub)")
    if not fits_title(results["changes"], results.get("data_changes", {})):
        values.pop("title", None)  # neither here nor when the recipe is run again
    command = _build_command(address, results["environment"]["processes"], flags)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    files[hub.RECIPE] = f"# Again: {command}\n{text}".encode()
    # For --update, which removes what a later run has not.
    results["published"] = sorted({*files, "README.md"})
    files["results.json"] = dump_json(results)
    base_model = None if results["smoke"] else values.get("model_name_or_path") or _find_base(run_dir)
    facts = CardFacts(repo_id, results, values, command, base_model, files)
    files["README.md"] = write_card(facts, {"license": license, "license_name": license_name}).encode()
    return Package(files, list(dict.fromkeys(scrubber.left_out)), command)


def _check_licence(license: str | None, name: str | None) -> None:
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise RecipeError(
            f"--license {license}: the Hub's identifiers are lower case, such as apache-2.0, mit or "
            "other (https://huggingface.co/docs/hub/repositories-licenses lists them)"
        )
    if (license == "other") != bool(name):
        raise RecipeError("--license other and --license-name NAME go together")


def _collect_files(run_dir: Path, scrubber: Scrubber) -> dict[str, Path | bytes]:
    """Returns the files of a run that are published as they are or scrubbed, and notes the others."""
    files: dict[str, Path | bytes] = {}
    for path in sorted(run_dir.iterdir()):
        if path.is_dir():
            scrubber.left_out.append(f"{path.name}/ (a folder)")
        elif path.name in (hub.RECIPE, "README.md") or path.name.startswith("."):
            continue  # written anew
        elif not PUBLISHED.fullmatch(path.name):
            pickled = path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")
            reason = "may hold pickles" if pickled else "not of a kind that is published"
            scrubber.left_out.append(f"{path.name} ({reason})")
        elif path.stat().st_size > MAX_FILE_SIZE:
            raise RecipeError(
                f"{path.name}: {path.stat().st_size / 1e9:,.1f} GB, and the Hub takes "
                f"{MAX_FILE_SIZE / 1e9:,.1f} GB a file; save the model in shards "
                "(save_pretrained's max_shard_size)"
            )
        else:
            files[path.name] = scrubber.scrub_json(path) if path.name in SCRUBBED else path
    if not any(name.endswith(".safetensors") for name in files):
        raise RecipeError(f"{run_dir}: has no model (*.safetensors)")
    return files


def _build_command(address: str, processes: int, flags: Mapping[str, str | None]) -> str:
    """Returns the command that runs the recipe at `address` again; a path is a word in capitals there."""
    words = [*build_command(processes), address]
    for key, value in flags.items():
        words += [f"--{key}", key.upper() if value is None else value]
    return shlex.join(words)


def _find_base(run_dir: Path) -> str | None:
    """Returns the model on the Hub that the run's adapter belongs to; None if there is none."""
    path = run_dir / "adapter_config.json"
    if not path.is_file():
        return None
    name = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    return name if name and not is_local(name, True) else None
