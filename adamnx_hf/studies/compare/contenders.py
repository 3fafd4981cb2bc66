"""The optimizers of a comparison, and the values that are tried for each."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.studies.compare.refine import AUTO

__all__ = ["Contender", "Values", "parse_contenders", "parse_family", "parse_sweeps"]

#: Values of the swept fields, as they stand on the command line.
Values = dict[str, str]

# Fields that belong to the comparison, not to an optimizer.
_RESERVED = {
    "seed": "is the comparison's: give the first one as a flag, and how many with --seeds",
    "optim": "is what is compared; name optimizers with --optim",
    "optim_args": "is made of the settings themselves: NAME KEY=VALUE",
    "output_dir": "is the comparison's: --output-dir",
    **dict.fromkeys(
        (
            "train_split",
            "eval_split",
            "hold_out",
            "hold_out_seed",
            "eval_on_held_out",
            "sweep_hold_out",
            "eval_on_sweep_rows",
            "max_train_samples",
            "max_eval_samples",
        ),
        "has to be the same for all: give it as a flag",
    ),
}


# Settings that may be given without their names, in this order: `graft adamw adamnx`.
_BY_PLACE = {"graft": ("direction", "length")}


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer with settings: `adamnx beta2_schedule=adam`, `adamw adam_beta2=0.95`, `graft sgd lion`."""

    label: str

    @property
    def optim(self) -> str:
        """The name as in `TrainingArguments(optim=...)`."""
        return self.label.split()[0]

    @property
    def settings(self) -> dict[str, str]:
        """The settings that follow the name."""
        settings, by_place = {}, iter(_BY_PLACE.get(self.optim, ()))
        for word in self.label.split()[1:]:
            named = re.fullmatch(r"(\w+)=(.+)", word)
            key, value = named.groups() if named else (next(by_place, None), word)
            if key is None:
                raise RecipeError(f"--optim {self.label!r}: write NAME KEY=VALUE ..., in quotes")
            settings[key] = value
        return settings

    @property
    def folder(self) -> str:
        """The name of the folder of its runs."""
        return re.sub(r"[^\w.=-]+", "-", self.label)

    def place(self, values: Values, number: int) -> Path:
        """Returns the folder of one run, relative to those of all.

        Args:
            values: those of the swept fields.
            number: counts the seeds, from 0 on.
        """
        chosen = "-".join(f"{key}={value}" for key, value in values.items()) or "as-given"
        return Path(self.folder, chosen, f"seed{number}")

    def flags(self, fields: Sequence[str], optim_args: str | None = None) -> list[str]:
        """Returns its flags for `adamnx-hf run`; settings that are no field of the recipe join optim_args.

        Args:
            fields: the names of the recipe's fields.
            optim_args: those that the recipe gives to the optimizer; its own settings are added, and win.
        """
        from trainer_patches.optim_args import split

        own = {key: value for key, value in self.settings.items() if key in fields}
        others = {key: value for key, value in self.settings.items() if key not in fields}
        words = [f"--optim={self.optim}", *(f"--{key}={value}" for key, value in own.items())]
        if others:
            together = {**(split(optim_args) if optim_args else {}), **others}
            words.append("--optim_args=" + ",".join(f"{key}={value}" for key, value in together.items()))
        return words

    def grid(self, sweeps: Mapping[str, Sequence[str]]) -> list[Values]:
        """Returns all combinations of the sweeps' values, without the fields that its own settings fix."""
        swept = {key: values for key, values in sweeps.items() if key not in self.settings}
        return [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]


def parse_contenders(labels: Sequence[str]) -> tuple[Contender, ...]:
    """Returns the optimizers that `--optim` names.

    Raises:
        RecipeError: there are fewer than two, one is given twice, or one sets what is the comparison's.
    """
    contenders = [Contender(" ".join(label.split())) for label in labels]
    seen: dict[Any, str] = {}
    for one in contenders:
        if not one.label:
            raise RecipeError("--optim: got an empty name; leave it out")
        if reserved := [key for key in one.settings if key in _RESERVED]:
            raise RecipeError(f"--optim {one.label!r}: {reserved[0]} {_RESERVED[reserved[0]]}")
        for key in ((one.optim, frozenset(one.settings.items())), one.folder):
            if key in seen:
                raise RecipeError(f"--optim: {one.label!r} is {seen[key]!r} again; each is compared once")
            seen[key] = one.label
    if len(contenders) < 2:
        raise RecipeError(f"--optim: needs two optimizers or more; got {labels[0]!r}")
    return tuple(contenders)


def parse_family(
    pairs: Sequence[Sequence[str]], contenders: Sequence[Contender]
) -> tuple[tuple[Contender, Contender], ...]:
    """Returns the pairs that are judged together; for none, the first contender with each other one.

    Raises:
        RecipeError: a pair is not two of the contenders, or is named twice.
    """
    if not pairs:
        return tuple((contenders[0], other) for other in contenders[1:])
    known, family = {one.label: one for one in contenders}, []
    for pair in pairs:
        labels = [" ".join(str(label).split()) for label in pair]
        if len(labels) != 2 or labels[0] == labels[1] or not {*labels} <= {*known}:
            raise RecipeError(
                f"family: {pair!r} is not two of the optimizers; write [[A, B], ...] with their names"
            )
        family.append((known[labels[0]], known[labels[1]]))
    if len(set(map(frozenset, family))) < len(family):
        raise RecipeError("family: names a pair twice; each is judged once")
    return tuple(family)


def parse_sweeps(texts: Sequence[str]) -> dict[str, list[str]]:
    """Returns the values of each `FIELD=VALUE,VALUE` by its field, or the word of `learning_rate=auto`.

    Raises:
        RecipeError: a text is not of that form, or its field is given twice or is the comparison's.
    """
    sweeps: dict[str, list[str]] = {}
    if f"learning_rate={AUTO}" in texts:
        if len(texts) > 1:
            raise RecipeError("--sweep: learning_rate=auto cannot be swept together with another field")
        return {"learning_rate": [AUTO]}
    for text in texts:
        key, equals, values = text.partition("=")
        words = [word.strip() for word in values.split(",") if word.strip()]
        if not equals or len(set(map(_as_number, words))) < max(2, len(words)):
            raise RecipeError(f"--sweep {text!r}: write FIELD=VALUE,VALUE,... with two values or more")
        if key in _RESERVED:
            raise RecipeError(f"--sweep: {key} {_RESERVED[key]}")
        if key in sweeps:
            raise RecipeError(f"--sweep: {key} is given twice")
        sweeps[key] = words
    return sweeps


def _as_number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word
