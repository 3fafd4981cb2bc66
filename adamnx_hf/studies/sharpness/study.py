"""Measures the sharpness of runs, and of a comparison's runs in pairs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.files import write_json
from adamnx_hf.common.text import format_table
from adamnx_hf.runs.loaded import check_model, load_trainer
from adamnx_hf.studies import paired
from adamnx_hf.studies.compare.contenders import Contender
from adamnx_hf.studies.sharpness.charts import draw
from adamnx_hf.studies.sharpness.measures import MEASURES, measure
from adamnx_hf.studies.tables import format_differences, format_field, format_mean

__all__ = ["Settings", "markdown", "measure_comparison", "measure_run"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a measurement; sharpness.json keeps all but `dataset_name`."""

    samples: int = 1000
    """The number of training examples."""
    random_radius: float = 0.1
    """See :mod:`adamnx_hf.studies.sharpness.measures`."""
    ascent_radius: float = 0.005
    directions: int = 8
    """The number of random moves."""
    dataset_name: str | None = None
    """Where the data set is now, if not where the run had it."""

    def as_json(self) -> dict[str, Any]:
        """Returns what sharpness.json holds of them."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "dataset_name"}


def measure_run(folder: Path, settings: Settings) -> dict[str, Any]:
    """Measures one run and writes its sharpness.json, unless that holds the same measurement already.

    Args:
        folder: the run's, with its model.
        settings: see :class:`Settings`.

    Returns:
        What sharpness.json holds.

    Raises:
        RecipeError: the folder holds no whole model, the data set is not there, or the run has diverged.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from adamnx_hf.runs.environment import describe_environment

    path = folder / "sharpness.json"
    same = {"settings": settings.as_json(), "data": _find_data(folder, settings)}
    stamp = max((item.stat().st_mtime_ns for item in folder.glob("model*.safetensors")), default=0)
    if path.is_file():
        there: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if same.items() <= there.items() and path.stat().st_mtime_ns > stamp:
            return there
    model, batches = _load_model_and_batches(folder, settings)
    params = [param for param in model.parameters() if param.requires_grad]
    total = sum(count for count, _ in batches)

    def loss() -> Iterator[Tensor]:
        for count, inputs in batches:
            yield model(**inputs).loss * (count / total)

    try:
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            values = measure(
                loss,
                params,
                random_radius=settings.random_radius,
                ascent_radius=settings.ascent_radius,
                directions=settings.directions,
            )
    except RuntimeError as error:
        raise RecipeError(f"{folder}: {' '.join(str(error).split())}") from error
    result = {**same, **values, "environment": describe_environment()}
    write_json(path, result)
    return result


def _find_data(folder: Path, settings: Settings) -> str | None:
    """Returns the data set that a run is measured on: its name on the Hub, or its folder's whole path."""
    from adamnx_hf import recipes

    name = settings.dataset_name or recipes.read_recipe(folder / "recipe.yaml").get("dataset_name")
    path = Path(os.path.expanduser(name or ""))
    return str(path.resolve()) if name and path.is_dir() else name


def _load_model_and_batches(folder: Path, settings: Settings) -> tuple[nn.Module, list[tuple[int, Any]]]:
    """Loads the run's network, and its first training examples as evaluation sees them.

    Returns:
        The network in evaluation mode, and batches: how many examples, and the network's arguments.
    """
    import datasets

    trainer = load_trainer(folder, settings.dataset_name)
    data = trainer.train_dataset
    if hasattr(data, "transform"):
        data.transform, data.random = trainer.eval_dataset.transform, None
    elif not isinstance(data, datasets.Dataset):  # language models' are not augmented
        raise RecipeError(
            f"{folder}: its training examples cannot be read without augmentation; measure another run"
        )
    trainer.model.eval()
    subset = torch.utils.data.Subset(data, range(min(settings.samples, len(data))))
    batches = map(trainer._prepare_inputs, trainer.get_eval_dataloader(subset))
    return trainer.model, [(len(inputs["labels"]), dict(inputs.items())) for inputs in batches]


def measure_comparison(
    folder: Path, settings: Settings, labels: Sequence[str] | None = None
) -> dict[str, Any]:
    """Measures the runs of a comparison, and writes its sharpness.json and sharpness.png.

    Args:
        folder: the comparison's, made with `--keep-models`.
        settings: see :class:`Settings`.
        labels: the optimizers, the first of which is compared with each other one; None for all.

    Returns:
        What sharpness.json holds.

    Raises:
        RecipeError: as :func:`measure_run`, or a label is none of the comparison's.
    """
    from adamnx_hf.runs.environment import describe_environment

    there = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    chosen = {one["label"]: one["chosen"] for one in there["contenders"]}
    labels = labels or list(chosen)
    for label in labels:
        if label not in chosen:
            raise RecipeError(f"--optim: {label!r} is none of this comparison's: {', '.join(chosen)}")
    rows = _measure_all(folder, {label: chosen[label] for label in labels}, there["seeds"], settings)
    content = {
        "recipe": there["recipe"],
        "comparison": there["command"],
        "settings": settings.as_json(),
        "seeds": there["seeds"],
        "contenders": [{"label": label, "chosen": chosen[label], "runs": rows[label]} for label in labels],
        "comparisons": [row for other in labels[1:] for row in _compare(labels[0], other, rows)],
        "environment": describe_environment(),
    }
    write_json(folder / "sharpness.json", content)
    draw(folder / "sharpness.png", content)
    return content


def _measure_all(
    folder: Path, chosen: dict[str, dict[str, str]], seeds: Sequence[int], settings: Settings
) -> dict[str, list[dict[str, Any]]]:
    """Measures the runs seed by seed; returns a row for each, by the optimizer's label."""
    from tqdm import tqdm

    places = {
        (label, seed): folder / Contender(label).place(values, i)
        for i, seed in enumerate(seeds)
        for label, values in chosen.items()
    }
    for place in places.values():
        check_model(place)
    rows: dict[str, list[dict[str, Any]]] = {label: [] for label in chosen}
    for (label, seed), place in tqdm(places.items(), desc="sharpness", unit=" runs", leave=False):
        measured = measure_run(place, settings)
        rows[label].append({"seed": seed} | {name: measured[name] for name in ("loss", "norm", *MEASURES)})
    return rows


def _compare(first: str, second: str, rows: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for name in MEASURES:
        a, b = ([row[name] for row in rows[label]] for label in (first, second))
        row, difference = paired.compare_pairs((first, second), name, "lower", a, b)
        said = paired.verdict((first, second), difference, "lower", words=("flatter", "sharper"))
        yield row | {"verdict": said}


def markdown(content: dict[str, Any]) -> str:
    """Returns the measures as Markdown: a table of the optimizers and one of the paired differences.

    Args:
        content: a comparison's sharpness.json.
    """
    rows = [["optimizer", "loss", "norm of the weights", *map(format_field, MEASURES)]]
    for one in content["contenders"]:
        values = ([row[name] for row in one["runs"]] for name in ("loss", "norm", *MEASURES))
        rows.append([one["label"], *map(format_mean, values)])
    comparisons = content["comparisons"]
    return "\n\n".join(
        [
            format_table(rows),
            format_differences(comparisons, "measure", lambda row: format_field(row["metric"])),
            f"{len(comparisons)} intervals at 95 % each: of 20 such, one misses the truth by chance.",
        ]
    )
