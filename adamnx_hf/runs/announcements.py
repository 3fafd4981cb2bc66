"""The lines that a run prints: when training begins, and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.common.errors import printable
from adamnx_hf.common.plain_values import plain_value
from adamnx_hf.runs.folder import RESULTS
from adamnx_hf.runs.memory import count_parameters
from adamnx_hf.runs.titles import find_title
from adamnx_hf.tasks.base import Recipe

__all__ = ["print_results", "print_start"]


def print_start(recipe: Recipe, trainer: Any) -> None:
    """Prints what is trained, by which optimizer, on which data, and into which folder."""
    args = recipe.training_arguments
    data = "made-up data" if recipe.synthetic_data else recipe.task_arguments.dataset_name
    count, trained = count_parameters(trainer.model)
    some = f", {trained:,} of them trained" if trained < count else ""
    title = printable(find_title(recipe))
    print(
        f"{recipe.name}{': ' if title else ''}{title}\n"
        f"  {count:,} parameters{some}, optim={plain_value(args.optim)}, learning rate "
        f"{args.learning_rate:g}, seed {args.seed}\n"
        f"  {data}: {len(trainer.train_dataset):,} to train on, {len(trainer.eval_dataset):,} to judge by\n"
        + "".join(f"  {printable(note)}\n" for note in trainer.notes)
        + f"  into {args.output_dir}",
        flush=True,
    )


def print_results(results: Mapping[str, Any], folder: Path, unit: str, drawn: Sequence[str]) -> None:
    """Prints what came out of a run.

    Args:
        results: the content of results.json.
        folder: the run's.
        unit: what the task counts, see `UNIT` in :mod:`adamnx_hf.tasks`.
        drawn: names of pictures in the folder, beside the curves.
    """
    weights = results["weights"]
    if weights["step"] != results["steps"]:
        figures = "".join(f", {name} {value:.2f}" for name, value in weights["metrics"].items())
        print(
            f"The model is that of step {weights['step']:,}, the best by {weights['chosen_by']}{figures} "
            "(chosen on the evaluation split itself)"
        )
    if results["judged_on_training_rows"]:
        print("Judged on rows that it was trained on: the figures say nothing of others")
    for name, values in results["metrics"].items():
        print(
            f"{name}: {values['last']:.2f} after the last epoch; best {values['best']:.2f}, epoch "
            f"{values['best_epoch']:g} (chosen on the evaluation split itself)"
        )
    _print_speed(results, unit)
    names = [RESULTS, "metrics.json", "curves.png", *drawn, "environment.json", "recipe.yaml", "the model"]
    print(f"Written to {folder}: {', '.join(names)}")


def _print_speed(results: Mapping[str, Any], unit: str) -> None:
    speed, trained = results["throughput"], results[f"train_{unit}_per_second"] or 0
    if speed["data"] is None:
        pipeline = "the data pipeline was not timed: it takes two batches an epoch"
    else:
        pipeline = f"the data pipeline gives {speed['data']:,.0f} {unit}/s"
    print(
        f"{results['wall_seconds']:.0f} s in all, {trained:,.0f} {unit}/s in training. Alone, {pipeline}"
        + (f", and the model takes {speed['model']:,.0f}" if speed["model"] else "")
    )
    if speed["data"] and speed["model"] and speed["data"] < speed["model"]:
        print("The data pipeline is the bottleneck: try --fast, or more --dataloader_num_workers")
