"""`adamnx-hf publish RUN_DIR --repo-id me/name`: puts what `adamnx-hf run` left behind on the Hub.

What goes there: the model or adapter, with its configuration, tokenizer or processor; the recipe as it was
run; results and curves; and a model card with the metadata that the Hub reads. What does not: pickles,
checkpoints, tokens, and paths of the machine it ran on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adamnx_hf.common import hub
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.files import beside
from adamnx_hf.common.text import format_metric
from adamnx_hf.models import is_ours
from adamnx_hf.recipes.policy import NAME_OR_PATH, Origin, why_not
from adamnx_hf.recipes.resolve import NEUTRAL, read
from adamnx_hf.runs.report import fits_title, run_command
from adamnx_hf.tasks import load_task
from adamnx_hf.tasks.base import Metric

__all__ = ["EXTRA", "Package", "add_arguments", "package", "push", "run"]

EXTRA = "recipes"

#: Bytes that one file may have on the Hub: "500GB is the hard limit for a single file size"
#: (https://huggingface.co/docs/hub/storage-limits, which recommends less than 200 GB).
MAX_FILE_SIZE = 500_000_000_000


#: What is published, beside the recipe and the card, by name: what else lies there may be anything, tokens
#: included. All of it is data, none a pickle.
PUBLISHED = re.compile(
    r"(results|environment|metrics|config|generation_config|adapter_config|(pre)?processor_config|tokenizer\w*"
    r"|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
    r"|(vocab|merges)\.txt|\w+\.model|\w+\.jinja|(curves|predictions)\.png"
)

# Those that this package writes: every text in them is looked at. Of others, only what names a path.
_OURS = ("results.json", "environment.json", "metrics.json", hub.RECIPE)
_SCRUBBED = (*_OURS, "config.json", "adapter_config.json")

# The card between these is this package's; the rest is its owner's, and stays.
_BEGIN = "<!-- adamnx-hf: each publish writes this anew; your own words belong above or below -->"
_END = "<!-- adamnx-hf: end -->"

# The card's metadata that is this package's.
_OUR_METADATA = (
    "base_model", "datasets", "eval_results", "library_name", "metrics", "model_name", "pipeline_tag"
)  # fmt: skip

_TOKEN = re.compile(r"\b(?:hf_(?:oauth_|jwt_)?|api_org_)[\w.-]{16,}")


@dataclasses.dataclass
class Package:
    """What is published of a run."""

    files: dict[str, Path | bytes]
    """By their paths in the repository."""
    left_out: list[str]
    """What is not published, each with the reason, in a few words."""
    command: str
    """Reproduces the run."""
    removed: list[str] = dataclasses.field(default_factory=list)
    """What an earlier run put into the repository and this one has not."""
    replaced: list[str] = dataclasses.field(default_factory=list)
    """What is in the repository, and no earlier run put there, of the same names as this run's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `adamnx-hf publish`."""
    parser.epilog = (
        "The token is that of `hf auth login`, or HF_TOKEN. Not published: pickles, checkpoints, paths of "
        "this machine; the command says what it left out."
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="what `adamnx-hf run` wrote")
    parser.add_argument("--repo-id", required=True, metavar="ME/NAME", help="the repository on the Hub")
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    parser.add_argument(
        "--update",
        action="store_true",
        help="commit to the repository if there is one, and remove what only an earlier run put there",
    )
    parser.add_argument(
        "--license", metavar="ID", help="the weights' licence, as the Hub names it: apache-2.0, mit, ..."
    )
    parser.add_argument("--license-name", metavar="NAME", help="with --license other: its name")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only write the files into a folder; needs no token, and no Hub unless with --update",
    )
    parser.add_argument(
        "--output-dir", metavar="DIR", type=Path, help="where --dry-run writes it (default: RUN_DIR-hub)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    licence = {"license": args.license, "license_name": args.license_name}
    try:
        if not args.dry_run:
            if args.output_dir:
                raise RecipeError("--output-dir goes with --dry-run")
            push(args.run_dir, args.repo_id, private=args.private, update=args.update, **licence)
            return 0
        run_dir = args.run_dir.resolve()
        folder = args.output_dir or run_dir.with_name(f"{run_dir.name}-hub")
        made = package(run_dir, args.repo_id, **licence)
        if args.update:
            _fit(made, args.repo_id)
        _write(made, folder)
        _say(made)
        print(f"Written to {folder}: {', '.join(sorted(made.files))}")
    except (RecipeError, OSError) as error:
        print(f"adamnx-hf publish: error: {error}", file=sys.stderr)
        return 1
    return 0


def push(
    run_dir: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    update: bool = False,
    token: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
) -> str:
    """Publishes a run; says what was left out, and what was removed.

    Args:
        run_dir: what `adamnx-hf run` wrote.
        repo_id, private, token: see :func:`adamnx_hf.common.hub.upload`.
        update: commit to the repository if there is one. What an earlier run put there and this one has
            not is removed in the same commit. Other files, other metadata of the card and what its owner
            wrote above or below ours stay.
        license, license_name: see :func:`package`.

    Returns:
        The repository's address.

    Raises:
        RecipeError: see :func:`package` and :func:`adamnx_hf.common.hub.upload`; nothing has been sent by then,
            save where it says so.
    """
    made = package(run_dir, repo_id, license=license, license_name=license_name)
    hub.check_access(repo_id, token)
    if update:
        _fit(made, repo_id, token)
    _say(made)
    url = hub.upload(repo_id, made.files, remove=made.removed, private=private, update=update, token=token)
    print(f"Published: {url}\nAgain, from anywhere: {made.command}")
    return url


def _fit(made: Package, repo_id: str, token: str | None = None) -> None:
    """Fits `made` to what is in the repository already."""
    there = hub.list_files(repo_id, token)
    earlier = _earlier(hub.read_text(repo_id, "results.json", token)) if "results.json" in there else {}
    ours = [name for name in earlier.get("published", ()) if PUBLISHED.fullmatch(name)]
    made.removed = sorted(set(ours) & set(there) - set(made.files))
    made.replaced = sorted(set(made.files) & set(there) - {*earlier.get("published", ()), "README.md"})
    if "README.md" in there:
        theirs = hub.read_text(repo_id, "README.md", token)
        card, licensed = _merged(theirs, _text(made.files["README.md"]), str(earlier.get("optim")))
        made.files["README.md"] = card.encode()
        if licensed and _NO_LICENCE in made.left_out:
            made.left_out.remove(_NO_LICENCE)


def _earlier(text: str) -> dict[str, Any]:
    """The results.json of an earlier run, or nothing if it is somebody else's."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    names = content.get("published") if isinstance(content, dict) else None
    return content if isinstance(names, list) and all(isinstance(name, str) for name in names) else {}


def _text(content: Path | bytes) -> str:
    return content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8")


def _merged(theirs: str, ours: str, earlier_optim: str) -> tuple[str, bool]:
    """Our card with what its owner has added to an earlier one, and whether it names a licence."""
    from huggingface_hub import ModelCard

    try:
        old = ModelCard(theirs)
    except Exception as error:  # YAML's and huggingface_hub's own
        reason = " ".join(str(error).split())
        raise RecipeError(f"README.md of the repository: its metadata cannot be read ({reason})") from error
    card: Any = ModelCard(ours)
    theirs_licence = card.data.license is None
    for key, value in vars(old.data).items():
        if key in _OUR_METADATA or (key.startswith("license") and not theirs_licence):
            continue
        if key == "tags":
            card.data.tags += [t for t in value or [] if t not in (*card.data.tags, earlier_optim)]
        elif getattr(card.data, key, None) is None:
            setattr(card.data, key, value)
    above, begin, rest = old.text.partition(_BEGIN)
    if begin and _END not in rest:  # what is whose cannot be told
        raise RecipeError(
            f"README.md of the repository: put the line {_END} back, above your own words at its end"
        )
    below = rest.partition(_END)[2] if begin else above  # no card of this package: all of it is theirs
    parts = (above.strip() if begin else "", card.text.strip(), below.strip())
    card.text = "\n\n".join(filter(None, parts)) + "\n"
    return str(card), card.data.license is not None


def _say(made: Package) -> None:
    for item in made.left_out:
        print(f"left out: {item}")
    for name in made.removed:
        print(f"removed: {name} (of an earlier run)")
    for name in made.replaced:
        print(f"replaced: {name} (not of an earlier run; the Hub's history has it)")


def _write(made: Package, folder: Path) -> None:
    import shutil

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder} is not an empty folder; choose another --output-dir")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in made.files.items():
        with beside(folder / name) as draft:
            if isinstance(content, bytes):
                draft.write_bytes(content)
            else:
                shutil.copyfile(content, draft)


# Among what is left out.
_NO_LICENCE = "the licence in README.md (yours to say: --license)"


def package(
    run_dir: Path, repo_id: str, *, license: str | None = None, license_name: str | None = None
) -> Package:
    """What is published of the run in `run_dir`, checked.

    Args:
        run_dir: what `adamnx-hf run` wrote.
        repo_id: `me/name`.
        license: of the weights, by the Hub's identifier, for the card; None: it names none.
        license_name: of the license `other`.

    Raises:
        RecipeError: `run_dir` holds no finished run, `repo_id` cannot be a repository's, `license` cannot be
            an identifier, or a file is too large.
    """
    import yaml

    _check_licence(license, license_name)

    address = f"{hub.SCHEME}{repo_id}"
    hub.recipe_name(address)  # checks it
    if "@" in repo_id:
        raise RecipeError(f"--repo-id {repo_id}: a revision cannot be chosen; write me/name")
    run_dir = Path(run_dir)
    for name in ("results.json", hub.RECIPE):
        if not (run_dir / name).is_file():
            raise RecipeError(f"{run_dir}: has no {name}; is it a folder of a finished `adamnx-hf run`?")
    scrub = _Scrub(run_dir)
    if license is None:
        scrub.left_out.append(_NO_LICENCE)
    files: dict[str, Path | bytes] = {}
    for path in sorted(run_dir.iterdir()):
        if path.is_dir():
            scrub.left_out.append(f"{path.name}/ (a folder)")
        elif path.name in (hub.RECIPE, "README.md") or path.name.startswith("."):
            continue  # written anew
        elif not PUBLISHED.fullmatch(path.name):
            pickled = path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")
            reason = "may hold pickles" if pickled else "not of a kind that is published"
            scrub.left_out.append(f"{path.name} ({reason})")
        elif path.stat().st_size > MAX_FILE_SIZE:
            raise RecipeError(
                f"{path.name}: {path.stat().st_size / 1e9:,.1f} GB, and the Hub takes "
                f"{MAX_FILE_SIZE / 1e9:,.1f} GB a file; save the model in shards "
                "(save_pretrained's max_shard_size)"
            )
        elif path.name in _SCRUBBED:
            files[path.name] = scrub.json(path)
        else:
            files[path.name] = path
    if not any(name.endswith(".safetensors") for name in files):
        raise RecipeError(f"{run_dir}: has no model (*.safetensors)")

    values, flags = scrub.recipe(read(run_dir / hub.RECIPE))
    if flags.get("dataset_name", "") is None and "predictions.png" in files:
        del files["predictions.png"]
        scrub.left_out.append("predictions.png (pictures of a data set that is not on the Hub)")
    results = json.loads(scrub.json(run_dir / "results.json"))
    if not isinstance(results, dict) or not {"task", "metrics", "environment"} <= results.keys():
        raise RecipeError(f"{run_dir}: its results.json is not one of `adamnx-hf run`")
    if not fits_title(results["changes"], results.get("data_changes", {})):
        values.pop("title", None)  # neither here nor when the recipe is run again
    words = [*run_command(results["environment"]["processes"]), address]
    for key, value in flags.items():
        words += [f"--{key}", key.upper() if value is None else value]
    command = shlex.join(words)
    head = f"# Again: {command}\n"
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    files[hub.RECIPE] = (head + text).encode()
    # For --update, which removes what a later run has not.
    results["published"] = sorted({*files, "README.md"})
    files["results.json"] = _json(results)
    licence = {"license": license, "license_name": license_name}
    base_model = None if results["smoke"] else values.get("model_name_or_path") or _adapters_base(run_dir)
    files["README.md"] = _card(repo_id, results, values, command, base_model, files, licence).encode()
    return Package(files, list(dict.fromkeys(scrub.left_out)), command)


def _check_licence(license: str | None, name: str | None) -> None:
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise RecipeError(
            f"--license {license}: the Hub's identifiers are lower case, such as apache-2.0, mit or "
            "other (https://huggingface.co/docs/hub/repositories-licenses lists them)"
        )
    if (license == "other") != bool(name):
        raise RecipeError("--license other and --license-name NAME go together")


def _adapters_base(run_dir: Path) -> str | None:
    """The model on the Hub that the run's adapter belongs to, if it has one."""
    path = run_dir / "adapter_config.json"
    if not path.is_file():
        return None
    name = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    return name if name and not _is_local(name, True) else None


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


class _Scrub:
    """Takes tokens and this machine's paths out of what is published, and keeps account of it."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.left_out: list[str] = []

    def json(self, path: Path) -> bytes:
        """The file, scrubbed."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RecipeError(f"{path}: is not JSON ({error})") from None
        return _json(self._value(content, path.name))

    def recipe(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str | None]]:
        """The recipe's fields that the Hub's recipes may decide, and those that a user has to give as flags.

        Returns:
            The fields, and the others that matter for the outcome, by name: the value as a flag takes
            it, None where that was a path of this machine.
        """
        result: dict[str, Any] = {}
        flags: dict[str, str | None] = {}
        for key, value in values.items():
            if isinstance(value, str) and _is_local(value, bool(NAME_OR_PATH.fullmatch(key))):
                self.left_out.append(f"{key} in {hub.RECIPE} (a path of this machine)")
                flags[key] = None
            elif why_not(Origin.HUB, key, value):
                self.left_out.append(f"{key} in {hub.RECIPE} (for whoever runs it to say)")
                if not NEUTRAL.fullmatch(key):
                    clean = self._value(value, hub.RECIPE)
                    flags[key] = clean if isinstance(clean, str) else json.dumps(clean)
            else:
                result[key] = self._value(value, hub.RECIPE)
        return result, flags

    def _value(self, value: Any, where: str, key: str = "") -> Any:
        if key == "notes":  # sentences, with whatever paths there are in them
            return []
        if isinstance(value, dict):
            return {k: self._value(v, where, str(k)) for k, v in value.items()}
        if isinstance(value, list):
            return [self._value(item, where) for item in value]
        if not isinstance(value, str):
            return value
        if where not in _OURS and not NAME_OR_PATH.fullmatch(key.removeprefix("_")):
            return value
        if key == "command":
            words = [self._word(word, where) for word in shlex.split(value)]
            return shlex.join(words)
        named = key == "data" or bool(NAME_OR_PATH.fullmatch(key.removeprefix("_")))
        return self._text(value, where, key, named)

    def _word(self, word: str, where: str) -> str:
        flag, equals, value = word.partition("=")
        if word.startswith("-"):
            return f"{flag}={self._text(value, where, 'command', True)}" if equals and "/" in value else word
        return self._text(word, where, "command", "/" in word)

    def _text(self, value: str, where: str, key: str, named: bool) -> str:
        if _TOKEN.search(value):
            self.left_out.append(f"a token in {where}")
            value = _TOKEN.sub("***", value)
        if not _is_local(value, named):
            return value
        self.left_out.append(f"the folder of {key or 'a path'} in {where} (of this machine)")
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]


