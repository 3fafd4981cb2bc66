"""Rows of a data set, read for TRL: templates filled in, chats, or texts. Errors name the row."""

from __future__ import annotations

import datetime
import decimal
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.common.splits import name_row
from adamnx_hf.tasks.columns import check_columns

__all__ = [
    "JOINED",
    "TEXT",
    "Blank",
    "Template",
    "fill_in",
    "find_whole_columns",
    "parse_template",
    "read_chats",
    "read_texts",
]

#: The column of texts for TRL.
TEXT = "text"

#: The number of rows of one text that are joined at a time.
JOINED = 1000

#: The places where a cell without a value stands for an empty text: see a recipe's `allow_blank`.
Blank: TypeAlias = Literal["nowhere", "prompt", "anywhere"]

#: The roles of a chat, with ShareGPT's, and chat templates' words for them.
ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    "gpt": "assistant",
}

#: The types of values that a template writes by `str`.
_PLAIN = (str, int, float, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta)

_BRACES = re.compile(r"(\{\{|\}\})|\{([^{}]+)\}|([{}])")

#: Names of columns that data sets often have: those of the prompt, and last that of the completion.
_PAIRS = (
    ("prompt", "completion"),
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("prompt", "response"),
)


# Templates


class Template(NamedTuple):
    """A parsed template."""

    texts: list[str]
    """The plain texts before, between and after the columns."""
    columns: list[str]


def parse_template(field: str, template: str) -> Template:
    """Parses a template, which has columns' names in braces. A brace written twice stands for itself.

    Everything between two braces is the name of a column, dots and spaces included. Unlike `str.format`,
    nothing reaches into Python's objects.

    Args:
        field: the recipe's field that holds the template, for messages.
        template: the template's text.

    Raises:
        ValueError: a brace stands alone.
    """
    texts, columns, end = [""], list[str](), 0
    for found in _BRACES.finditer(template):
        texts[-1] += template[end : found.start()]
        end = found.end()
        brace, column, alone = found.groups()
        if alone:
            raise ValueError(
                f"{field}: {template!r} has a {alone} that belongs to no column's name; write it twice"
            )
        if column is None:
            texts[-1] += brace[0]
        else:
            columns.append(column)
            texts.append("")
    texts[-1] += template[end:]
    return Template(texts, columns)


def fill_in(
    data: Any,
    *,
    prompt: Template,
    completion: Template,
    split: str,
    allow_blank: Blank,
    as_turns: bool,
    whole: Sequence[str],
) -> Any:
    """Fills templates in: returns a `datasets` data set of the columns `prompt` and `completion`.

    Args:
        data: the rows.
        prompt, completion: the templates.
        split: the split's name, for messages.
        allow_blank: the places where cells without a value become empty texts.
        as_turns: makes prompt and completion lists of one chat message, the user's and the assistant's.
        whole: columns of decimals that are written as whole numbers, see :func:`find_whole_columns`.

    Raises:
        RecipeError: a column is not there; a cell has no value, or is neither text nor a number; or a
            completion, or every completion, is empty.
    """
    templates = {"prompt": prompt, "completion": completion}
    for name, template in templates.items():
        for column in template.columns:
            _check_column(data, f"{name}_template", column)
    roles = {"prompt": "user", "completion": "assistant"}

    def write(value: Any, column: str, name: str, where: str) -> str:
        if _is_blank(value):
            return _read_blank(where, column, allow_blank, name == "prompt")
        if not isinstance(value, _PLAIN):
            raise RecipeError(
                f"{where} has {_name_kind(value)} in the column {column!r}, neither text nor a number; make "
                "it text"
            )
        return f"{value:.0f}" if column in whole else str(value)

    def fill(row: dict[str, Any], index: int) -> dict[str, Any]:
        filled = {}
        for name, (texts, columns) in templates.items():
            where = name_row(f"{name}_template", index, split)
            cells = [write(row[column], column, name, where) for column in columns]
            filled[name] = texts[0] + "".join(
                cell + text for cell, text in zip(cells, texts[1:], strict=True)
            )
        if not filled["completion"].strip() and allow_blank != "anywhere":
            raise RecipeError(
                f"{name_row('completion_template', index, split)} is filled in to an empty completion, which "
                f"teaches to say nothing; {_suggest_remedy(False)}"
            )
        if not as_turns:
            return filled
        return {name: [{"role": roles[name], "content": text}] for name, text in filled.items()}

    columns = sorted({*prompt.columns, *completion.columns})
    filled = data.select_columns(columns).map(
        fill, with_indices=True, remove_columns=columns, desc="filling in templates"
    )
    completions = (item[0]["content"] if as_turns else item for item in filled["completion"])
    _check_some_text(completions, "completion_template", split)
    return filled


