"""People's own texts: blank cells, odd columns, chats of all kinds, and what is said of them."""

import math

import pytest
from datasets import Dataset, Features, Json, load_dataset

pytest.importorskip("trl")
from adamnx_hf import cli, recipes
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.recipes import policy
from adamnx_hf.tasks import language_modeling as task
from adamnx_hf.tasks.language_modeling.dataset import prepare_rows
from adamnx_hf.tasks.sft_trainer import RecipeSFTConfig


def prepared(splits, config=None, **fields):
    """What TRL gets of the splits, as a run has it, and the notes."""
    fields = {"model_name_or_path": "none", **fields}
    args = RecipeSFTConfig("unused", use_cpu=True, report_to="none", **(config or {}))
    return prepare_rows(splits, task.Arguments(**fields), args)


def error_of(splits, config=None, **fields):
    with pytest.raises(RecipeError) as caught:
        prepared(splits, config, **fields)
    return str(caught.value)


def pairs(prompt, completion, **fields):
    return {"prompt_template": prompt, "completion_template": completion, **fields}


@pytest.fixture(scope="module")
def alpaca(tmp_path_factory):
    """A CSV file as a spreadsheet writes it: an optional column has blanks, one of whole numbers, too."""
    folder = tmp_path_factory.mktemp("alpaca")
    (folder / "train.csv").write_text(
        "instruction,input,output,count\nAdd,2 and 3,5,10\nGreet,,Hello,\nSay no,loud,NA,12\n"
    )
    (folder / "test.csv").write_text("instruction,input,output,count\nAdd,1 and 1,2,7\n")
    data = load_dataset(str(folder))
    return [data["train"], data["test"]]


# Blank cells


def test_a_blank_cell_is_refused_with_its_row(alpaca):
    assert error_of(alpaca, **pairs("{instruction} {input}", "{output}")) == (
        "prompt_template: row 1 of the split 'train' has nothing in the column 'input' (null, or in a CSV "
        "file blank, NA or None); fill it in, leave the row out, or if that is meant pass --allow_blank "
        "prompt"
    )
    message = error_of(alpaca, **pairs("{instruction} {input}", "{output}", allow_blank="prompt"))
    assert "completion_template: row 2 of the split 'train' has nothing in the column 'output'" in message
    assert message.endswith("--allow_blank anywhere")
    whole = [alpaca[1], alpaca[0]]  # the evaluation split is looked at, too
    assert "row 1 of the split 'test'" in error_of(whole, **pairs("{instruction} {input}", "{output}"))


def test_columns_may_have_the_names_that_trl_gives_them():
    data = Dataset.from_list([{"prompt": "a", "completion": "b", "text": "c", "messages": CHAT}])
    (train, _), _ = prepared([data, data], **pairs("{completion}{text}", "{prompt}"))
    assert train[:] == {"prompt": ["bc"], "completion": ["a"]}
    assert prepared([data, data], messages_column="messages")[0][0][:] == {"messages": [CHAT]}
    config = {"dataset_text_field": "prompt"}
    assert prepared([data, data], config)[0][0][:] == {"text": ["a"]}