def _is_local(value: str, named: bool) -> bool:
    """Whether `value` is a path. `named`: otherwise it is a name on the Hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if re.match(r"(/|~|\.{1,2}/|[A-Za-z]:[\\/]|\\\\)[\w.~/\\-]", value) or str(Path.home()) + "/" in value:
        return True
    if not named or value.startswith(hub.SCHEME):
        return False
    if Path(value).is_file() or (Path(value).exists() and "/" in value):
        return True
    try:
        validate_repo_id(value)
    except HFValidationError:
        return "/" in value
    return Path(value).is_dir()


# The column of the card's table that is only there where it says something else than those before it.
_BEST = "best epoch"


@dataclasses.dataclass(frozen=True)
class _Figures:
    """A run's metrics at one place of it."""

    column: str
    """What the card's table has above them."""
    told: str
    """The place, in words."""
    values: Mapping[str, float]


def _figures(results: Mapping[str, Any]) -> list[_Figures]:
    """A run's figures, first those of the weights that are there; nothing twice.

    The results of older runs do not say which weights those are.
    """
    metrics, weights = results["metrics"], results.get("weights") or {}
    last = {name: value["last"] for name, value in metrics.items()}
    kept = [_Figures("last epoch", "last epoch", last)]
    if weights.get("step", results["steps"]) != results["steps"]:
        step = f"step {weights['step']:,}"
        told = f"{step}, the best by {weights['chosen_by']} on the evaluation split itself"
        kept.insert(0, _Figures(f"these weights, {step}", told, weights["metrics"]))
    best = {
        name: value["best"]
        for name, value in metrics.items()
        if value["best"] not in [figure.values.get(name) for figure in kept]
    }
    told = "best epoch, chosen on the evaluation split itself"
    return [*kept, _Figures(_BEST, told, best)] if best else kept


