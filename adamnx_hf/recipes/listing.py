"""The package's recipes, described without loading a task."""

from __future__ import annotations

from typing import Any

from adamnx_hf.recipes.files import list_recipes, read_recipe
from adamnx_hf.recipes.paper_tables import tables

__all__ = ["describe_recipes"]


def describe_recipes() -> list[dict[str, Any]]:
    """Describes the package's recipes.

    Returns:
        For each recipe `name`, `task`, `title`, `model`, `data`, `paper_tables`, `hardware`, `hours`, `path`,
        and `published`: a list of `table`, `row`, the metrics by name, and `note`.
    """
    known = tables()
    found = []
    for name, path in list_recipes().items():
        values = read_recipe(path)
        numbers = values.get("paper_tables") or []
        found.append(
            {
                "name": name,
                "task": values["task"],
                "title": values.get("title", ""),
                "model": values.get("architecture") or values.get("model_name_or_path"),
                "data": values.get("dataset_name"),
                "paper_tables": numbers,
                "published": [
                    {
                        "table": table.number,
                        "row": row["label"],
                        **row["published"],
                        "note": " ".join(table.note.split()),
                    }
                    for table in map(known.__getitem__, numbers)
                    for row in table.rows
                    if row.get("published")
                ],
                "hardware": values.get("hardware", ""),
                "hours": str(values.get("hours", "")),
                "path": str(path),
            }
        )
    return found