def find_whole_columns(splits: Iterable[Any], columns: Iterable[str]) -> tuple[list[str], list[str]]:
    """Finds columns of whole numbers that were read as decimals.

    A blank cell makes decimals of a CSV file's column of whole numbers. So a column is found if every number
    of every split is whole and a cell is blank. Without a blank cell, the file's author may have meant 3.0.

    Args:
        splits: `datasets` data sets.
        columns: names of columns. Those that hold no decimals are passed over.

    Returns:
        The columns to write as whole numbers, and notes for the user.
    """
    whole, notes = [], []
    for column in sorted(set(columns)):
        values: list[Any] = []
        for data in splits:
            if "float" in str(getattr(data.features.get(column), "dtype", "")):
                values += data[column][:]
        numbers = [value for value in values if not _is_blank(value)]
        if not numbers or not all(value.is_integer() and abs(value) <= 2**53 for value in numbers):
            continue
        first = numbers[0]
        if len(numbers) < len(values):
            whole.append(column)
            notes.append(
                f"the column {column!r} holds whole numbers and blanks, which make decimals of them; it is "
                f"written in whole numbers: {first:.0f}, not {first}"
            )
        else:
            notes.append(
                f"the column {column!r} holds decimals, all of them whole; they are written so: {first}"
            )
    return whole, notes


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


# Chats


def read_chats(
    data: Any,
    *,
    column: str,
    split: str,
    allow_blank: Blank,
    assistant_only: bool,
) -> Any:
    """Reads chats: returns a data set of the column `messages`, in the form that chat templates take.

    Messages of `{role, content}` keep their other keys. Those of ShareGPT, `{from, value}`, lose them.

    Args:
        data: the rows.
        column: the column of chats: lists of messages of either form.
        split: the split's name, for messages of errors.
        allow_blank: the places where a missing content becomes an empty text. An assistant's content is not
            in the prompt.
        assistant_only: whether the loss is on the assistant's contents alone.

    Raises:
        RecipeError: the column is not there; a row is no chat, or has no messages, a message of an unknown
            role or without content, or, with `assistant_only`, no message of the assistant; or all contents
            are empty.
    """
    from datasets import Features, List, Value

    _check_column(data, "messages_column", column)
    data = data.select_columns([column])
    feature = data.features[column]
    keys = getattr(feature, "feature", None)
    if isinstance(keys, dict) and "from" in keys:
        feature = List({"role": Value("string"), "content": Value("string")})

    def read(row: dict[str, Any], index: int) -> dict[str, Any]:
        where = name_row("messages_column", index, split)
        chat = row[column]
        if chat is None or chat == []:
            raise RecipeError(f"{where} has no message in the column {column!r}; leave the row out")
        if not isinstance(chat, list) or not all(isinstance(message, dict) for message in chat):
            kind = f"a list of {_name_kind(chat[0])}" if isinstance(chat, list) else _name_kind(chat)
            raise RecipeError(
                f"{where} has {kind} in the column {column!r}, no chat: a list of {{role, content}} or of "
                "{from, value}"
            )
        messages = [_read_message(message, where, allow_blank) for message in chat]
        if assistant_only and all(message["role"] != "assistant" for message in messages):
            raise RecipeError(
                f"{where} has nothing that the assistant says; leave the row out, or pass "
                "--assistant_only_loss false"
            )
        return {"messages": messages}

    found = data.map(
        read,
        with_indices=True,
        remove_columns=[column],
        features=Features({"messages": feature}),
        desc="reading chats",
    )
    contents = (str(message["content"] or "") for chat in found["messages"] for message in chat)
    _check_some_text(contents, "messages_column", split)
    return found


def _read_message(message: dict[str, Any], where: str, allow_blank: Blank) -> dict[str, Any]:
    """Reads a message of a chat into the form that chat templates take.

    Raises:
        RecipeError: the message has no role, an unknown one, or a content that is missing or no text.
    """
    ours = message.get("role") is not None  # if rows are of both forms, the other form's keys are null
    role, content = (message.get(key) for key in (("role", "content") if ours else ("from", "value")))
    if role is None:
        raise RecipeError(
            f"{where} has a message without a role; a message is {{role, content}} or {{from, value}}, and "
            f"this one has {', '.join(map(str, message)) or 'nothing'}"
        )
    if not isinstance(role, str) or role not in ROLES:
        raise RecipeError(f"{where} has a message of the role {role!r}{nearest(str(role), ROLES)}")
    said = ROLES[role] == "assistant"
    if content is None and not (said and message.get("tool_calls")):
        if not _allows(allow_blank, not said):
            raise RecipeError(
                f"{where} has a message of the role {role!r} without content; {_suggest_remedy(not said)}"
            )
        content = ""
    if content is not None and not isinstance(content, str):
        raise RecipeError(
            f"{where} has a message whose content is {_name_kind(content)}, not text; make it text"
        )
    if said and content is not None and not content.strip() and allow_blank != "anywhere":
        raise RecipeError(
            f"{where} has an empty message of the role {role!r}, which teaches to say nothing; "
            f"{_suggest_remedy(False)}"
        )
    known = {"role": ROLES[role], "content": content}
    return message | known if ours else known


