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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamnx_hf import hub
from adamnx_hf.errors import RecipeError

__all__ = ["EXTRA", "Package", "add_arguments", "package", "push", "run"]

EXTRA = "recipes"

#: Bytes that one file may have on the Hub.
MAX_FILE_SIZE = 50_000_000_000

#: What is published, beside the recipe and the card, by name: what else lies there may be anything, tokens
#: included. All of it is data, none a pickle.
PUBLISHED = re.compile(
    r"(results|environment|metrics|config|generation_config|adapter_config|(pre)?processor_config|tokenizer\w*"
    r"|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|(model|adapter_model)[\w-]*\.safetensors(\.index\.json)?"
    r"|(vocab|merges)\.txt|\w+\.model|\w+\.jinja|(curves|predictions)\.png"
)

# Those that this package writes: every text in them is looked at. Of others, only what names a path.
_OURS = ("results.json", "environment.json", "metrics.json", hub.RECIPE)
_SCRUBBED = (*_OURS, "config.json", "adapter_config.json")

# Names of the recipe's fields that may be a name on the Hub or a path.
_NAME_OR_PATH = re.compile(
    r"dataset_name|fsdp_config|accelerator_config|chat_template_path|(\w+_)?name_or_path"
)
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `adamnx-hf publish`."""
    parser.epilog = (
        "The token is that of `hf auth login`, or HF_TOKEN. Not published: pickles, checkpoints, paths of "
        "this machine; the command says what it left out."
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="what `adamnx-hf run` wrote")
    parser.add_argument("--repo-id", required=True, metavar="ME/NAME", help="the repository on the Hub")
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    parser.add_argument("--update", action="store_true", help="commit to the repository if there is one")
    parser.add_argument(
        "--dry-run", action="store_true", help="only write the repository into a folder; needs no token"
    )
    parser.add_argument(
        "--output-dir", metavar="DIR", type=Path, help="where --dry-run writes it (default: RUN_DIR-hub)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    try:
        if not args.dry_run:
            if args.output_dir:
                raise RecipeError("--output-dir goes with --dry-run")
            push(args.run_dir, args.repo_id, private=args.private, update=args.update)
            return 0
        run_dir = args.run_dir.resolve()
        folder = args.output_dir or run_dir.with_name(f"{run_dir.name}-hub")
        made = package(run_dir, args.repo_id)
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
) -> str:
    """Publishes a run; says what was left out.

    Args:
        run_dir: what `adamnx-hf run` wrote.
        repo_id, private, update, token: see :func:`adamnx_hf.hub.upload`.

    Returns:
        The repository's address.

    Raises:
        RecipeError: see :func:`package` and :func:`adamnx_hf.hub.upload`; nothing has been sent by then,
            save where it says so.
    """
    made = package(run_dir, repo_id)
    hub.check_access(repo_id, token)
    _say(made)
    url = hub.upload(repo_id, made.files, private=private, update=update, token=token)
    print(f"Published: {url}\nAgain, from anywhere: {made.command}")
    return url


def _say(made: Package) -> None:
    for item in made.left_out:
        print(f"left out: {item}")


def _write(made: Package, folder: Path) -> None:
    import shutil

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder} is not an empty folder; choose another --output-dir")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in made.files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            shutil.copyfile(content, folder / name)


def package(run_dir: Path, repo_id: str) -> Package:
    """What is published of the run in `run_dir`, checked.

    Raises:
        RecipeError: `run_dir` holds no finished run, `repo_id` cannot be a repository's, or a file is too
            large.
    """
    import yaml

    from adamnx_hf.recipe import read

    address = f"{hub.SCHEME}{repo_id}"
    hub.recipe_name(address)  # checks it
    if "@" in repo_id:
        raise RecipeError(f"--repo-id {repo_id}: a revision cannot be chosen; write me/name")
    run_dir = Path(run_dir)
    for name in ("results.json", hub.RECIPE):
        if not (run_dir / name).is_file():
            raise RecipeError(f"{run_dir}: has no {name}; is it a folder of a finished `adamnx-hf run`?")
    scrub = _Scrub(run_dir)
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

    values, missing = scrub.recipe(read(run_dir / hub.RECIPE))
    if "dataset_name" in missing and "predictions.png" in files:
        del files["predictions.png"]
        scrub.left_out.append("predictions.png (pictures of a data set that is not on the Hub)")
    command = " ".join(
        ["adamnx-hf run", shlex.quote(address), *(f"--{key} {key.upper()}" for key in missing)]
    )
    head = f"# Again: {command}\n"
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    files[hub.RECIPE] = (head + text).encode()
    results = json.loads(scrub.json(run_dir / "results.json"))
    adapter = files.get("adapter_config.json")
    base_model = (
        None
        if results["smoke"]
        else values.get("model_name_or_path")
        or (json.loads(adapter).get("base_model_name_or_path") if isinstance(adapter, bytes) else None)
    )
    files["README.md"] = _card(repo_id, results, values, command, base_model, files).encode()
    return Package(files, list(dict.fromkeys(scrub.left_out)), command)


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
        return (json.dumps(self._value(content, path.name), indent=2, ensure_ascii=False) + "\n").encode()

    def recipe(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The recipe's fields without what is of this machine, and those that a user has to give."""
        from adamnx_hf.recipe import kernel_of_the_hub

        result, missing = {}, []
        for key, value in values.items():
            if kernel_of_the_hub(key, value) or (hub.FOREIGN.fullmatch(key) and hub.foreign(key, value)):
                self.left_out.append(f"{key} in {hub.RECIPE} (for whoever runs it to say)")
            elif isinstance(value, str) and (_is_local(value, bool(_NAME_OR_PATH.fullmatch(key)))):
                self.left_out.append(f"{key} in {hub.RECIPE} (a path of this machine)")
                missing.append(key)
            else:
                result[key] = self._value(value, hub.RECIPE)
        return result, missing

    def _value(self, value: Any, where: str, key: str = "") -> Any:
        if key == "notes":  # sentences, with whatever paths there are in them
            return []
        if isinstance(value, dict):
            return {k: self._value(v, where, str(k)) for k, v in value.items()}
        if isinstance(value, list):
            return [self._value(item, where) for item in value]
        if not isinstance(value, str):
            return value
        if where not in _OURS and not _NAME_OR_PATH.fullmatch(key.removeprefix("_")):
            return value
        if key == "command":
            words = [self._word(word, where) for word in shlex.split(value)]
            return shlex.join(words)
        named = key == "data" or bool(_NAME_OR_PATH.fullmatch(key.removeprefix("_")))
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


