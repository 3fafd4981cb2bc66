"""The fields of a recipe that say which data, and how images become a network's input."""

from __future__ import annotations

import dataclasses
import math
from pathlib import PurePosixPath
from typing import Any

from adamnx_hf.common.plain_values import read_json
from adamnx_hf.common.splits import PartOfSplit
from adamnx_hf.tasks.base import check_range, make_field

__all__ = ["IMAGES_DISPLACE", "DataArguments", "ImageArguments", "train_fast", "train_images_fast"]


#: Fields of image tasks that leave other fields of the recipe without effect, where a flag gives them.
IMAGES_DISPLACE = {
    "architecture": ("model_name_or_path", "architecture_options"),
    "model_name_or_path": ("architecture", "architecture_options"),
}


@dataclasses.dataclass
class DataArguments:
    """The fields of a recipe that choose the data. Every task has them."""

    dataset_name: str | None = make_field(
        None,
        "Hub name of a data set, or a local one: a folder, or a file of CSV, JSON or Parquet.",
        data=True,
        neutral=True,
    )
    dataset_config_name: str | None = make_field(
        None, "Configuration of the data set.", data=True, neutral=True
    )
    dataset_revision: str | None = make_field(
        None, "Branch, tag or commit of the data set on the Hub.", data=True, neutral=True
    )
    data_files: dict | str | None = make_field(
        None,
        "Files of each split in the data set's repository or folder, as load_dataset takes them, as JSON "
        'on the command line: {"train": ["a/*.parquet"], ...}.',
        data=True,
        neutral=True,
    )
    train_split: str = make_field(
        "train", "Split to train on, or a part of it by its rows: train[:90%%]; see also hold_out.", data=True
    )
    eval_split: str = make_field(
        "test", "Split to evaluate on; for a data set without one, see hold_out.", data=True
    )
    max_train_samples: int | None = make_field(None, "Train on so many examples, the first ones.", data=True)
    max_eval_samples: int | None = make_field(
        None, "Evaluate on so many examples, the first ones.", data=True
    )
    hold_out: int = make_field(
        0,
        "Percent of the training rows to leave out: drawn at random, the same share of each class.",
        data=True,
    )
    hold_out_seed: int = make_field(
        0, "Seed of the rows that hold_out draws. The seed of the run does not change them.", data=True
    )
    eval_on_held_out: bool = make_field(
        False, "Evaluate on the rows that hold_out takes out, not on eval_split.", data=True
    )
    sweep_hold_out: int = make_field(
        0,
        "Percent of the rows left by hold_out to leave out, too: `compare` chooses settings by them.",
        data=True,
    )
    eval_on_sweep_rows: bool = make_field(
        False, "Evaluate on the rows that sweep_hold_out takes out, not on eval_split.", data=True
    )

    def __post_init__(self) -> None:
        if isinstance(self.data_files, str):
            self.data_files = read_json(self.data_files)
        _check_data_files(self.data_files)
        for name in ("max_train_samples", "max_eval_samples"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name}: {count} is not a number of examples; at least 1")
        check_range(self, ("hold_out", "sweep_hold_out"), 0, 50, "not a percentage")
        check_range(self, ("hold_out_seed",), 0, 2**32 - 1)
        for name, rows in (("eval_on_held_out", "hold_out"), ("eval_on_sweep_rows", "sweep_hold_out")):
            if getattr(self, name) and not getattr(self, rows):
                raise ValueError(f"{name}: nothing is held out; set {rows}, too")

    @property
    def trained_split(self) -> str:
        """The name of the rows that are trained on, for messages."""
        held_out = self.hold_out or self.sweep_hold_out
        return self._name_part(
            f"{self.train_split} without the rows held out" if held_out else self.train_split, 0
        )

    @property
    def judged_split(self) -> str:
        """The name of the rows that are judged on, for messages."""
        held_out = self.eval_on_held_out or self.eval_on_sweep_rows
        return self._name_part(f"{self.train_split}, the rows held out" if held_out else self.eval_split, 1)

    def _name_part(self, name: str, which: int) -> str:
        loaded: Any = getattr(self, "_loaded", None)
        return name if loaded is None else PartOfSplit(name, *loaded[which])


@dataclasses.dataclass
class ImageArguments(DataArguments):
    """The fields of tasks on images: the column, the network, and how images become the network's input."""

    image_column: str = make_field("image", "Column of the images.", data=True, neutral=True)
    architecture: str | None = make_field(None, "A network, from scratch.")
    architecture_options: dict | str | None = make_field(
        None, "Changes to the network, as JSON on the command line."
    )
    model_name_or_path: str | None = make_field(
        None, "Instead of architecture: a model to fine-tune, from the Hub or a folder."
    )
    image_mean: list[float] = make_field([0.5, 0.5, 0.5], "Subtracted from the channels of images in [0, 1].")
    image_std: list[float] = make_field([0.5, 0.5, 0.5], "The channels are then divided by these.")
    flip_probability: float = make_field(0.5, "Probability of mirroring a training image.")
    keep_decoded: bool = make_field(False, "Decode every image once and keep them all in memory.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.architecture_options, str):
            self.architecture_options = read_json(self.architecture_options)
        if bool(self.architecture) == bool(self.model_name_or_path):
            raise ValueError("give either architecture or model_name_or_path")
        probabilities = [name for name in vars(self) if name.endswith("_probability")]
        check_range(self, probabilities, 0, 1, "not a probability")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3 or not all(map(math.isfinite, getattr(self, name))):
                raise ValueError(f"{name}: needs 3 numbers, one a channel, got {getattr(self, name)}")
        if min(self.image_std) <= 0:
            raise ValueError(
                f"image_std: the channels are divided by it; {min(self.image_std)} is not above 0"
            )


def train_images_fast() -> dict[str, Any]:
    """Returns the values of `--fast` for any task on images: bfloat16, channels_last and torch.compile."""
    return {**train_fast(), "channels_last": True, "torch_compile": True}


def train_fast() -> dict[str, Any]:
    """Returns the values of `--fast` for any task: bfloat16, also on a CPU where there is no GPU."""
    import torch

    # Transformers refuses bf16 without a GPU unless use_cpu asks for the CPU.
    return {"bf16": True, "use_cpu": not torch.accelerator.is_available()}


def _check_data_files(data_files: Any) -> None:
    """Checks that `data_files` names files of the data set's repository: `load_dataset` takes others, too.

    Raises:
        ValueError: a name leads elsewhere, or files are not named by split.
    """
    if data_files is None:
        return
    if not isinstance(data_files, dict) or not data_files:
        raise ValueError(f"data_files: {data_files!r} does not name files by split")
    for split, patterns in data_files.items():
        for pattern in patterns if patterns and isinstance(patterns, list) else [patterns]:
            if (
                not isinstance(pattern, str)
                or ":" in pattern
                or pattern.startswith(("/", "~", "\\"))
                or ".." in PurePosixPath(pattern).parts
            ):
                raise ValueError(
                    f"data_files: {split}: {pattern!r} is no file or pattern in the data set's repository"
                )
