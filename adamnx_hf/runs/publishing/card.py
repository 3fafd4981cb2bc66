"""The model card of a run: metadata as the Hub reads it, and text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adamnx_hf.common import hub
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.text import format_metric, format_table
from adamnx_hf.models import is_ours
from adamnx_hf.tasks import load_task

__all__ = ["CardFacts", "merge_cards", "write_card"]

# The part of the card between these lines is this package's. The rest is its owner's, and stays.
_BEGIN = "<!-- adamnx-hf: each publish writes this anew; your own words belong above or below -->"
_END = "<!-- adamnx-hf: end -->"

# The card's metadata that is this package's.
_OUR_METADATA = (
    "base_model", "datasets", "eval_results", "library_name", "metrics", "model_name", "pipeline_tag"
)  # fmt: skip

# Fields of the recipe that the table of the optimizer and its schedule has.
_SETTINGS = ("adam_epsilon", "weight_decay", "decay_rule", "lr_scheduler_type", "warmup_steps")

# The head of a column that the card's table has only where it adds something to those before it.
_BEST = "best epoch"


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """The facts that a card is written from."""

    repo_id: str
    results: Mapping[str, Any]
    """The content of results.json."""
    recipe: Mapping[str, Any]
    """The fields of the recipe as it is published."""
    command: str
    """The command that runs it again."""
    base_model: str | None
    """The model on the Hub that was fine-tuned."""
    files: Mapping[str, Any]
    """The published files by name."""

    @property
    def name(self) -> str:
        """The name of the repository without its owner."""
        return self.repo_id.rpartition("/")[2]

    @property
    def task(self) -> Any:
        """The task's module."""
        return load_task(self.results["task"])

    @property
    def tag(self) -> str | None:
        """The Hub's name of the task."""
        tag: str | None = getattr(self.task, "PIPELINE_TAG", self.results["task"].replace("_", "-"))
        return tag

    @property
    def made_up(self) -> bool:
        """True where there is nothing to measure: in a smoke run, or with made-up data."""
        return bool(self.results["data"] == "made up" or self.results["smoke"])

    @property
    def dataset(self) -> str | None:
        """The data set on the Hub; None if it was a folder."""
        return self.recipe.get("dataset_name")

    @property
    def label(self) -> str:
        """The data set, in words."""
        return str(self.dataset or self.results["data"])

    @property
    def is_adapter(self) -> bool:
        """True where the weights are those of an adapter."""
        return "adapter_config.json" in self.files


@dataclasses.dataclass(frozen=True)
class Figures:
    """A run's metrics at one place of it."""

    column: str
    """The head of their column in the card's table."""
    place: str
    """The place, in words."""
    values: Mapping[str, float]
    """The metrics by name."""


