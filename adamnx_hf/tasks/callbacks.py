"""Callbacks of a recipe's Trainer: estimates of curvature for SophiaG, and runs resumed bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback

from adamnx_hf.tasks.randomness import make_generator
from trainer_patches import unwrap_optimizer

__all__ = ["CurvatureCallback", "ResumingCallback"]


class CurvatureCallback(TrainerCallback):
    """Gives an optimizer such as SophiaG an estimate of the Hessian's diagonal every so many steps.

    The optimizer asks for estimates by having an attribute `curvature_every`, in steps, and a method
    `update_curvature(batch_size)`. The method is called with the gradients of a loss against sampled labels.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes one more forward and backward pass on the step's last batch, when an estimate is due."""
        optimizer = unwrap_optimizer(self.trainer.optimizer)
        if not hasattr(optimizer, "update_curvature") or state.global_step % optimizer.curvature_every:
            return
        inputs = self.trainer._prepare_inputs(self.trainer.last_inputs)
        with _keep_buffers(self.trainer.model):
            loss, count = self.trainer.sampled_loss(inputs)
            loss.backward()
        optimizer.update_curvature(count * args.world_size)
        optimizer.zero_grad()


class ResumingCallback(TrainerCallback):
    """Makes a run that goes on from a checkpoint end as an uninterrupted one would.

    The last step is evaluated within training, too, unless `eval_strategy` is "no": after training the
    Trainer may have loaded another step's weights.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._save_later = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tells the training set and the sampler which epoch it is."""
        epoch = int(state.epoch or 0)  # a run that goes on within an epoch has a fraction
        self.trainer.order.set_state(make_generator(args.seed, epoch).get_state())
        random = getattr(self.trainer.train_dataset, "random", None)
        if random is not None:
            random.epoch = epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Requests an evaluation of the last step, and delays a save until the evaluation that follows.

        The checkpoint then holds the evaluation's metrics.
        """
        last = control.should_training_stop or state.epoch == int(state.epoch)
        if control.should_save and last and args.eval_strategy == "epoch":
            control.should_save, self._save_later = False, True
        if control.should_training_stop and args.eval_strategy == "steps":
            control.should_evaluate = True  # whatever eval_steps and eval_delay say
        return self._log_first(args, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Requests an evaluation of the last step, if there was none, and a save that was delayed."""
        if control.should_training_stop and args.eval_strategy != "no" and not _is_evaluated(state):
            control.should_evaluate = True
        control.should_save, self._save_later = control.should_save or self._save_later, False
        return self._log_first(args, control)

    def _log_first(self, args: Any, control: Any) -> Any:
        # Losses that are not logged before an evaluation or the end count for the next epoch, or never. A run
        # that goes on from a checkpoint lacks the losses since the last log.
        needed = control.should_save or control.should_evaluate or control.should_training_stop
        if args.logging_strategy != "no" and needed:
            control.should_log = True
        return control


def _is_evaluated(state: Any) -> bool:
    """Says whether the present step has been evaluated."""
    return any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)


@contextlib.contextmanager
def _keep_buffers(model: Any) -> Iterator[None]:
    """Restores the model's buffers afterwards, so that batch norms count each batch once."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
