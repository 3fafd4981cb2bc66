"""Trains the demo's runs."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.studies.demo.study import BATCH_SIZE, WEIGHT_DECAY, Demo, Run, label_of
from trainer_patches.unwrap import unwrap_optimizer

if TYPE_CHECKING:
    import numpy as np
    from transformers import Trainer

__all__ = ["load_digits", "make_trainer", "train_all"]


def load_digits() -> Any:
    """Loads the digits as an image data set: a quarter for testing, always the same ones."""
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image
    from sklearn import datasets

    digits = datasets.load_digits()
    features = Features({"image": Image(), "label": ClassLabel(names=[str(name) for name in range(10)])})
    images = [(image * 255 / 16).astype(np.uint8) for image in digits.images]
    data = Dataset.from_dict({"image": images, "label": digits.target}, features=features)

    def to_tensors(batch: dict[str, Any]) -> dict[str, Any]:
        pixels = np.stack([np.asarray(image, dtype=np.float32) for image in batch["image"]])
        return {"pixel_values": list(pixels[:, None] / 127.5 - 1), "labels": batch["label"]}

    split = data.train_test_split(test_size=0.25, seed=0, stratify_by_column="label")
    return split.with_transform(to_tensors)


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def make_trainer(demo: Demo, optim: str, seed: int, data: Any, scratch: str) -> Trainer:
    """Makes the Trainer of one run.

    Args:
        demo: what is trained.
        optim, seed: of the run.
        data: see :func:`load_digits`.
        scratch: a folder that the Trainer may write into.
    """
    from transformers import (
        PrinterCallback,
        Trainer,
        TrainingArguments,
        ViTConfig,
        ViTForImageClassification,
        set_seed,
    )

    steps = math.ceil(len(data["train"]) / BATCH_SIZE) * demo.epochs
    training_args = TrainingArguments(
        output_dir=scratch,
        optim=optim,
        learning_rate=demo.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 10,
        weight_decay=WEIGHT_DECAY,
        num_train_epochs=demo.epochs,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=len(data["test"]),
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,  # the transform makes the model's columns only when they are read
        dataloader_pin_memory=False,
        use_cpu=True,  # as fast as any GPU at this size, and it repeats exactly
        seed=seed,
    )
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        id2label={i: str(i) for i in range(10)},
        initializer_range=0.1,  # ViT's 0.02 is for a width of 768; here it would only waste epochs
    )
    set_seed(seed)  # the same weights for every optimizer
    trainer = Trainer(
        model=ViTForImageClassification(config),
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        compute_metrics=_accuracy,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def train_all(demo: Demo, data: Any, console: Any) -> tuple[list[Run], np.ndarray]:
    """Trains all runs, seed by seed, and says how each went.

    Args:
        demo: what is trained.
        data: see :func:`load_digits`.
        console: of rich.

    Returns:
        The runs, and what the first of them makes of the test set: logits, (test digits, classes).

    Raises:
        RecipeError: an optimizer's name is not valid; nothing has been trained by then.
    """
    from rich import progress

    with _one_quiet_thread(), tempfile.TemporaryDirectory() as scratch:
        for optim in demo.optims:
            _check_optimizer(demo, optim, data, scratch)
        runs: list[Run] = []
        logits: Any = None
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TextColumn("remaining"),
            progress.TimeRemainingColumn(compact=True),
        )
        with progress.Progress(*columns, console=console, speed_estimate_period=60) as bar:
            task = bar.add_task("", total=len(demo.optims) * len(demo.seeds) * demo.epochs)
            for seed in demo.seeds:
                for optim in demo.optims:
                    run = Run(optim, seed)
                    bar.update(task, description=f"{label_of(optim)}, seed {seed}")
                    trainer = make_trainer(demo, optim, seed, data, scratch)
                    _train(trainer, run, lambda: bar.advance(task))
                    if logits is None:
                        logits = trainer.predict(data["test"]).predictions
                    runs.append(run)
                    last = run.epochs[-1]
                    bar.console.print(
                        f"{label_of(optim):>10}, seed {seed}: test accuracy {last['test_accuracy']:.2%}, "
                        f"test loss {last['test_loss']:.4f}, {run.seconds:.0f} s"
                    )
    return runs, logits


@contextlib.contextmanager
def _one_quiet_thread() -> Iterator[None]:
    """Trains with one thread, and without warnings: deprecations are not the demo's topic.

    The matrices are too small to share: a second thread mostly waits. One also makes runs repeat exactly.
    """
    import torch
    import transformers

    verbosity, threads = transformers.logging.get_verbosity(), torch.get_num_threads()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity(verbosity)


def _check_optimizer(demo: Demo, optim: str, data: Any, scratch: str) -> None:
    from transformers import Trainer

    try:
        trainer: Any = make_trainer(demo, optim, demo.seeds[0], data, scratch)
        Trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    except (ValueError, ImportError) as error:
        raise RecipeError(f"--optim {optim}: {' '.join(str(error).split())}") from error


def _train(trainer: Trainer, run: Run, advance: Callable[[], None]) -> None:
    """Trains, and fills `run`; calls `advance` after each epoch."""
    from transformers import TrainerCallback

    class Record(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **event: Any) -> None:
            metrics = {f"test_{key}": event["metrics"][f"eval_{key}"] for key in ("accuracy", "loss")}
            run.epochs.append({"epoch": len(run.epochs) + 1} | metrics)
            advance()

    trainer.add_callback(Record())
    started = time.perf_counter()
    trainer.train()
    run.seconds = time.perf_counter() - started
    optimizer = unwrap_optimizer(trainer.optimizer)
    run.optimizer = type(optimizer).__name__
    if betas := optimizer.param_groups[0].get("betas"):
        run.betas = [float(beta) for beta in betas]