def write_card(facts: CardFacts, licence: Mapping[str, str | None]) -> str:
    """Returns the card of a run.

    Args:
        facts: what the card says.
        licence: `license` and `license_name`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    task, results = facts.task, facts.results
    figures = [] if facts.made_up else _list_figures(results)
    measured = list(dict.fromkeys(name for figure in figures for name in figure.values))
    data = ModelCardData(
        library_name="peft" if facts.is_adapter else "transformers",
        tags=list(dict.fromkeys([hub.TAG, "adamnx-hf", results["optim"]])),
        datasets=None if facts.made_up or not facts.dataset else [facts.dataset],
        base_model=facts.base_model,
        pipeline_tag=facts.tag,
        metrics=list(dict.fromkeys(task.METRICS[name].hub_type for name in measured)) or None,
        model_name=facts.name,
        eval_results=_list_evaluations(facts, figures, measured) or None,
        **licence,  # type: ignore[arg-type]
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_BEGIN}\n\n{_write_body(facts)}\n{_END}\n"))


def _list_figures(results: Mapping[str, Any]) -> list[Figures]:
    """Returns a run's figures, first those of the weights that are there; nothing twice.

    The results of older runs do not say which weights those are.

    Args:
        results: the content of results.json.
    """
    metrics, weights = results["metrics"], results.get("weights") or {}
    last = {name: value["last"] for name, value in metrics.items()}
    kept = [Figures("last epoch", "last epoch", last)]
    if weights.get("step", results["steps"]) != results["steps"]:
        step = f"step {weights['step']:,}"
        place = f"{step}, the best by {weights['chosen_by']} on the evaluation split itself"
        kept.insert(0, Figures(f"these weights, {step}", place, weights["metrics"]))
    best = {
        name: value["best"]
        for name, value in metrics.items()
        if value["best"] not in [figure.values.get(name) for figure in kept]
    }
    place = "best epoch, chosen on the evaluation split itself"
    return [*kept, Figures(_BEST, place, best)] if best else kept


def _list_evaluations(facts: CardFacts, figures: Sequence[Figures], measured: Iterable[str]) -> list[Any]:
    """Returns huggingface_hub's records of the figures, metric by metric."""
    from huggingface_hub import EvalResult

    metrics, recipe, has_name = facts.task.METRICS, facts.recipe, bool(facts.dataset)
    on_what = ", on rows that it was trained on" if facts.results.get("judged_on_training_rows") else ""
    return [
        EvalResult(
            task_type=facts.tag or facts.results["task"],
            dataset_type=facts.label,
            dataset_name=facts.label,
            dataset_config=recipe.get("dataset_config_name") if has_name else None,
            dataset_revision=recipe.get("dataset_revision") if has_name else None,
            metric_type=metrics[name].hub_type,
            metric_name=f"{metrics[name].hub_name}, {figure.place}{on_what}",
            metric_value=metrics[name].to_hub(figure.values[name]),
        )
        for name in measured
        for figure in figures
        if name in figure.values
    ]


def _write_body(facts: CardFacts) -> str:
    results = facts.results
    no_data = results["data"] == "made up"
    title = None if no_data else facts.recipe.get("title")
    examples = f"{results['train_examples']:,} "
    examples += "made-up examples" if no_data else f"examples of {facts.label}"
    of_recipe = f"from the recipe `{results['recipe']}` ({title})"
    parts = [
        f"# {facts.name}",
        f"Trained on {examples} with `optim={results['optim']}` by adamnx-hf, "
        + (of_recipe if title else f"by the settings of the recipe `{results['recipe']}`")
        + f": {results['parameters']:,} parameters.",
        f"## Use\n\n{_write_adapter_use(facts) if facts.is_adapter else _write_use(facts)}",
        f"## Again\n\n```bash\n{facts.command}\n```\n\n`{hub.RECIPE}` holds every field as it was resolved.",
    ]
    if facts.made_up:
        on_what = " on made-up data" if no_data else ""
        parts.append(f"## Results\n\nNone: a smoke run{on_what} says nothing about model or optimizer.")
    else:
        parts.append(f"## Results\n\n{_describe_judging(facts)}\n\n{_write_results_table(facts)}")
    if "curves.png" in facts.files:
        parts.append("![Curves](curves.png)")
    if changes := results["changes"] | results.get("data_changes", {}):
        rows = [("field", "value"), *((key, f"`{value}`") for key, value in changes.items())]
        parts.append("## Changed from the recipe\n\n" + format_table(rows, padded=True))
    parts += [
        "## Optimizer and schedule\n\n" + _write_settings(facts),
        "## Environment\n\n" + _write_environment(results),
    ]
    return "\n\n".join(parts) + "\n"


def _write_use(facts: CardFacts) -> str:
    """Returns Python that uses the model."""
    config = json.loads(facts.files["config.json"]) if "config.json" in facts.files else {}
    is_text = facts.tag == "text-generation"
    call = 'model("Once upon a time", max_new_tokens=50)' if is_text else 'model("picture.jpg")'
    lines = [
        "from transformers import pipeline",
        "",
        f'model = pipeline("{facts.tag}", model="{facts.repo_id}")',
        f"print({call})",
    ]
    if is_ours(config.get("model_type")):
        lines.insert(0, "import adamnx_hf  # makes this kind of model known to Transformers")
    return "\n".join(["```python", *lines, "```"])


