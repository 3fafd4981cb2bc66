from inspect import Parameter
from typing import Literal

import pytest
import torch

from trainer_patches.optim_args import convert, list_options, split

KINDS = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def optimizer(
    params,
    lr: float | torch.Tensor = 1e-3,
    betas: tuple[float, float] = (0.9, 0.99),
    *,
    fused: bool | None = None,
    warmup: int = 0,
    mode: Literal["fast", "slow"] = "fast",
    code: str = "",
    momentum=0.9,
    anything=None,
    sizes: list[int] | None = None,
    any_length: tuple[float, ...] = (),
):
    pass


def parse(text):
    return convert(text, list_options(optimizer, KINDS), "optim='x'", {"weight_decay": "weight_decay"})


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a=1", {"a": "1"}),
        ("a=1,b=2", {"a": "1", "b": "2"}),
        (" a = 1 , b=(0.9, 0.99) ", {"a": "1", "b": "(0.9, 0.99)"}),
        ("a=[1,(2,3)],b=x=y", {"a": "[1,(2,3)]", "b": "x=y"}),
    ],
)
def test_split(text, pairs):
    assert split(text) == pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "'a' is not key=value"),
        ("a=1,,b=2", "'' is not key=value"),
        ("a=", "'a=' is not key=value"),
        ("a=1,a=2", "'a' is given twice"),
        ("a=(1,2", r"missing '\)'"),
    ],
)
def test_split_names_what_is_malformed(text, message):
    with pytest.raises(ValueError, match=message):
        split(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr=0.5", 0.5),
        ("lr=1", 1.0),
        ("lr=1e-3", 1e-3),
        ("lr=inf", float("inf")),
        ("lr=-Inf", float("-inf")),
        ("momentum=inf", float("inf")),
        ("code=inf", "inf"),
        ("betas=(0.9,0.95)", (0.9, 0.95)),
        ("betas=[0.9,0.95]", (0.9, 0.95)),
        ("fused=true", True),
        ("fused=False", False),
        ("fused=none", None),
        ("warmup=10", 10),
        ("mode=slow", "slow"),
        ("code=abc", "abc"),
        ("code=12", "12"),
        ("momentum=0.8", 0.8),
        ("anything=[1,2]", [1, 2]),
        ("anything=text", "text"),
        ("sizes=[1,2]", [1, 2]),
        ("any_length=(1,2,3)", (1.0, 2.0, 3.0)),
    ],
)
def test_values_have_the_type_of_their_option(text, value):
    (converted,) = parse(text).values()
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("warmup=1.5", "warmup=1.5 does not fit optim='x': warmup is a whole number"),
        ("warmup=true", "whole number"),
        ("fused=yes", "fused is true or false or none"),
        ("fused=1", "true or false"),
        ("lr=fast", "lr is a number"),
        ("lr=true", "lr is a number"),
        ("lr=nan", "lr is a number"),
        ("lr=infinite", "lr is a number"),
        ("warmup=inf", "warmup is a whole number"),
        ("lr=none", "lr is a number"),
        ("betas=0.9", "betas is"),
        ("betas=(0.9,0.95,0.99)", "betas is"),
        ("betas=(0.9,x)", "betas is"),
        ("mode=medium", "mode is fast or slow"),
        ("momentum=abc", "momentum is a number"),
        ("sizes=[1.5]", "sizes is"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_an_unknown_key_is_named_with_the_nearest_and_the_list():
    with pytest.raises(
        ValueError, match=r"'fusd' is not an option of optim='x'. Did you mean 'fused'\? Valid: any"
    ):
        parse("fusd=true")


def test_a_key_that_is_set_elsewhere_says_where():
    with pytest.raises(ValueError, match=r"TrainingArguments\(weight_decay=0.1\)"):
        parse("weight_decay=0.1")


def test_a_mapping_is_refused_with_the_text_to_write():
    with pytest.raises(
        TypeError, match=r"a dict instead of text; write it as optim_args='beta2=0\.95,fused=True'"
    ):
        split({"beta2": 0.95, "fused": True})
    with pytest.raises(
        TypeError, match=r"a list instead of text; write it as optim_args='key=value,key=value'"
    ):
        split(["beta2=0.95"])
