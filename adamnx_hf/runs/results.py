"""The content of results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.common.plain_values import plain_value
from adamnx_hf.common.splits import judged_on_training_rows
from adamnx_hf.runs.epochs import find_best_and_last
from adamnx_hf.runs.memory import count_parameters
from adamnx_hf.runs.record import RunRecord
from adamnx_hf.runs.titles import list_data_changes
from trainer_patches import unwrap_optimizer

__all__ = ["collect_results", "describe_weights", "find_loaded_step"]


def collect_results(record: RunRecord, seconds: float, throughput: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of results.json, in its order, of a finished run.

    Args:
        record: the run's record.
        seconds: the seconds that training took, with evaluations.
        throughput: speeds, see :func:`adamnx_hf.runs.throughput.measure`.
    """
    recipe, trainer, table = record.recipe, record.trainer, record.rows()
    args, unit, metrics = recipe.training_arguments, recipe.task.UNIT, recipe.task.METRICS
    optimizer = unwrap_optimizer(trainer.optimizer)
    group = optimizer.param_groups[0]
    parameters, trained = count_parameters(trainer.model)
    total_batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    changes = _make_plain(recipe.changes)  # those that flags made where it may matter for the outcome
    if args.world_size > 1:
        changes["total_train_batch_size"] = total_batch
    results: dict[str, Any] = {
        "recipe": recipe.name,
        "task": recipe.arguments.task,
        "paper_tables": recipe.arguments.paper_tables,
        "optim": str(plain_value(args.optim)),
        "optim_args": args.optim_args,
        "optimizer": type(optimizer).__name__,
        "betas": [float(beta) for beta in group["betas"]] if "betas" in group else None,
        "beta2_schedule": group.get("beta2_schedule"),
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "fast": recipe.arguments.fast,
        "smoke": recipe.arguments.smoke,
        "changes": changes,
        "data_changes": _make_plain(list_data_changes(recipe)),
        "data": "made up" if recipe.synthetic_data else recipe.task_arguments.dataset_name,
        "train_examples": len(trainer.train_dataset),
        "eval_examples": len(trainer.eval_dataset),
        "judged_on_training_rows": judged_on_training_rows(recipe),
        "parameters": parameters,
        "trainable_parameters": trained,
        "memory_bytes": record.memory,
        "total_train_batch_size": total_batch,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "metrics": find_best_and_last(table, metrics),
        "weights": describe_weights(trainer, table, metrics),
        "best_is": "the best epoch by the evaluation split itself, as in the paper; `last` is free of that",
        "wall_seconds": round(seconds, 1),
        "train_seconds": round(sum(record.clock.seconds.values()), 1),
        f"train_{unit}_per_second": record.clock.rate(total_batch * trainer.count_units_per_example()),
        "notes": trainer.notes,
        "throughput": {**throughput, "unit": f"{unit} a second on one process"},
        "environment": record.environment,
        "per_epoch": table,
    }
    if dropped := {field: count for field, count in trainer.dropped.items() if count}:
        results["dropped_examples"] = dropped  # numbers of examples, by the field of their split
    return results


def _make_plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields of a recipe for JSON."""
    return {key: plain_value(value) for key, value in fields.items()}


def find_loaded_step(trainer: Any) -> int | None:
    """Returns the step whose weights training ended by loading; None if the last step's are still there."""
    best = trainer.state.best_model_checkpoint
    if not trainer.args.load_best_model_at_end or best is None or not Path(best).is_dir():
        return None
    return int(Path(best).name.rpartition("-")[2])


def describe_weights(
    trainer: Any, table: Sequence[Mapping[str, Any]], metrics: Iterable[str]
) -> dict[str, Any]:
    """Says which weights a run ends with, and what they are worth.

    Args:
        trainer: after training.
        table: the run's epochs.
        metrics: the names of the task's metrics.

    Returns:
        The `step` and `epoch` of the weights; their `metrics`, by name; and `chosen_by`, the figure of the
        evaluation split by which they are the best, None for those of the last step.
    """
    step, chosen_by = find_loaded_step(trainer), None
    if step is None:
        step = trainer.state.global_step
    else:
        metric = trainer.args.metric_for_best_model.removeprefix("eval_")
        chosen_by = "eval_loss" if metric == "loss" else metric
    row: Mapping[str, Any] = next((row for row in table if row["step"] == step), {})
    known = {name: row[name] for name in metrics if row.get(name) is not None}
    return {"step": step, "epoch": row.get("epoch"), "chosen_by": chosen_by, "metrics": known}
