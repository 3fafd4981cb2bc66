"""The speed of a run in training, and of its data pipeline and its model on their own."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TrainerCallback

from adamnx_hf.tasks.randomness import keep_random_states

__all__ = ["TrainClock", "measure"]


class TrainClock(TrainerCallback):
    """Times the training part of each epoch, without evaluation and saving between epochs."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        """Seconds of each epoch, by the step at which the epoch ended."""
        self._started: float | None = None
        self._passed = 0.0
        self._first_step: int | None = None
        self._last_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remembers the step that the timed part starts at."""
        if self._first_step is None:
            self._first_step = state.global_step
        elif self._passed and state.epoch == int(state.epoch):
            # The checkpoint was saved at an epoch's last step, before the epoch's end.
            self.seconds[state.global_step], self._passed = self._passed, 0.0
        self._last_step = state.global_step

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._started, self._passed = time.perf_counter() - self._passed, 0.0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops the clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[state.global_step] = time.perf_counter() - (self._started or 0.0)
        self._started, self._last_step = None, state.global_step

    def state(self) -> dict[str, Any]:
        """Returns what a run that goes on from here has to know, for JSON; see :meth:`go_on`."""
        passed = 0.0 if self._started is None else time.perf_counter() - self._started
        return {"seconds": self.seconds, "passed": passed, "first_step": self._first_step}

    def go_on(self, state: dict[str, Any]) -> None:
        """Takes over the times of an earlier part of the run.

        Args:
            state: what :meth:`state` returned then, read from JSON. It is empty if that part is not known.
        """
        self.seconds = {int(step): seconds for step, seconds in state.get("seconds", {}).items()}
        self._passed, self._first_step = state.get("passed", 0.0), state.get("first_step")

    def rate(self, batch_size: float) -> float | None:
        """Returns `batch_size` times the steps a second; None before an epoch has ended."""
        total = sum(self.seconds.values())
        steps = self._last_step - (self._first_step or 0)
        return round(steps * batch_size / total, 1) if total else None


def measure(trainer: Any, seconds: float = 3.0) -> dict[str, float | None]:
    """Measures units a second of the data pipeline alone, and of forward and backward passes on one batch.

    Weights, buffers, gradients and random states stay as they were.

    Args:
        trainer: a RecipeTrainer, after training.
        seconds: how long each of the two is measured, or for two batches where those take longer.

    Returns:
        `data` and `model`. `data` is None where an epoch has a single batch, `model` where FSDP or DeepSpeed
        spread the model.
    """
    with keep_random_states(trainer.args.device):
        return _measure(trainer, seconds)


def _measure(trainer: Any, seconds: float) -> dict[str, float | None]:
    # One process is timed, also in a run of many. A model whose weights are spread over them cannot be.
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    model = trainer.model_wrapped if trainer.args.world_size == 1 else trainer.model
    model.train()

    def synchronize() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def time_units(step: Any, most: float) -> float | None:
        count, started = 0, time.perf_counter()
        for done, size in enumerate(step, 1):
            count += size
            synchronize()
            if done >= 2 and time.perf_counter() - started >= most:
                break
        return round(count / (time.perf_counter() - started), 1) if count else None

    batches = iter(trainer.get_train_dataloader())
    first = trainer._prepare_inputs(next(batches))  # starting the workers is not timed
    size = trainer.count_units(first)

    def load() -> Any:
        yield from (trainer.count_units(trainer._prepare_inputs(batch)) for batch in batches)

    def learn() -> Any:
        for _ in range(10_000):
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, dict(first))  # as in training, also where that is TRL's
            loss.backward()
            yield size

    data_speed = time_units(load(), seconds)
    if sharded:
        return {"data": data_speed, "model": None}
    buffers = [buffer.clone() for buffer in model.buffers()]
    next(learn())  # the first pass compiles and allocates
    synchronize()
    model_speed = time_units(learn(), seconds)
    model.zero_grad()
    with torch.no_grad():
        for buffer, kept in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(kept)
    return {"data": data_speed, "model": model_speed}