def _card(
    repo_id: str,
    results: Mapping[str, Any],
    recipe: Mapping[str, Any],
    command: str,
    base_model: str | None,
    files: Mapping[str, Any],
    licence: Mapping[str, str | None],
) -> str:
    """The model card: metadata as the Hub reads it, and text."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    task = load_task(results["task"])
    tag = getattr(task, "PIPELINE_TAG", results["task"].replace("_", "-"))
    made_up = results["data"] == "made up" or results["smoke"]  # of neither is there anything to measure
    dataset = recipe.get("dataset_name")  # none if it was a folder
    label = dataset or results["data"]
    figures = [] if made_up else _figures(results)
    measured = list(dict.fromkeys(name for figure in figures for name in figure.values))
    on_what = ", on rows that it was trained on" if results.get("judged_on_training_rows") else ""
    evaluations = [
        EvalResult(
            task_type=tag or results["task"],
            dataset_type=label,
            dataset_name=label,
            dataset_config=recipe.get("dataset_config_name") if dataset else None,
            dataset_revision=recipe.get("dataset_revision") if dataset else None,
            metric_type=task.METRICS[name].hub_type,
            metric_name=f"{task.METRICS[name].hub_name}, {figure.told}{on_what}",
            metric_value=task.METRICS[name].to_hub(figure.values[name]),
        )
        for name in measured
        for figure in figures
        if name in figure.values
    ]
    adapter = "adapter_config.json" in files
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        tags=list(dict.fromkeys([hub.TAG, "adamnx-hf", results["optim"]])),
        datasets=None if made_up or not dataset else [dataset],
        base_model=base_model,
        pipeline_tag=tag,
        metrics=list(dict.fromkeys(task.METRICS[name].hub_type for name in measured)) or None,
        model_name=repo_id.rpartition("/")[2],
        eval_results=evaluations or None,
        **licence,  # type: ignore[arg-type]
    )
    use = _use_adapter(repo_id, base_model) if adapter else _use(repo_id, tag, files)
    body = _body(repo_id, results, recipe, command, made_up, label, use, files)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_BEGIN}\n\n{body}\n{_END}\n"))


def _use(repo_id: str, tag: str | None, files: Mapping[str, Any]) -> str:
    """How the model is used, as Python."""
    config = json.loads(files.get("config.json", "{}"))
    if tag == "text-generation":
        call = 'model("Once upon a time", max_new_tokens=50)'
    else:
        call = 'model("picture.jpg")'
    lines = [
        "from transformers import pipeline",
        "",
        f'model = pipeline("{tag}", model="{repo_id}")',
        f"print({call})",
    ]
    if is_ours(config.get("model_type")):
        lines.insert(0, "import adamnx_hf  # makes this kind of model known to Transformers")
    return "\n".join(["```python", *lines, "```"])


def _use_adapter(repo_id: str, base_model: str | None) -> str:
    if base_model is None:
        return (
            "An adapter of a model that is not on the Hub: load that one, and then "
            f'`peft.PeftModel.from_pretrained(model, "{repo_id}")`.'
        )
    return f"""```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{repo_id}")  # and its base, {base_model}
tokenizer = AutoTokenizer.from_pretrained("{repo_id}")
inputs = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```"""


def _named(name: str, metric: Metric) -> str:
    return format_metric(name) + ("" if metric.to_hub is float else ", %")


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in lines
    )


def _how_judged(results: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """What the figures are of, and what they do not say."""
    weights = results.get("weights") or {}
    told = [f"On {results['eval_examples']:,} examples of the evaluation split."]
    if results.get("judged_on_training_rows"):
        told.append("Some of them it was trained on: the figures say nothing of other rows.")
    if dropped := results.get("dropped_examples"):
        counts = ", ".join(f"{count:,} of `{field}`" for field, count in dropped.items())
        told.append(f"Examples that did not fit into `max_length` were left out: {counts}.")
    told.append("One run, one seed.")
    if weights.get("step", results["steps"]) != results["steps"]:
        told.append(
            f"The weights are those of step {weights['step']:,}, the best by `{weights['chosen_by']}` on "
            "that split itself: read their figures as optimistic."
        )
    elif not weights and recipe.get("load_best_model_at_end"):
        told.append("The weights are those of the best evaluation; the run did not record which.")
    if _figures(results)[-1].column == _BEST:
        told.append("The best epoch was chosen on that split itself: read it as optimistic.")
    return " ".join(told)


def _results_table(results: Mapping[str, Any]) -> str:
    """The metrics as Markdown: of the weights first, then of the last epoch and, if another, of the best."""
    figures = _figures(results)
    metrics = load_task(results["task"]).METRICS
    has_best = figures[-1].column == _BEST
    columns = figures[:-1] if has_best else figures
    head = ["metric", *(figure.column for figure in columns)]
    rows = [
        [_named(name, metrics[name]), *(f"{figure.values[name]:.4g}" if name in figure.values else "" for figure in columns)]
        for name in results["metrics"]
    ]
    if has_best:
        head += [_BEST, "which"]
        for row, value in zip(rows, results["metrics"].values(), strict=True):
            row += [f"{value['best']:.4g}", f"{value['best_epoch']:g}"]
    return _table(tuple(head), [tuple(row) for row in rows])


def _body(
    repo_id: str,
    results: Mapping[str, Any],
    recipe: Mapping[str, Any],
    command: str,
    made_up: bool,
    label: str,
    use: str,
    files: Mapping[str, Any],
) -> str:
    environment = results["environment"]
    settings = [
        (key, f"`{value}`")
        for key, value in (
            ("optimizer", results["optimizer"]),
            ("optim", results["optim"]),
            ("optim_args", results["optim_args"]),
            ("betas", results["betas"]),
            ("beta2_schedule", results["beta2_schedule"]),
            *(
                (name, recipe.get(name))
                for name in (
                    "adam_epsilon",
                    "weight_decay",
                    "decay_rule",
                    "lr_scheduler_type",
                    "warmup_steps",
                )
            ),
            ("learning_rate", results["learning_rate"]),
            ("seed", results["seed"]),
            ("batch size, in all", results["total_train_batch_size"]),
            ("steps", results["steps"]),
            ("epochs", round(results["epochs"], 4)),
        )
        if value is not None
    ]
    hardware = ", ".join(environment["gpus"]) or environment["processor"]
    versions = [("adamnx-hf", environment["adamnx-hf"]), ("Python", environment["python"])]
    versions += [(name, version) for name, version in environment["packages"].items() if version]
    no_data = results["data"] == "made up"
    title = None if no_data else recipe.get("title")
    examples = f"{results['train_examples']:,} " + ("made-up examples" if no_data else f"examples of {label}")
    of_recipe = f"from the recipe `{results['recipe']}` ({title})"
    parts = [
        f"# {repo_id.rpartition('/')[2]}",
        f"Trained on {examples} with `optim={results['optim']}` by adamnx-hf, "
        + (of_recipe if title else f"by the settings of the recipe `{results['recipe']}`")
        + f": {results['parameters']:,} parameters.",
        f"## Use\n\n{use}",
        f"## Again\n\n```bash\n{command}\n```\n\n`{hub.RECIPE}` holds every field as it was resolved.",
    ]
    if made_up:
        on_what = " on made-up data" if no_data else ""
        parts.append(f"## Results\n\nNone: a smoke run{on_what} says nothing about model or optimizer.")
    else:
        parts.append(f"## Results\n\n{_how_judged(results, recipe)}\n\n{_results_table(results)}")
    if "curves.png" in files:
        parts.append("![Curves](curves.png)")
    if changes := results["changes"] | results.get("data_changes", {}):
        changed = [(key, f"`{value}`") for key, value in changes.items()]
        parts.append("## Changed from the recipe\n\n" + _table(("field", "value"), changed))
    parts += [
        "## Optimizer and schedule\n\n" + _table(("setting", "value"), settings),
        f"## Environment\n\n{hardware}, {environment['processes']} process(es), "
        f"{results['wall_seconds']:,.0f} s in all.\n\n" + _table(("package", "version"), versions),
    ]
    return "\n\n".join(parts) + "\n"