# Texts


def read_texts(data: Any, *, column: str, split: str, allow_blank: Blank, separator: str | None) -> Any:
    """Reads texts: returns a `datasets` data set of the column `text`, with pieces of one text joined.

    Args:
        data: the rows.
        column: the column of texts.
        split: the split's name, for messages.
        allow_blank: "anywhere" makes missing texts empty ones, and allows texts that are empty.
        separator: joins :data:`JOINED` rows at a time to one text. A row may then be empty. None: each row is
            a text.

    Raises:
        RecipeError: the column is not there, a row holds no text, or all texts are empty.
    """
    from datasets import Features, Value

    _check_column(data, "dataset_text_field", column)

    def check(text: Any, index: int) -> str:
        where = name_row("dataset_text_field", index, split)
        if _is_blank(text):
            return _read_blank(where, column, allow_blank, in_prompt=False)
        if not isinstance(text, str):
            raise RecipeError(
                f"{where} has {_name_kind(text)} in the column {column!r}, not text; make it text"
            )
        if separator is None and not text.strip() and allow_blank != "anywhere":
            raise RecipeError(
                f"{where} is empty; if rows are lines of one text, give --join_rows with what stands between "
                f"them; else {_suggest_remedy(False)}"
            )
        return text

    def read(rows: dict[str, list[Any]], indices: list[int]) -> dict[str, list[str]]:
        texts = list(map(check, rows[column], indices))
        return {TEXT: texts if separator is None else [separator.join(texts)]}

    texts = data.select_columns([column]).map(
        read,
        batched=True,
        batch_size=JOINED,
        with_indices=True,
        remove_columns=[column],
        features=Features({TEXT: Value("large_string")}),
        desc="reading texts" if separator is None else "joining rows",
    )
    _check_some_text(texts[TEXT], "dataset_text_field", split)
    return texts


# Checks of rows, and remedies


def _allows(allow_blank: Blank, in_prompt: bool) -> bool:
    return allow_blank == "anywhere" or (allow_blank == "prompt" and in_prompt)


def _suggest_remedy(in_prompt: bool) -> str:
    value = "prompt" if in_prompt else "anywhere"
    return f"fill it in, leave the row out, or if that is meant pass --allow_blank {value}"


def _read_blank(where: str, column: str, allow_blank: Blank, in_prompt: bool) -> str:
    """Reads a cell without a value as an empty text.

    Raises:
        RecipeError: `allow_blank` refuses such a cell there.
    """
    if _allows(allow_blank, in_prompt):
        return ""
    raise RecipeError(
        f"{where} has nothing in the column {column!r} (null, or in a CSV file blank, NA or None); "
        f"{_suggest_remedy(in_prompt)}"
    )


def _name_kind(value: Any) -> str:
    words = {"str": "text", "list": "a list", "dict": "a dictionary", "bytes": "bytes", "NoneType": "nothing"}
    name = type(value).__name__
    return words.get(name, f"a value of the type {name}")


def _check_some_text(texts: Iterable[str], field: str, split: str) -> None:
    if not any(text.strip() for text in texts):
        raise RecipeError(f"{field}: no row of the split {split!r} holds any text")


def _check_column(data: Any, field: str, column: str) -> None:
    """Checks that the column is there.

    Raises:
        RecipeError: the column is not. If no name is similar, the message suggests flags.
    """
    try:
        check_columns(data, {field: column})
    except RecipeError as error:
        flags = _suggest_flags(data)
        if flags is None or "did you mean" in str(error):
            raise
        raise RecipeError(f"{error}; for these: {flags}") from None


def _suggest_flags(data: Any) -> str | None:
    """Suggests the flags to train on `data` with; returns None if the columns' names do not tell."""
    for column, feature in data.features.items():
        keys = getattr(feature, "feature", None)
        kinds = ({"role", "content"}, {"from", "value"})
        of_messages = isinstance(keys, dict) and any(kind <= {*keys} for kind in kinds)
        if of_messages or column in ("messages", "conversations"):
            return f"--messages_column {column}"
    for columns in _PAIRS:
        if {*columns} <= {*data.column_names}:
            *asked, answer = columns
            prompt = f"'{{{asked[0]}}}'"
            if asked != ["prompt"]:
                lines = "".join(f"{{{column}}}\\n" for column in asked)
                prompt = f"$'{lines}'"  # as a shell writes line breaks
            return f"--prompt_template {prompt} --completion_template '{{{answer}}}'"
    return None
