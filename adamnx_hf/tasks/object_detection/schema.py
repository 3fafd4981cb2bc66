"""The names that a data set gives to boxes and classes of objects, and the classes that it has."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.tasks.columns import HIGHEST_ID, check_columns, check_same_classes
from adamnx_hf.tasks.object_detection.arguments import Arguments

__all__ = [
    "check_classes",
    "check_features",
    "find_fields",
    "find_own_names",
    "list_fields",
    "name_classes",
    "split_fields",
]


#: Names of the fields of objects in public data sets, by the recipe's field that names them.
USUAL = {
    "box_field": ("bbox", "boxes", "box", "bboxes"),
    "category_field": (
        "category",
        "category_id",
        "categories",
        "category_ids",
        "class",
        "classes",
        "label",
        "labels",
    ),
}


def list_fields(data: Any, column: str) -> dict[str, Any]:
    """Lists the features of an object's fields; a column holds lists of objects, or lists by field."""
    feature = data.features[column]
    if hasattr(feature, "feature"):  # List of dictionaries
        return feature.feature if isinstance(feature.feature, dict) else {}
    if isinstance(feature, dict):
        return {name: getattr(inner, "feature", inner) for name, inner in feature.items()}
    return {}


def _find_class_feature(data: Any, arguments: Arguments) -> Any:
    """Finds the feature of the classes."""
    return list_fields(data, arguments.objects_column)[arguments.category_field]


def find_own_names(data: Any, arguments: Arguments) -> list[str]:
    """Finds the data set's own names of its class ids; returns none if it has none."""
    return list(getattr(_find_class_feature(data, arguments), "names", None) or [])


def _holds_text(data: Any, arguments: Arguments) -> bool:
    """Says whether the data give classes by name, as text without ids."""
    return getattr(_find_class_feature(data, arguments), "dtype", None) in ("string", "large_string")


def find_fields(data: Any, arguments: Arguments, given: Collection[str]) -> list[str]:
    """Replaces names of a column and of fields that the data lack by usual ones.

    `objects_column` becomes the only column that holds objects with boxes. `box_field` and `category_field`
    become the only one of :data:`USUAL` that the objects have. Where several fit, the name stays.

    Args:
        data: the training split.
        arguments: the recipe's fields, which change.
        given: fields that flags have set, which stay as they are.

    Returns:
        A note for each name that was replaced.
    """
    notes = []

    def replace(name: str, there: Collection[str], candidates: Sequence[str]) -> None:
        wanted = getattr(arguments, name)
        if wanted not in there and name not in given and len(candidates) == 1:
            setattr(arguments, name, candidates[0])
            note = f"{name}: {candidates[0]!r} is used, as there is no {wanted!r}"
            if name == "box_field":
                note += f"; its boxes are read as {arguments.box_format} in {arguments.box_unit}"
            notes.append(note)

    columns = data.column_names
    replace("objects_column", columns, [name for name in columns if _holds_boxes(data, name, arguments)])
    if arguments.objects_column in columns:
        fields = list_fields(data, arguments.objects_column)
        for name, usual in USUAL.items():
            replace(name, fields, [field for field in usual if field in fields])
    return notes


def _holds_boxes(data: Any, column: str, arguments: Arguments) -> bool:
    """Says whether a column holds objects with boxes."""
    fields = list_fields(data, column)
    return any(hasattr(fields.get(name), "feature") for name in (arguments.box_field, *USUAL["box_field"]))


def check_features(data: Any, arguments: Arguments) -> None:
    """Checks that a split has a column of objects with boxes and classes.

    Raises:
        RecipeError: the column or a field is not there, or holds something else.
    """
    check_columns(data, {"objects_column": arguments.objects_column})
    fields = list_fields(data, arguments.objects_column)
    if not fields:
        raise RecipeError(
            f"objects_column: {arguments.objects_column!r} does not hold objects with boxes and classes, "
            f"but {data.features[arguments.objects_column]}"
        )
    for name in ("box_field", "category_field"):
        if (field := getattr(arguments, name)) not in fields:
            raise RecipeError(
                f"{name}: the objects of {arguments.objects_column!r} have no {field!r}"
                f"{nearest(field, fields)}"
            )
    kind = _find_class_feature(data, arguments)
    is_id = hasattr(kind, "names") or str(getattr(kind, "dtype", "")).startswith(("int", "uint"))
    if not is_id and not _holds_text(data, arguments):
        raise RecipeError(
            f"category_field: {arguments.category_field!r} does not hold class ids or names but {kind}"
        )


def name_classes(data: Any, arguments: Arguments) -> list[str]:
    """Names the classes by id: as the recipe or the data set does, by the names in the rows, or by numbers.

    Raises:
        RecipeError: the recipe names classes in another order than the data set; or ids are too high.
    """
    names = find_own_names(data, arguments)
    if arguments.class_names:
        for i, name in enumerate(arguments.class_names):
            if name in names and names.index(name) != i:
                raise RecipeError(
                    f"class_names: {name!r} is class {i} there, and {names.index(name)} in the data set; "
                    "list them in its order, or leave them out"
                )
        return arguments.class_names
    if names:
        return names
    found: set[Any] = set()
    for objects in data.select_columns([arguments.objects_column])[arguments.objects_column]:
        found.update(split_fields(objects, arguments)[arguments.category_field])
    found.discard(None)
    if _holds_text(data, arguments):
        return sorted(found)
    most = int(max(found, default=-1))
    if most > HIGHEST_ID:
        raise RecipeError(
            f"category_field: {arguments.category_field!r} goes up to {most}, and class ids are counted from "
            "0; count them anew, or is it another field: --category_field NAME?"
        )
    return [str(i) for i in range(most + 1)]


def check_classes(train: Any, test: Any, classes: Sequence[str], arguments: Arguments) -> None:
    """Checks that an id is the same class in both splits, also where `class_names` has other names.

    Either split may have more names. :func:`adamnx_hf.tasks.object_detection.boxes.read_objects` refuses ids
    that the training split has no name for.

    Raises:
        RecipeError: an id is another class in the evaluation split.
    """
    pairs = [(find_own_names(train, arguments), find_own_names(test, arguments))]
    if not _holds_text(test, arguments):  # text has no ids of its own
        pairs.append((list(classes), name_classes(test, arguments)))
    for names, others in pairs:
        check_same_classes(names, others)


def split_fields(objects: Any, arguments: Arguments) -> dict[str, list[Any]]:
    """Splits an image's objects into lists by field, empty where objects lack the field."""
    names = (arguments.box_field, arguments.category_field, arguments.difficult_field)
    if not isinstance(objects, dict):
        objects = {name: [one[name] for one in objects if one and name in one] for name in names if objects}
    return {name: objects.get(name) or [] for name in names}