def _write_adapter_use(facts: CardFacts) -> str:
    """Returns Python that uses the adapter."""
    if facts.base_model is None:
        return (
            "An adapter of a model that is not on the Hub: load that one, and then "
            f'`peft.PeftModel.from_pretrained(model, "{facts.repo_id}")`.'
        )
    return f"""```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{facts.repo_id}")  # and its base, {facts.base_model}
tokenizer = AutoTokenizer.from_pretrained("{facts.repo_id}")
inputs = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```"""


def _describe_judging(facts: CardFacts) -> str:
    """Says on what the figures were measured, and what they do not say."""
    results = facts.results
    weights = results.get("weights") or {}
    said = [f"On {results['eval_examples']:,} examples of the evaluation split."]
    if results.get("judged_on_training_rows"):
        said.append("Some of them it was trained on: the figures say nothing of other rows.")
    if dropped := results.get("dropped_examples"):
        counts = ", ".join(f"{count:,} of `{field}`" for field, count in dropped.items())
        said.append(f"Examples that did not fit into `max_length` were left out: {counts}.")
    said.append("One run, one seed.")
    if weights.get("step", results["steps"]) != results["steps"]:
        said.append(
            f"The weights are those of step {weights['step']:,}, the best by `{weights['chosen_by']}` on "
            "that split itself: read their figures as optimistic."
        )
    elif not weights and facts.recipe.get("load_best_model_at_end"):
        said.append("The weights are those of the best evaluation; the run did not record which.")
    if _list_figures(results)[-1].column == _BEST:
        said.append("The best epoch was chosen on that split itself: read it as optimistic.")
    return " ".join(said)


def _write_results_table(facts: CardFacts) -> str:
    """Returns the metrics: of the weights first, then of the last epoch and, if another, of the best."""
    metrics, results = facts.task.METRICS, facts.results
    figures = _list_figures(results)
    has_best = figures[-1].column == _BEST
    columns = figures[:-1] if has_best else figures
    head = ["metric", *(figure.column for figure in columns)]
    if has_best:
        head += [_BEST, "which"]
    rows = [head]
    for name, value in results["metrics"].items():
        row = [format_metric(name) + ("" if metrics[name].to_hub is float else ", %")]
        row += [f"{figure.values[name]:.4g}" if name in figure.values else "" for figure in columns]
        if has_best:
            row += [f"{value['best']:.4g}", f"{value['best_epoch']:g}"]
        rows.append(row)
    return format_table(rows, padded=True)


def _write_settings(facts: CardFacts) -> str:
    results, recipe = facts.results, facts.recipe
    settings = {
        "optimizer": results["optimizer"],
        "optim": results["optim"],
        "optim_args": results["optim_args"],
        "betas": results["betas"],
        "beta2_schedule": results["beta2_schedule"],
        **{name: recipe.get(name) for name in _SETTINGS},
        "learning_rate": results["learning_rate"],
        "seed": results["seed"],
        "batch size, in all": results["total_train_batch_size"],
        "steps": results["steps"],
        "epochs": round(results["epochs"], 4),
    }
    rows = [(key, f"`{value}`") for key, value in settings.items() if value is not None]
    return format_table([("setting", "value"), *rows], padded=True)


def _write_environment(results: Mapping[str, Any]) -> str:
    environment = results["environment"]
    hardware = ", ".join(environment["gpus"]) or environment["processor"]
    versions = {
        "adamnx-hf": environment["adamnx-hf"],
        "Python": environment["python"],
        **environment["packages"],
    }
    rows = [(name, version) for name, version in versions.items() if version]
    return (
        f"{hardware}, {environment['processes']} process(es), {results['wall_seconds']:,.0f} s in all.\n\n"
        + format_table([("package", "version"), *rows], padded=True)
    )


def merge_cards(theirs: str, ours: str, earlier_optim: str) -> tuple[str, bool]:
    """Merges a new card into the one that is in the repository, which its owner may have added to.

    Args:
        theirs: the card in the repository.
        ours: the new one.
        earlier_optim: the `optim` of the earlier run, which is no tag of the owner's.

    Returns:
        The card, and whether it names a licence.

    Raises:
        RecipeError: the card in the repository cannot be read.
    """
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