def _card(
    repo_id: str,
    results: Mapping[str, Any],
    recipe: Mapping[str, Any],
    command: str,
    base_model: str | None,
    files: Mapping[str, Any],
) -> str:
    """The model card: metadata as the Hub reads it, and text."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    from adamnx_hf.tasks import load_task

    task = load_task(results["task"])
    tag = getattr(task, "PIPELINE_TAG", results["task"].replace("_", "-"))
    made_up = results["data"] == "made up" or results["smoke"]  # of neither is there anything to measure
    dataset = recipe.get("dataset_name")  # none if it was a folder
    label = dataset or results["data"]
    measured = [] if made_up else list(results["metrics"].items())
    evaluations = [
        EvalResult(
            task_type=tag or results["task"],
            dataset_type=label,
            dataset_name=label,
            metric_type=name,
            metric_name=f"{_words(name)}, {which}",
            metric_value=value[key],
        )
        for name, value in measured
        for key, which in (
            ("last", "last epoch"),
            ("best", "best epoch, chosen on the evaluation split itself"),
        )
    ]
    adapter = "adapter_config.json" in files
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        tags=list(dict.fromkeys([hub.TAG, "adamnx-hf", results["optim"]])),
        datasets=None if made_up or not dataset else [dataset],
        base_model=base_model
        if base_model and not _is_local(base_model, True) and "/" in base_model
        else None,
        pipeline_tag=tag,
        metrics=[name for name, _ in measured] or None,
        model_name=repo_id.rpartition("/")[2],
        eval_results=evaluations or None,
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{_body(repo_id, results, recipe, command, made_up, label, files)}"
    return str(ModelCard(text))


def _words(name: str) -> str:
    return name.replace("_", " ").replace("top", "top-")


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in lines
    )


def _body(
    repo_id: str,
    results: Mapping[str, Any],
    recipe: Mapping[str, Any],
    command: str,
    made_up: bool,
    label: str,
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
    parts = [
        f"# {repo_id.rpartition('/')[2]}",
        f"{recipe.get('title') or results['recipe']}. Trained with `optim={results['optim']}` by adamnx-hf "
        f"from the recipe `{results['recipe']}`: {results['parameters']:,} parameters, "
        f"{results['train_examples']:,} examples of {label}.",
        f"## Again\n\n```bash\n{command}\n```\n\n`{hub.RECIPE}` holds every field as it was resolved.",
    ]
    if made_up:
        parts.append("## Results\n\nNone: a smoke run on made-up data says nothing about model or optimizer.")
    else:
        rows = [
            (_words(name), f"{value['last']:.4g}", f"{value['best']:.4g}", f"{value['best_epoch']:g}")
            for name, value in results["metrics"].items()
        ]
        smoke = "A smoke run: a few steps that say nothing about the optimizer. " if results["smoke"] else ""
        parts.append(
            f"## Results\n\nOn {results['eval_examples']:,} examples of the evaluation split. {smoke}One "
            "run, one seed. The best epoch was chosen on that split itself: read it as optimistic.\n\n"
            + _table(("metric", "last epoch", "best epoch", "which"), rows)
        )
    if "curves.png" in files:
        parts.append("![Curves](curves.png)")
    if results["changes"]:
        changed = [(key, f"`{value}`") for key, value in results["changes"].items()]
        parts.append("## Changed from the recipe\n\n" + _table(("field", "value"), changed))
    parts += [
        "## Optimizer and schedule\n\n" + _table(("setting", "value"), settings),
        f"## Environment\n\n{hardware}, {environment['processes']} process(es), "
        f"{results['wall_seconds']:,.0f} s in all.\n\n" + _table(("package", "version"), versions),
    ]
    return "\n\n".join(parts) + "\n"
