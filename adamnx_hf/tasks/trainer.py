"""The Trainer of all tasks: Transformers' own, with what the paper's experiments need."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable
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
from adamnx_hf.tasks.callbacks import CurvatureCallback, ResumingCallback
from adamnx_hf.tasks.randomness import keep_random_states
from trainer_patches import checkpoints

__all__ = ["RecipeTrainer", "RecipeTrainingArguments", "in_steps"]


#: torch.compile's modes; inductor's own list is slow to import.
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", "lite")
#: Arguments of schedules that are words.
_WORDS = ("decay_type", "warmup_type", "mode", "threshold_mode")


@dataclasses.dataclass
class RecipeTrainingArguments(TrainingArguments):
    """TrainingArguments and what a recipe adds to them."""

    decay_rule: Literal["trainer", "paper"] = dataclasses.field(
        default="trainer",
        metadata={
            "help": "Which parameters decay: 'trainer': as the Transformers Trainer has it; 'paper': the "
            "weights of convolutions and linear layers only."
        },
    )
    channels_last: bool = dataclasses.field(
        default=False, metadata={"help": "Model and images in the channels_last memory format."}
    )
    overwrite_output_dir: bool = dataclasses.field(  # Transformers 5 has dropped it
        default=False, metadata={"help": "Write into output_dir even if it holds something."}
    )

    def __post_init__(self) -> None:
        if not 0 < self.num_train_epochs < math.inf:
            raise ValueError(f"num_train_epochs: {self.num_train_epochs} is not above 0, or not finite")
        for name in ("seed", "data_seed"):
            seed = getattr(self, name)
            if seed is not None and not 0 <= seed < 2**32:  # NumPy takes no other
                raise ValueError(f"{name}: {seed} is not from 0 to {2**32 - 1}")
        if not 0 <= self.dataloader_num_workers <= 1024:
            raise ValueError(f"dataloader_num_workers: {self.dataloader_num_workers} is not from 0 to 1024")
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
        if not 0 <= self.label_smoothing_factor <= 1:
            raise ValueError(f"label_smoothing_factor: {self.label_smoothing_factor} is not from 0 to 1")
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
            near = nearest(self.torch_compile_mode, _MODES)
            raise ValueError(f"torch_compile_mode: {self.torch_compile_mode!r} is not known{near}")
        kwargs: Any = self.lr_scheduler_kwargs or {}
        for key, value in kwargs.items():
            fits = isinstance(value, str if key in _WORDS else int | float | None)
            if not fits:
                what = "a word" if key in _WORDS else "a number"
                raise ValueError(f"lr_scheduler_kwargs: {key}: {value!r} is not {what}")
        for key in kwargs:
            if key not in valid:
                name = plain_value(self.lr_scheduler_type)
                raise ValueError(f"lr_scheduler_kwargs: {name} has no {key!r}{nearest(key, valid)}")

    @property
    def quiet(self) -> bool:
        """True in a process that shows no progress bars."""
        return bool(self.disable_tqdm) or self.local_process_index > 0


def in_steps(kwargs: dict[str, Any] | None, num_training_steps: int) -> dict[str, Any]:
    """Returns `lr_scheduler_kwargs` with shares of the run turned into steps.

    A fraction below 1 for `num_decay_steps` and the like is a share of all steps, as it is for Transformers'
    own `warmup_steps`: a schedule then keeps its shape whatever the length of the run.
    """
    steps = {"num_warmup_steps", "num_stable_steps", "num_decay_steps"}
    return {
        key: round(value * num_training_steps) if key in steps and 0 < value < 1 else value
        for key, value in (kwargs or {}).items()
    }


class RecipeTrainer(Trainer):
    """A Trainer that knows the paper's decay rule, shares in schedules, and transforms on the device.

    From any of its checkpoints it goes on as if it had not been interrupted, bit for bit. A training set that
    draws random numbers has them from a :class:`adamnx_hf.tasks.randomness.RowRandom`, its `random`.

    Args:
        train_transform, eval_transform: applied to `pixel_values` on the device, batch by batch, in
            training and in evaluation; with the batch's `draws`, if it has any. None: the data set has done
            it.
        args: RecipeTrainingArguments.
        kwargs: Trainer's.

    Raises:
        RecipeError: `label_smoothing_factor` where the loss knows no smoothing, or fewer training examples
            than a batch where incomplete batches are left out.
    """

    args: RecipeTrainingArguments

    #: Whether the Trainer can smooth the labels: those of one class an example.
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
            self.args.dataloader_pin_memory = False  # nothing to pin it for, and torch would warn
        self.order = torch.Generator()
        """The generator that an order by length is drawn from; seeded at the beginning of each epoch."""
        self.transforms = {True: train_transform, False: eval_transform}
        if self.args.channels_last:
            net: Any = self.model
            net.to(memory_format=torch.channels_last)
        self.notes: list[str] = []
        """Notes for the user about the data, in a line each."""
        self.dropped: dict[str, int] = {}
        """How many examples nothing is trained or judged on, by the recipe's field of their split."""
        self.add_callback(CurvatureCallback(self))
        self.add_callback(ResumingCallback(self))

    def _check_batches(self) -> None:
        """Checks that an epoch has a batch: the Trainer would stop at once, and leave an untrained model."""
        if self.train_dataset is None:  # it only evaluates
            return
        examples, processes = len(self.train_dataset), self.args.world_size  # type: ignore[arg-type]
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
        """Creates the learning-rate schedule; see :func:`in_steps`."""
        given = self.args.lr_scheduler_kwargs
        self.args.lr_scheduler_kwargs = in_steps(given, num_training_steps)  # type: ignore[arg-type]
        try:
            with warnings.catch_warnings():
                # num_stable_steps=0 is meant: decay from the first step on.
                warnings.filterwarnings("ignore", message="Both num_training_steps and num_stable_steps")
                return super().create_scheduler(num_training_steps, optimizer)
        finally:
            self.args.lr_scheduler_kwargs = given

    #: Whether it is evaluating, or has failed in it.
    evaluating = False

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates as the Trainer does, and leaves random states alone."""
        self.evaluating = True
        # An iterator of a loader draws a number from the generator that dropout uses: a run that goes on from
        # a checkpoint would lack it, where the checkpoint was written before the evaluation.
        with keep_random_states(self.args.device):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        self.evaluating = False
        return metrics

    def get_train_dataloader(self) -> Any:
        """Returns the Trainer's loader, with a generator of its own for the workers' seeds.

        From the global one they would take a number of dropout's, save where workers live on from the epoch
        before: those of a run that goes on from a checkpoint do not.
        """
        loader = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # in Accelerate's wrapper
        inner.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _get_train_sampler(self, *args: Any) -> Any:
        sampler = super()._get_train_sampler(*args)
        if isinstance(sampler, LengthGroupedSampler):  # Accelerate seeds RandomSampler by the epoch
            sampler.generator = self.order
        return sampler

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Returns a loader of every example: `dataloader_drop_last` is for training alone."""
        given, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = given

    #: Whether the weights that were loaded last have other names in the file than in the model.
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
        """Loads weights that Transformers has saved by other names than the model's, as its ViT's are.

        The Trainer itself loads those with names that are alike and leaves the rest of the model as it is.

        Raises:
            RecipeError: the checkpoint is not one of this model.
        """
        if not self._renamed:
            return
        self._renamed = False
        model: Any = self.model
        read, told = type(model).from_pretrained(
            folder, config=model.config, dtype=model.dtype, output_loading_info=True
        )
        if told["missing_keys"] or told["unexpected_keys"]:
            keys = sorted({*told["missing_keys"], *told["unexpected_keys"]})
            raise RecipeError(f"{folder}: its weights are not those of this model ({', '.join(keys)[:200]})")
        model.load_state_dict(read.state_dict())

    #: The checkpoints that were there when this run saved its first one.
    _earlier: frozenset[Path] | None = None

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Writes `checkpoint-N` anew, whatever is there by that name, and keeps `save_total_limit` of them.

        The Trainer itself writes into a folder that a kill has cut short, counts it among those it keeps,
        and goes by modification times, which after a change of the clock have it remove the newest.
        """
        folder = Path(self._get_output_dir(trial=trial))
        checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self._earlier is None:
            self._earlier = frozenset(checkpoints.find_checkpoints(folder).values())
        self._earlier -= {checkpoint}
        if self.args.should_save:
            checkpoints.remove(checkpoint)
        if self.args.world_size > 1:
            self.accelerator.wait_for_everyone()
        given, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        except BaseException:
            if self.args.should_save:  # it would take room on a disk that is full
                with contextlib.suppress(OSError):
                    checkpoints.remove(checkpoint)
            raise
        finally:
            self.args.save_total_limit = given
        if self.args.should_save and given and given > 0:  # else all are kept, as the Trainer has it
            self._rotate(folder, given)

    def _rotate(self, folder: Path, limit: int) -> None:
        """Removes checkpoints that are incomplete, then the oldest, but the best one and the last."""
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
            transform = self.transforms[self.model.training]  # type: ignore[union-attr]
            if transform is not None:
                pixels = transform(pixels, *draws)
            if self.args.channels_last:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            inputs["pixel_values"] = pixels
        return inputs

    def units_in(self, inputs: Any) -> int:
        """Counts how many of the task's UNIT a batch holds."""
        return len(inputs["labels"])

    def units_per_example(self) -> float:
        """Returns how many of the task's UNIT a training example holds on average."""
        return 1.0

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Makes a forward and backward pass; keeps the batch for :class:`CurvatureCallback`."""
        self.last_inputs = inputs
        return super().training_step(model, inputs, *args, **kwargs)

    def sampled_loss(self, inputs: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Returns the loss against labels drawn from the model's own prediction, and their number.

        What the Gauss-Newton-Bartlett estimate is made of (arXiv:2305.14342, Sec. 2.3).
        """
        features = {key: value for key, value in inputs.items() if key != "labels"}
        model: Any = self.model_wrapped
        with self.compute_loss_context_manager():
            logits = self.counted(model(**features).logits.float(), inputs["labels"])
        labels = torch.distributions.Categorical(logits=logits.detach()).sample()
        return nn.functional.cross_entropy(logits, labels), len(labels)

    def counted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the logits that a loss against `labels` is made of, (count, classes)."""
        return logits.flatten(0, -2)
