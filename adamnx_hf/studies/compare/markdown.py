"""A comparison as Markdown."""

from __future__ import annotations

from typing import Any

from adamnx_hf.common.text import format_table
from adamnx_hf.studies.compare.refine import AUTO
from adamnx_hf.studies.tables import format_differences, format_field, format_mean

__all__ = ["markdown"]


def markdown(content: dict[str, Any]) -> str:
    """Returns a table of the optimizers, one of their differences, and what was done.

    Args:
        content: comparison.json's.
    """
    seeds, count = len(content["seeds"]), len(content["comparisons"])
    others = len(content["contenders"]) - 1
    parts = [f"# {content['recipe']}: {content['contenders'][0]['label']} beside {others} more"]
    parts += _warnings(content)
    parts += [_optimizers(content), f"Mean ± standard deviation over {_count(seeds)}, after the last step."]
    parts.append(
        format_differences(
            content["comparisons"],
            "metric",
            lambda row: f"{format_field(row['metric'])} ({row['better']} is better)",
        )
    )
    if count > 1:
        parts.append(f"{count} intervals at 95 % each: of 20 such, one misses the truth by chance.")
    parts.append(_explain_verdicts(content))
    if plan := content["plan"]:
        deviations = "; ".join(plan["deviations"]) or "none"
        parts.append(f"By the plan with SHA-256 {plan['sha256']}. Deviations: {deviations}.")
    if len(content["commits"]) > 1:
        parts.append(f"The runs are of different commits: {', '.join(content['commits'])}.")
    if content["sweep"]:
        parts.append(_sweep(content))
    return "\n\n".join(parts)


def _warnings(content: dict[str, Any]) -> list[str]:
    """Returns what limits the worth of the comparison."""
    parts = []
    if content["smoke"]:
        parts.append("A smoke run: says nothing about the optimizers.")
    if changed := content.get("data_changes"):
        fields = ", ".join(f"{key} {value}" for key, value in changed.items())
        parts.append(f"On {content['data']}, by flags that change the recipe's data: {fields}.")
    if content.get("judged_on_training_rows"):
        splits = content["splits"]
        parts.append(
            f"Judged on {splits['judged']}, which has rows that were trained on ({splits['train']}): this "
            "says nothing of others."
        )
    return parts


def _optimizers(content: dict[str, Any]) -> str:
    swept, metrics, seeds = list(content["sweep"]), list(content["metrics"]), len(content["seeds"])
    rows = [["optimizer", *map(format_field, swept), *map(format_field, metrics)]]
    for one in content["contenders"]:
        edges = dict.fromkeys(one["at_the_edge"], " (edge)")
        row = [one["label"], *(one["chosen"].get(name, "fixed") + edges.get(name, "") for name in swept)]
        for metric in metrics:
            values = [run[metric] for run in one["runs"] if run[metric] is not None]
            lost = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
            row.append((format_mean(values) if values else "diverged") + lost)
        rows.append(row)
    return format_table(rows)


def _explain_verdicts(content: dict[str, Any]) -> str:
    """Says what the verdicts are about, and what they are corrected for."""
    tests = sum(row["metric"] == content["judged_by"] for row in content["comparisons"])
    metric, smallest = format_field(content["judged_by"]), content["smallest_effect"]
    text = f"Verdicts are about {metric}"
    if tests > 1:
        text += f", with Holm's correction for {tests} tests"
    if smallest is not None:
        text += f"; the smallest difference of interest is {smallest:g}"
    return text + "."


def _sweep(content: dict[str, Any]) -> str:
    """Says what was swept, on which rows, and whose best values lie at the edge."""
    grid = "; ".join(f"{key} of {_write_values(content, key)}" for key in content["sweep"])
    splits = content["splits"]
    lines = [
        f"Each at its best of {grid}, by {format_field(content['chosen_by'])} on {splits['sweep']} "
        f"({_count(content['sweep_seeds'], 'other seed')}), judged on {splits['judged']}; trained on "
        f"{splits['train']}."
    ]
    for one in content["contenders"]:
        if room := one["head_room"]:
            error = "" if room["error"] is None else f" ± {room['error']:.2g}"
            lines.append(
                f"Between the values of the grid, {one['label']} may gain {room['estimate']:.2g}{error}."
            )
    lines += [
        f"The best {name} of {one['label']} lies at the edge of the sweep: a wider one may do better."
        for one in content["contenders"]
        for name in one["at_the_edge"]
    ]
    return "\n".join(lines)


def _write_values(content: dict[str, Any], field: str) -> str:
    """Writes the values of a swept field, those that each optimizer has tried if the sweep has found them."""
    if (values := content["sweep"][field]) != [AUTO]:
        return ", ".join(values)
    tried = {one["label"]: [row["values"][field] for row in one["sweep"]] for one in content["contenders"]}
    return "; ".join(
        f"{', '.join(sorted(rates, key=float))} ({name})" for name, rates in tried.items() if rates
    )


def _count(number: int, noun: str = "seed") -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
