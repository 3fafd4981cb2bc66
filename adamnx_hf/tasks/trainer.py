"""The Trainer of all tasks: Transformers' own, with what the paper's experiments need."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import SchedulerType, Trainer, TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_reduce_on_plateau_schedule
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from adamnx_hf.common.errors import RecipeError, nearest
from adamnx_hf.common.plain_values import plain_value
from adamnx_hf.optim import param_groups
from adamnx_hf.tasks.base import check_range, make_field
from adamnx_hf.tasks.callbacks import CurvatureCallback, ResumingCallback
from adamnx_hf.tasks.randomness import keep_random_states
from trainer_patches import checkpoints

__all__ = ["RecipeTrainer", "RecipeTrainingArguments", "convert_shares"]


#: torch.compile's modes; inductor's own list is slow to import.
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", "lite")
#: Arguments of schedules that are words.
_WORDS = ("decay_type", "warmup_type", "mode", "threshold_mode")


@dataclasses.dataclass
class RecipeTrainingArguments(TrainingArguments):
    """TrainingArguments with the fields that a recipe adds."""

    decay_rule: Literal["trainer", "paper"] = make_field(
        "trainer",
        "Which parameters decay: 'trainer': those of the Transformers Trainer; 'paper': the weights of "
        "convolutions and linear layers only.",
    )
    channels_last: bool = make_field(False, "Model and images in the channels_last memory format.")
    # Transformers 5 has dropped this field.
    overwrite_output_dir: bool = make_field(False, "Write into output_dir even if it holds something.")

    def __post_init__(self) -> None:
        if not 0 < self.num_train_epochs < math.inf:
            raise ValueError(f"num_train_epochs: {self.num_train_epochs} is not above 0, or not finite")
        check_range(self, ("seed", "data_seed"), 0, 2**32 - 1)  # NumPy takes no other
        check_range(self, ("dataloader_num_workers",), 0, 1024)
        check_range(self, ("label_smoothing_factor",), 0, 1)
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"max_steps: {self.max_steps} is neither -1, for all epochs, nor above 0")
        for name in (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "dataloader_prefetch_factor",
            "save_steps",
            "eval_steps",
            "logging_steps",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < 2**31:
                raise ValueError(f"{name}: {value} is not {'above 0' if value <= 0 else 'below 2^31'}")
        if self.max_grad_norm is not None and self.max_grad_norm < 0:
            raise ValueError(f"max_grad_norm: {self.max_grad_norm} is below 0; 0 is without clipping")
        try:
            super().__post_init__()
        except ValueError as error:
            if "support bf16" not in str(error):
                raise
            name = "bf16" if self.bf16 else "bf16_full_eval"
            raise ValueError(
                f"{name}: there is no GPU here that computes in bfloat16; pass --{name} false for float32, "
                "or --use_cpu true for bfloat16 on the CPU"
            ) from error
        schedule: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(self.lr_scheduler_type)]
        if schedule is get_reduce_on_plateau_schedule:  # hands its keywords on
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau
        valid = list(inspect.signature(schedule).parameters)[1:]  # the first is the optimizer
        if self.torch_compile_mode not in (None, *_MODES):
            raise ValueError(
                f"torch_compile_mode: {self.torch_compile_mode!r} is not known"
                f"{nearest(self.torch_compile_mode, _MODES)}"
            )
        kwargs: Any = self.lr_scheduler_kwargs or {}
        for key, value in kwargs.items():
            if not isinstance(value, str if key in _WORDS else int | float | None):
                what = "a word" if key in _WORDS else "a number"
                raise ValueError(f"lr_scheduler_kwargs: {key}: {value!r} is not {what}")
            if key not in valid:
                name = plain_value(self.lr_scheduler_type)
                raise ValueError(f"lr_scheduler_kwargs: {name} has no {key!r}{nearest(key, valid)}")

    @property
    def quiet(self) -> bool:
        """True in a process that shows no progress bars."""
        return bool(self.disable_tqdm) or self.local_process_index > 0


@contextlib.contextmanager
def _replace_field(args: Any, name: str, value: Any) -> Iterator[None]:
    """Replaces the value of a field of `args` until the context ends."""
    given = getattr(args, name)
    setattr(args, name, value)
    try:
        yield
    finally:
        setattr(args, name, given)


def convert_shares(kwargs: dict[str, Any] | None, num_training_steps: int) -> dict[str, Any]:
    """Returns `lr_scheduler_kwargs` with shares of the run converted to steps.

    A fraction below 1 for `num_decay_steps` and the like is a share of all steps, as in Transformers' own
    `warmup_steps`. The schedule then keeps its shape whatever the length of the run.
    """
    steps = {"num_warmup_steps", "num_stable_steps", "num_decay_steps"}
    return {
        key: round(value * num_training_steps) if key in steps and 0 < value < 1 else value
        for key, value in (kwargs or {}).items()
    }


class RecipeTrainer(Trainer):
    """A Trainer that knows the paper's decay rule, shares in schedules, and transforms on the device.

    A run that goes on from a checkpoint is bit for bit the uninterrupted one. A training set draws its random
    numbers from its attribute `random`, a :class:`adamnx_hf.tasks.randomness.RowRandom`.

    Args:
        train_transform, eval_transform: transform a batch's `pixel_values` on the device, in training and in
            evaluation. A batch's `draws`, if there are any, are the second argument. None: the data set has
            transformed the images.
        args: RecipeTrainingArguments.
        kwargs: further arguments of the Trainer.

    Raises:
        RecipeError: `label_smoothing_factor` where the loss knows no smoothing, or fewer training examples
            than a batch where incomplete batches are left out.
    """

    args: RecipeTrainingArguments
    # The Trainer's own hints are too narrow or too wide for these.
    model: Any
    model_wrapped: Any
    processing_class: Any
    train_dataset: Any
    eval_dataset: Any

    #: Whether the Trainer can smooth the labels. It can where an example has one class.
    smooths_labels = True

    def __init__(
        self,
        *,
        train_transform: Callable[..., Tensor] | None = None,
        eval_transform: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.args.label_smoothing_factor and not self.smooths_labels:
            raise RecipeError(
                "label_smoothing_factor: the loss of this task knows no smoothing; leave it at 0"
            )
        self._check_batches()
        if self.args.device.type == "cpu":
            self.args.dataloader_pin_memory = False  # torch would warn that there is no device to pin for
        self.order = torch.Generator()
        """The generator that draws an order by length. A callback seeds the generator in each epoch."""
        self.transforms = {True: train_transform, False: eval_transform}
        if self.args.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.notes: list[str] = []
        """Notes for the user about the data, one line each."""
        self.dropped: dict[str, int] = {}
        """The number of examples that are left out, by the recipe's field of their split."""
        self.add_callback(CurvatureCallback(self))
        self.add_callback(ResumingCallback(self))

    def _check_batches(self) -> None:
        """Checks that an epoch has a batch: the Trainer would else end at once, with an untrained model."""
        if self.train_dataset is None:  # it only evaluates
            return
        examples, processes = len(self.train_dataset), self.args.world_size
        needed = self.args.train_batch_size * processes
        if self.args.dataloader_drop_last and examples < needed:
            on_each = f" on each of {processes} processes" if processes > 1 else ""
            raise RecipeError(
                f"dataloader_drop_last: leaves out all {examples} training examples: they are fewer than a "
                f"batch of {self.args.train_batch_size}{on_each}; pass --dataloader_drop_last false, or "
                f"--per_device_train_batch_size {max(examples // processes, 1)}"
            )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Returns the names of the parameters that decay, by `args.decay_rule`."""
        if self.args.decay_rule == "trainer":
            return super().get_decay_parameter_names(model)
        groups = param_groups(model, 1.0, rule=self.args.decay_rule)
        decaying = {id(param) for group in groups if group["weight_decay"] for param in group["params"]}
        return [name for name, param in model.named_parameters() if id(param) in decaying]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Creates the learning-rate schedule; see :func:`convert_shares`."""
        kwargs: Any = self.args.lr_scheduler_kwargs
        in_steps = convert_shares(kwargs, num_training_steps)
        with _replace_field(self.args, "lr_scheduler_kwargs", in_steps), warnings.catch_warnings():
            # num_stable_steps=0 is no mistake: the rate decays from the first step on.
            warnings.filterwarnings("ignore", message="Both num_training_steps and num_stable_steps")
            return super().create_scheduler(num_training_steps, optimizer)

    #: Whether an evaluation is under way, or has failed.
    evaluating = False

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates as the Trainer does, and restores the random states afterwards."""
        self.evaluating = True
        # A loader's iterator draws a number from dropout's generator. A run that goes on from a checkpoint
        # which was written before the evaluation would not draw that number.
        with keep_random_states(self.args.device):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        self.evaluating = False
        return metrics

    def get_train_dataloader(self) -> Any:
        """Returns the Trainer's loader, with a generator of its own for the workers' seeds.

        New workers would take their seeds from the global generator, which dropout uses. Workers that live on
        from the epoch before take none, but a run that goes on from a checkpoint always starts new ones.
        """
        loader = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # Accelerate may have wrapped the loader
        inner.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _get_train_sampler(self, *args: Any) -> Any:
        sampler = super()._get_train_sampler(*args)
        if isinstance(sampler, LengthGroupedSampler):  # Accelerate itself seeds a RandomSampler by the epoch
            sampler.generator = self.order
        return sampler

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Returns a loader of every example: `dataloader_drop_last` is for training alone."""
        with _replace_field(self.args, "dataloader_drop_last", False):
            return super().get_eval_dataloader(eval_dataset)

    #: Whether the weights loaded last have other names in their file than in the model.
    _renamed = False

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_renamed(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_renamed(str(self.state.best_model_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        not_saved = set(getattr(self.model, "_keys_to_ignore_on_save", None) or ())
        self._renamed = bool(set(load_result.missing_keys) - not_saved or load_result.unexpected_keys)
        if not self._renamed:
            super()._issue_warnings_after_load(load_result)

    def _load_renamed(self, folder: str) -> None:
        """Loads weights that Transformers has saved under other names than the model's, such as a ViT's.

        The Trainer itself loads only the weights whose names agree.

        Raises:
            RecipeError: the checkpoint's weights are not those of this model.
        """
        if not self._renamed:
            return
        self._renamed = False
        read, info = type(self.model).from_pretrained(
            folder, config=self.model.config, dtype=self.model.dtype, output_loading_info=True
        )
        if keys := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
            raise RecipeError(f"{folder}: its weights are not those of this model ({', '.join(keys)[:200]})")
        self.model.load_state_dict(read.state_dict())

    #: The checkpoints of earlier runs: those that existed when this run saved its first one.
    _earlier: frozenset[Path] | None = None

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Writes `checkpoint-N` into a new folder, and keeps `save_total_limit` checkpoints.

        The Trainer itself writes into a folder that a killed run has left, and keeps incomplete checkpoints
        instead of complete ones. It goes by modification times, so that after a change of the clock it
        removes the newest checkpoint.
        """
        folder = Path(self._get_output_dir(trial=trial))
        checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self._earlier is None:
            self._earlier = frozenset(checkpoints.find_checkpoints(folder).values())
        self._earlier -= {checkpoint}
        if self.args.should_save:
            checkpoints.remove(checkpoint)
        self.accelerator.wait_for_everyone()
        try:
            with _replace_field(self.args, "save_total_limit", None):
                super()._save_checkpoint(model, trial)
        except BaseException:
            if self.args.should_save:  # the disk may be full
                with contextlib.suppress(OSError):
                    checkpoints.remove(checkpoint)
            raise
        limit = self.args.save_total_limit or 0
        if self.args.should_save and limit > 0:  # without a limit the Trainer keeps all, too
            self._rotate(folder, limit)

    def _rotate(self, folder: Path, limit: int) -> None:
        """Removes incomplete checkpoints, and the oldest others beyond `limit` save the best and the last."""
        earlier = self._earlier or frozenset()
        there = {
            path: (path not in earlier, number)
            for number, path in checkpoints.find_checkpoints(folder).items()
        }
        incomplete = [path for path in there if path in earlier and checkpoints.why_incomplete(path)]
        kept = sorted(there.keys() - set(incomplete), key=lambda path: there[path])
        best = self.state.best_model_checkpoint and Path(self.state.best_model_checkpoint).resolve()
        spare = [path for path in kept[:-1] if path.resolve() != best]
        too_many = max(len(kept) - limit, 0)
        for path in [*incomplete, *spare[:too_many]]:
            with contextlib.suppress(OSError):
                checkpoints.remove(path)

    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)
        draws = (inputs.pop("draws"),) if "draws" in inputs else ()
        pixels = inputs.get("pixel_values")
        if pixels is not None:
            transform = self.transforms[self.model.training]
            if transform is not None:
                pixels = transform(pixels, *draws)
            if self.args.channels_last:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            inputs["pixel_values"] = pixels
        return inputs

    def count_units(self, inputs: Any) -> int:
        """Counts how many of the task's UNIT a batch holds."""
        return len(inputs["labels"])

    def count_units_per_example(self) -> float:
        """Counts how many of the task's UNIT a training example holds on average."""
        return 1.0

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Makes a forward and backward pass, and keeps the batch for :class:`CurvatureCallback`."""
        self.last_inputs = inputs
        return super().training_step(model, inputs, *args, **kwargs)

    def sampled_loss(self, inputs: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Returns the loss against labels drawn from the model's own prediction, and the number of labels.

        The Gauss-Newton-Bartlett estimate is made of this loss's gradients (arXiv:2305.14342, Sec. 2.3).
        """
        features = {key: value for key, value in inputs.items() if key != "labels"}
        with self.compute_loss_context_manager():
            logits = self.select_logits(self.model_wrapped(**features).logits, inputs["labels"])
        labels = torch.distributions.Categorical(logits=logits.detach()).sample()
        return nn.functional.cross_entropy(logits, labels), len(labels)

    def select_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the logits that the loss against `labels` counts, (count, classes) float32."""
        return logits.float().flatten(0, -2)