def test_a_run_with_a_blank_cell_ends_in_one_line(tmp_path, capsys):
    """Before the model is looked for: there is none."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("q,a\nx,1\n,2\n")
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"task: language_modeling\nmodel_name_or_path: none\ndataset_name: {tmp_path}/data\nuse_cpu: true\n"
        "eval_split: train\nprompt_template: '{q}'\ncompletion_template: '{a}'\n"
    )
    out = tmp_path / "out"
    assert cli.main(["run", str(path), "--output_dir", str(out)]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adamnx-hf")]
    assert "prompt_template: row 1 of the split 'train' has nothing in the column 'q'" in line
    assert not out.exists() or not any(out.iterdir())


def test_a_blank_cell_that_is_meant_is_an_empty_text(alpaca):
    (train, _), _ = prepared(alpaca, **pairs("{instruction} {input}:", " {output}", allow_blank="anywhere"))
    assert train[:] == {
        "prompt": ["Add 2 and 3:", "Greet :", "Say no loud:"],
        "completion": [" 5", " Hello", " "],
    }
    fields = pairs("{instruction} {input}", "{output}", allow_blank="anywhere", use_chat_template=True)
    (train, _), _ = prepared(alpaca, **fields)
    assert train[2]["completion"] == [{"role": "assistant", "content": ""}]


@pytest.mark.parametrize("blank", [None, math.nan])
def test_null_and_nan_are_blanks(blank):
    data = Dataset.from_dict({"q": ["a", "b"], "n": [2.5, blank]})
    message = error_of([data, data], **pairs("{q}", "{n}"))
    assert "row 1 of the split 'train' has nothing in the column 'n'" in message
    (train, _), _ = prepared([data, data], **pairs("{q}", "={n}", allow_blank="anywhere"))
    assert train["completion"][:] == ["=2.5", "="]


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_completion_teaches_nothing(answer):
    data = Dataset.from_dict({"q": ["", "b"], "a": ["x", answer]})
    message = error_of([data, data], **pairs("{q}", "{a}", allow_blank="prompt"))
    assert "completion_template: row 1 of the split 'train' is filled in to an empty completion" in message
    (train, _), _ = prepared([data, data], **pairs("{q}", "{a}", allow_blank="anywhere"))
    assert train[:] == {"prompt": ["", "b"], "completion": ["x", answer]}
    none = Dataset.from_dict({"q": ["a"], "a": [answer]})
    message = error_of([data, none], **pairs("{q}", "{a}", allow_blank="anywhere"))
    assert message == "completion_template: no row of the split 'test' holds any text"


def test_whole_numbers_stay_whole_beside_blanks(alpaca):
    """Also in a split without blanks: `datasets` reads it as the first, in decimals."""
    (train, test), (note,) = prepared(alpaca, **pairs("{instruction}", "{count}", allow_blank="anywhere"))
    assert train["completion"][:] == ["10", "", "12"] and test["completion"][:] == ["7"]
    assert note == (
        "the column 'count' holds whole numbers and blanks, which make decimals of them; it is written in "
        "whole numbers: 10, not 10.0"
    )


def test_decimals_without_blanks_are_written_as_they_are():
    data = Dataset.from_dict({"a": [3.0, 4.0], "b": [1.5, 2.0], "c": [3, 4]})
    (train, _), (note,) = prepared([data, data], **pairs("{a}", "{b} {c} {a}"))
    assert train["completion"][:] == ["1.5 3 3.0", "2.0 4 4.0"]
    assert note == "the column 'a' holds decimals, all of them whole; they are written so: 3.0"


def test_a_recipe_of_the_hub_may_say_where_blanks_are_meant():
    assert all(policy.HUB["allow_blank"](value) is None for value in ("nowhere", "prompt", "anywhere"))
    assert policy.HUB["allow_blank"]("everywhere") is not None


# Templates


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{my question}?", "Why?"),
        ("{a-b} {a.b} {a:>9} {a!r}", "dash dot spec conversion"),
        ('{{"q": "{q}"}}', '{"q": "first"}'),
        ("{{{q}}}", "{first}"),
        ("{q.__class__}", "no class"),
        ("{q[0]}{q}", "no index" + "first"),
    ],
)
def test_a_name_in_braces_is_a_columns_name_and_nothing_else(template, expected):
    row = {
        "my question": "Why", "a-b": "dash", "a.b": "dot", "a:>9": "spec", "a!r": "conversion",
        "q": "first", "q.__class__": "no class", "q[0]": "no index",
    }  # fmt: skip
    data = Dataset.from_list([row])
    (train, _), _ = prepared([data, data], **pairs(template, "x"))
    assert train["prompt"][:] == [expected]


@pytest.mark.parametrize("template", ["{q.__class__}", "{q[0]}", "{q!r}", "{q:>9}", "{0}", "{ q }"])
def test_what_is_no_column_is_refused(template):
    data = Dataset.from_dict({"q": ["first"]})
    message = error_of([data, data], **pairs(template, "x"))
    assert message.startswith(f"prompt_template: the data set has no column {template[1:-1]!r}; ")


@pytest.mark.parametrize("template", ["{}", "{q", "q}", '{"q": "{q}"}'])
def test_a_brace_alone_is_refused(template):
    with pytest.raises(ValueError, match=r"prompt_template: .* has a [{}] that belongs to no column's name"):
        task.Arguments(model_name_or_path="none", **pairs(template, "x"))


def test_templates_without_a_column_are_refused():
    with pytest.raises(ValueError, match="neither names a column; write it in braces"):
        task.Arguments(model_name_or_path="none", **pairs("(question)", "(answer)"))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (["a", "b"], "a list"),
        ({"b": 1}, "a dictionary"),
        (b"abc", "bytes"),
    ],
)
def test_what_is_no_text_is_not_written_as_python_has_it(value, kind):
    data = Dataset.from_list([{"q": "x", "a": value}])
    message = error_of([data, data], **pairs("{q}", "{a}"))
    assert message == (
        f"completion_template: row 0 of the split 'train' has {kind} in the column 'a', neither text nor a "
        "number; make it text"
    )


# The columns that are there

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        (
            {"prompt": "a", "completion": "b"},
            "--prompt_template '{prompt}' --completion_template '{completion}'",
        ),
        (
            {"instruction": "a", "input": "b", "output": "c", "id": 1},
            "--prompt_template $'{instruction}\\n{input}\\n' --completion_template '{output}'",
        ),
        ({"messages": CHAT, "prompt": "a"}, "--messages_column messages"),
        ({"dialog": [{"from": "human", "value": "Hi"}]}, "--messages_column dialog"),
        ({"zzz": "a"}, None),
    ],
)
def test_an_error_has_the_flags_for_what_is_there(row, flags):
    data = Dataset.from_list([row])
    end = f"; for these: {flags}" if flags else ""
    expected = f"the data set has no column 'question'; valid: {', '.join(row)}{end}"
    assert error_of([data, data], **pairs("{question}", "{answer}")) == f"prompt_template: {expected}"
    assert error_of([data, data], messages_column="question") == f"messages_column: {expected}"
    config = {"dataset_text_field": "question"}
    assert error_of([data, data], config) == f"dataset_text_field: {expected}"


# Chats


def test_sharegpts_chats_are_read():
    turns = [
        ("system", "Be brief."),
        ("human", "Hi"),
        ("gpt", "Hello."),
        ("user", "Bye"),
        ("assistant", "Bye."),
    ]
    chat = [{"from": who, "value": what, "weight": 1} for who, what in turns]
    data = Dataset.from_list([{"conversations": chat, "id": "x"}])
    (train, _), _ = prepared([data, data], messages_column="conversations")
    roles = ["system", "user", "assistant", "user", "assistant"]
    expected = [{"role": role, "content": what} for role, (_, what) in zip(roles, turns, strict=True)]
    assert train[:] == {"messages": [expected]}


def test_chats_of_both_kinds_in_one_file_are_read(tmp_path):
    (tmp_path / "train.jsonl").write_text(
        '{"m": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}\n'
        '{"m": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}\n'
    )
    data = load_dataset(str(tmp_path))["train"]
    (train, _), _ = prepared([data, data], messages_column="m")
    assert [[dict(message) for message in chat] for chat in train["messages"]] == [CHAT, CHAT]


def test_a_message_keeps_what_else_it_holds():
    """A call of a tool has no content, and is none that is missing."""
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "clock"}]}
    answer = {"role": "tool", "content": "12:00", "tool_calls": None}
    said = {"role": "gpt", "content": "Noon.", "tool_calls": None}
    data = Dataset.from_list([{"chat": [call, answer, said]}])
    (train, _), _ = prepared([data, data], messages_column="chat")
    assert train[0]["messages"] == [call, answer, said | {"role": "assistant"}]


def message(role="user", content="Hi"):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ("Hi", "has text in the column 'chat', no chat: a list of {role, content} or of {from, value}"),
        (["Hi"], "has a list of text in the column 'chat', no chat"),
        ({"role": "user", "content": "Hi"}, "has a dictionary in the column 'chat', no chat"),
        (
            [{"speaker": "a", "text": "b"}],
            "has a message without a role; a message is {role, content} or {from, value}, and this one has "
            "speaker, text",
        ),
        (
            [message("narrator")],
            "has a message of the role 'narrator'; valid: system, developer, user, assistant, tool, human",
        ),
        ([{"from": "humna", "value": "Hi"}], "has a message of the role 'humna'; did you mean 'human'?"),
        (
            [message(content=None)],
            "has a message of the role 'user' without content; fill it in, leave the row out, or if that is "
            "meant pass --allow_blank prompt",
        ),
        (
            [message(), message("assistant", None)],
            "has a message of the role 'assistant' without content; fill it in, leave the row out, or if "
            "that is meant pass --allow_blank anywhere",
        ),
        (
            [message(), message("assistant", " ")],
            "has an empty message of the role 'assistant', which teaches to say nothing; fill it in, leave",
        ),
        (
            [message(content=[{"type": "text", "text": "Hi"}])],
            "has a message whose content is a list, not text; make it text",
        ),
        ([], "has no message in the column 'chat'; leave the row out"),
        (None, "has no message in the column 'chat'; leave the row out"),
        (
            [message()],
            "has nothing that the assistant says; leave the row out, or pass --assistant_only_loss false",
        ),
    ],
)
def test_what_is_no_chat_is_refused_with_its_row(chat, reason):
    """As `datasets` reads JSON lines whose rows are of different kinds."""
    rows = Dataset.from_dict({"chat": [CHAT, chat]}, features=Features({"chat": Json()}))
    config = {"assistant_only_loss": True}
    where = "messages_column: row 1 of the split 'train' "
    assert error_of([rows, rows], config, messages_column="chat").startswith(where + reason)


def test_contents_that_are_blank_where_it_is_meant():
    chats = [CHAT, [message("system", None), message("user", ""), message("assistant", "Hello.")]]
    data = Dataset.from_dict({"chat": chats})
    assert "role 'system' without content" in error_of([data, data], messages_column="chat")
    (train, _), _ = prepared([data, data], messages_column="chat", allow_blank="prompt")
    assert [said["content"] for said in train[1]["messages"]] == ["", "", "Hello."]
    silent = Dataset.from_dict({"chat": [[message("user", ""), message("assistant", None)]]})
    fields = {"messages_column": "chat", "allow_blank": "anywhere"}
    assert prepared([data, data], **fields)[0][0][1] == train[1]
    assert error_of([data, silent], **fields) == "messages_column: no row of the split 'test' holds any text"


# Texts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "has nothing in the column 'line' (null, or in a CSV file blank, NA or None); fill it in"),
        (
            "",
            "is empty; if rows are lines of one text, give --join_rows with what stands between them; else",
        ),
        (" \n", "is empty; if rows are lines of one text"),
        (3, "has a value of the type int in the column 'line', not text; make it text"),
        (["a"], "has a list in the column 'line', not text; make it text"),
    ],
)
def test_what_is_no_text_is_refused_with_its_row(text, reason):
    data = Dataset.from_dict({"line": ["a", text]}, features=Features({"line": Json()}))
    config = {"dataset_text_field": "line"}
    message = error_of([data, data], config)
    assert message.startswith(f"dataset_text_field: row 1 of the split 'train' {reason}")
    if text is None or isinstance(text, str):
        (train, _), _ = prepared([data, data], config, allow_blank="anywhere")
        assert train[:] == {"text": ["a", text or ""]}


def test_lines_of_one_text_may_be_empty_but_not_all():
    data = Dataset.from_dict({"text": ["a", "", "b"]})
    (train, _), _ = prepared([data, data], join_rows="\n")
    assert train[:] == {"text": ["a\n\nb"]}
    empty = Dataset.from_dict({"text": ["", " "]})
    expected = "dataset_text_field: no row of the split 'test' holds any text"
    assert error_of([data, empty], join_rows="\n") == expected
    words = Dataset.from_dict({"text": ["a", "b"]})
    assert error_of([words, empty], allow_blank="anywhere") == expected
    assert error_of([words, words.select([])]) == "eval_split: the split 'test' has no rows"


def test_allow_blank_is_a_flag_with_three_values(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("task: language_modeling\nmodel_name_or_path: none\nuse_cpu: true\n")
    flags = ["--allow_blank", "prompt"]
    assert recipes.resolve(str(path), flags).task_arguments.allow_blank == "prompt"
    assert recipes.resolve(str(path)).task_arguments.allow_blank == "nowhere"
    with pytest.raises(RecipeError) as caught:
        recipes.resolve(str(path), ["--allow_blank", "yes"])
    assert str(caught.value) == "allow_blank: 'yes' is not valid; valid: nowhere, prompt, anywhere"
