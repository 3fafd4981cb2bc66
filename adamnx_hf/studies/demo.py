"""`adamnx-hf demo`: a small vision transformer, trained by the Trainer with AdamNX and with AdamW.

The data are scikit-learn's handwritten digits (1,797 scans, 8×8 pixels), the model a ViT of 58,570
parameters, from scratch. The optimizers are compared in pairs: for each seed they start from the same
weights and see the same batches, at the same learning rate and schedule. The rate was chosen for AdamW: of
1e-3, 2e-3, 3e-3, 5e-3, 8e-3 and 1.2e-2 the one with the best final test loss and accuracy over seeds 0, 1
and 2, which favours AdamW a little. AdamNX takes it as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
import platform
import statistics
import sys
import tempfile
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamnx_hf import __version__
from adamnx_hf.common.drawing import PALETTE
from adamnx_hf.common.errors import number
from adamnx_hf.common.files import entries, save_figure, write_text
from adamnx_hf.studies.paired import Difference, paired_difference

if TYPE_CHECKING:
    import numpy as np
    from transformers import Trainer

__all__ = ["Run", "add_arguments", "run", "verdict"]

MADE_BY = "adamnx-hf demo"
RESULTS, CURVES = "results.json", "curves.png"
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
DATA = "scikit-learn digits"
MODEL = "ViT, 58,570 parameters"
LABELS = {"adamnx": "AdamNX", "adamw_torch_fused": "AdamW"}
MINUS = "\N{MINUS SIGN}"


@dataclasses.dataclass
class Run:
    """One training run, as `results.json` has it."""

    optim: str
    seed: int
    optimizer: str = ""
    """The class, and below the betas, that the Trainer really used."""
    betas: list[float] | None = None
    seconds: float = 0.0
    epochs: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """Per epoch: `epoch`, `test_accuracy`, `test_loss`."""

    @property
    def label(self) -> str:
        """The optimizer's name for people."""
        return LABELS.get(self.optim, self.optim)


def verdict(first: str, second: str, loss: Difference, accuracy: Difference) -> str:
    """What the two differences (first − second) allow to be said, in one line."""
    findings = []
    for metric, difference, better in (("test loss", loss, -1), ("test accuracy", accuracy, 1)):
        if difference.sign is None:
            finding = "cannot be judged from these seeds"
        elif difference.sign == 0:
            finding = "no difference shown (the interval contains 0)"
        else:
            finding = f"{first} is {'better' if difference.sign == better else 'worse'} than {second} here"
        findings.append(f"{metric}: {finding}")
    return f"{'; '.join(findings)}. One small task: not a general result."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the demo's options to `parser`."""
    parser.add_argument("--output-dir", type=Path, default=Path("demo-output"), help="default: %(default)s")
    parser.add_argument(
        "--overwrite-output-dir", action="store_true", help="write even if the folder holds other files"
    )
    parser.add_argument(
        "--optim",
        nargs="+",
        default=["adamnx", "adamw_torch_fused"],
        metavar="NAME",
        help="names as in TrainingArguments(optim=...); the first is compared with each other one",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=number(int, 0), default=[0, 1, 2], metavar="SEED", help="default: 0 1 2"
    )
    parser.add_argument("--epochs", type=number(int, 1), default=16, help="default: %(default)s")
    parser.add_argument(
        "--learning-rate",
        type=number(float, 0, inclusive=False),
        default=LEARNING_RATE,
        help="for all optimizers; the default, %(default)s, was chosen for AdamW",
    )


def run(args: argparse.Namespace) -> int:
    """Trains, prints the table and writes `curves.png` and `results.json`.

    Args:
        args: what :func:`add_arguments` asked for.

    Raises:
        SystemExit: the arguments do not fit together, or the output folder holds other files.
    """
    for name in ("optim", "seeds"):
        values = getattr(args, name)
        if len(set(values)) < len(values):
            _stop(f"--{name} {' '.join(map(str, values))} names one twice")
    _check_output_dir(args.output_dir, args.overwrite_output_dir)
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _stop(f"--output-dir {args.output_dir}: {error.strerror}")
    # All of the extra at once: better now than after the training.
    for module in ("matplotlib", "scipy.stats", "sklearn"):
        importlib.import_module(module)
    from rich.console import Console

    console = Console(highlight=False)
    started = time.perf_counter()
    with console.status("Loading PyTorch, Transformers and the digits ..."):
        data = _digits()
        import torch
        import transformers

    verbosity = transformers.logging.get_verbosity()
    threads = torch.get_num_threads()
    transformers.logging.set_verbosity_error()
    # The matrices are too small to share: a second thread mostly waits. It also makes runs repeat exactly.
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
            warnings.simplefilter("ignore")  # Transformers' and torch's deprecations are not the demo's topic
            runs, logits = _train_all(args, data, scratch, console)
    finally:
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity(verbosity)

    differences = _differences(runs, args.optim)
    _write_results(args, runs, differences)
    _draw(args, runs, data, logits)
    _print_table(console, args, runs, differences)
    console.print(
        f"\nDone in {time.perf_counter() - started:.0f} s. Numbers: {args.output_dir / RESULTS}. "
        f"Picture: {args.output_dir / CURVES}",
        soft_wrap=True,
    )
    return 0


def _stop(message: str) -> None:
    sys.exit(f"adamnx-hf demo: error: {message}")


def _check_output_dir(folder: Path, overwrite: bool) -> None:
    """Stops where `folder` holds what no demo has written."""
    if folder.exists() and not folder.is_dir():
        _stop(f"--output-dir {folder} is a file")
    if overwrite or not folder.exists():
        return
    names = {path.name for path in entries(folder)}
    try:
        ours = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["made_by"] == MADE_BY
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if foreign := sorted(names - {RESULTS, CURVES} if ours else names):
        _stop(
            f"{folder} holds files that are not the demo's ({', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}): choose another --output-dir, "
            f"or pass --overwrite-output-dir"
        )


def _digits() -> Any:
    """The digits as an image data set, a quarter of them for testing, and always the same ones."""
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image
    from sklearn.datasets import load_digits

    digits = load_digits()
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


def _make_trainer(args: argparse.Namespace, optim: str, seed: int, data: Any, scratch: str) -> Trainer:
    from transformers import (
        PrinterCallback,
        Trainer,
        TrainingArguments,
        ViTConfig,
        ViTForImageClassification,
        set_seed,
    )

    steps = math.ceil(len(data["train"]) / BATCH_SIZE) * args.epochs
    training_args = TrainingArguments(
        output_dir=scratch,
        optim=optim,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 10,
        weight_decay=WEIGHT_DECAY,
        num_train_epochs=args.epochs,
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


def _train_all(
    args: argparse.Namespace, data: Any, scratch: str, console: Any
) -> tuple[list[Run], np.ndarray]:
    """All runs, and what the first of them makes of the test set."""
    from rich import progress
    from transformers import Trainer, TrainerCallback

    for optim in args.optim:  # a name that does not work ends here, not between two runs
        try:
            trainer = _make_trainer(args, optim, args.seeds[0], data, scratch)
            model: Any = trainer.model
            Trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
        except (ValueError, ImportError) as error:
            _stop(f"--optim {optim}: {' '.join(str(error).split())}")

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
        task = bar.add_task("", total=len(args.optim) * len(args.seeds) * args.epochs)

        class Record(TrainerCallback):
            def on_evaluate(self, args: Any, state: Any, control: Any, **event: Any) -> None:
                metrics = event["metrics"]
                record.epochs.append(
                    {"epoch": len(record.epochs) + 1}
                    | {f"test_{key}": metrics[f"eval_{key}"] for key in ("accuracy", "loss")}
                )
                bar.advance(task)

        for seed in args.seeds:
            for optim in args.optim:
                record = Run(optim, seed)
                bar.update(task, description=f"{record.label}, seed {seed}")
                trainer = _make_trainer(args, optim, seed, data, scratch)
                trainer.add_callback(Record())
                started = time.perf_counter()
                trainer.train()
                record.seconds = time.perf_counter() - started
                # Accelerate wraps the optimizer.
                optimizer: Any = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
                record.optimizer = type(optimizer).__name__
                if betas := optimizer.param_groups[0].get("betas"):
                    record.betas = [float(beta) for beta in betas]
                if logits is None:
                    logits = trainer.predict(data["test"]).predictions
                runs.append(record)
                last = record.epochs[-1]
                bar.console.print(
                    f"{record.label:>10}, seed {seed}: test accuracy {last['test_accuracy']:.2%}, "
                    f"test loss {last['test_loss']:.4f}, {record.seconds:.0f} s"
                )
    return runs, logits


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The first optimizer against another one, over the seeds."""

    first: str
    second: str
    loss: Difference
    accuracy: Difference

    @property
    def verdict(self) -> str:
        """See :func:`verdict`."""
        return verdict(self.first, self.second, self.loss, self.accuracy)


def _values(runs: list[Run], optim: str, metric: str, epoch: int = -1) -> list[float]:
    """One optimizer's values after an epoch (0 is the first), seed by seed."""
    return [run.epochs[epoch][metric] for run in runs if run.optim == optim]


def _label(optim: str) -> str:
    return Run(optim, 0).label


def _differences(runs: list[Run], optims: list[str]) -> list[Comparison]:
    first = optims[0]
    return [
        Comparison(
            _label(first),
            _label(second),
            *(
                paired_difference(_values(runs, first, metric), _values(runs, second, metric))
                for metric in ("test_loss", "test_accuracy")
            ),
        )
        for second in optims[1:]
    ]


def _write_results(args: argparse.Namespace, runs: list[Run], comparisons: list[Comparison]) -> None:
    packages = ("adamnx-hf", "torch", "transformers", "accelerate", "datasets", "scikit-learn", "numpy")
    results = {
        "made_by": MADE_BY,
        "data": DATA,
        "model": MODEL,
        "settings": {
            "optim": args.optim,
            "seeds": args.seeds,
            "epochs": args.epochs,
            "learning_rate": args.learning_rate,
            "learning_rate_chosen_for": "adamw_torch_fused" if args.learning_rate == LEARNING_RATE else None,
            "schedule": "cosine, 10 % warm-up",
            "batch_size": BATCH_SIZE,
            "weight_decay": WEIGHT_DECAY,
        },
        "runs": [dataclasses.asdict(run) for run in runs],
        "comparisons": [dataclasses.asdict(item) | {"verdict": item.verdict} for item in comparisons],
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
    }
    text = json.dumps(results, indent=2)
    write_text(args.output_dir / RESULTS, text + "\n")


def _version(package: str) -> str | None:
    try:
        return __version__ if package == "adamnx-hf" else version(package)
    except PackageNotFoundError:
        return None


def _print_table(
    console: Any, args: argparse.Namespace, runs: list[Run], comparisons: list[Comparison]
) -> None:
    from rich.table import Table

    def spread(values: list[float], form: str) -> str:
        sd = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):{form}}{sd}"

    def interval(difference: Difference, scale: float, form: str, unit: str = "") -> str:
        if difference.low is None or difference.high is None:
            return f"{difference.mean * scale:+{form}}{unit}"
        low, high = difference.low * scale, difference.high * scale
        return f"{difference.mean * scale:+{form}}{unit}\n[{low:+{form}}, {high:+{form}}]"

    table = Table(
        "optimizer",
        "test accuracy",
        "test loss",
        "s per run",
        title=f"{DATA}, {MODEL}: after {args.epochs} epochs",
        caption=f"Mean ± sd over {len(args.seeds)} seeds; differences paired by seed [95 % t interval].\n"
        f"Learning rate {args.learning_rate:g} for all"
        + (", chosen for AdamW." if args.learning_rate == LEARNING_RATE else "."),
    )
    for optim in args.optim:
        mine = [run for run in runs if run.optim == optim]
        betas = f" ({', '.join(f'{beta:g}' for beta in mine[0].betas)})" if mine[0].betas else ""
        table.add_row(
            mine[0].label + betas,
            spread(_values(runs, optim, "test_accuracy"), ".2%"),
            spread(_values(runs, optim, "test_loss"), ".4f"),
            f"{statistics.fmean(run.seconds for run in mine):.1f}",
        )
    if comparisons:
        table.add_section()
    for item in comparisons:
        table.add_row(
            f"{item.first} {MINUS} {item.second}",
            interval(item.accuracy, 100, ".2f", " points"),
            interval(item.loss, 1, ".4f"),
            "",
        )
    console.print(table, markup=False)
    for item in comparisons:
        console.print(item.verdict, soft_wrap=True)


def _draw(args: argparse.Namespace, runs: list[Run], data: Any, logits: np.ndarray) -> None:
    import numpy as np
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

    plt.switch_backend("agg")  # a picture in a file needs no screen
    style: dict[Any, Any] = {
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "axes.axisbelow": True,
    }
    with plt.rc_context(style):
        figure = plt.figure(figsize=(12, 7.2), dpi=150, layout="constrained")
        layout: Any = figure.get_layout_engine()
        layout.set(w_pad=0.1, h_pad=0.08)
        subfigures: Any = figure.subfigures(2, 1, height_ratios=[3.6, 1])
        top, bottom = subfigures
        panels: Any = top.subplots(1, 3 if len(args.optim) > 1 else 2)
        epochs = np.arange(1, args.epochs + 1)
        per_epoch = {
            (optim, metric): np.array([_values(runs, optim, metric, epoch - 1) for epoch in epochs])
            for optim in args.optim
            for metric in ("test_loss", "test_accuracy")
        }
        for i, optim in enumerate(args.optim):
            # The first is drawn wider, so that it shows where another one covers it.
            width, colour = 4 if i == 0 else 1.8, PALETTE[i % len(PALETTE)]
            for axes, metric in zip(panels, ("test_loss", "test_accuracy"), strict=False):
                values = per_epoch[optim, metric]
                mean = values.mean(axis=1)
                axes.plot(epochs, mean, "o-", lw=width, ms=2 * width, color=colour, label=_label(optim))
                if len(args.seeds) > 1:
                    sd = values.std(axis=1, ddof=1)
                    low = np.maximum(mean - sd, values.min() / 2)  # the loss has a logarithmic axis
                    axes.fill_between(epochs, low, mean + sd, color=colour, alpha=0.15, linewidth=0)
        panels[0].set(title="Test loss", yscale="log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0].yaxis.set_major_formatter("{x:g}")
        panels[0].yaxis.set_minor_formatter("")
        panels[0].legend(frameon=False)
        panels[1].set_title("Test accuracy")
        panels[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for axes in panels:
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(args.optim) > 1:
            _draw_differences(panels[2], args.optim, per_epoch, epochs)

        _draw_hardest(bottom, f"{_label(args.optim[0])}, seed {args.seeds[0]}", data, logits)
        seeds = ", ".join(map(str, args.seeds))
        figure.suptitle(
            f"{DATA} · {MODEL} · learning rate {args.learning_rate:g} · "
            f"mean ± sd of seed{'s' if len(args.seeds) > 1 else ''} {seeds}",
            fontsize=12.5,
        )
        save_figure(figure, args.output_dir / CURVES)


def _draw_differences(axes: Any, optims: list[str], per_epoch: dict[Any, Any], epochs: Any) -> None:
    """The paired difference in test loss after each epoch, with its interval."""
    first = optims[0]
    axes.axhline(0, color="#444444", linewidth=1)
    for i, second in enumerate(optims[1:], 1):
        differences = [
            paired_difference(a, b)
            for a, b in zip(per_epoch[first, "test_loss"], per_epoch[second, "test_loss"], strict=True)
        ]
        low = [item.mean if item.low is None else item.low for item in differences]
        high = [item.mean if item.high is None else item.high for item in differences]
        colour = "#555555" if len(optims) == 2 else PALETTE[i % len(PALETTE)]
        means = [item.mean for item in differences]
        axes.plot(epochs, means, "o-", lw=1.8, ms=4, color=colour, label=f"{MINUS} {_label(second)}")
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    if len(optims) > 2:
        axes.legend(frameon=False)
    others = _label(optims[1]) if len(optims) == 2 else "..."
    axes.set_title(f"Test loss: {_label(first)} {MINUS} {others}")
    axes.set_xlabel("epoch\n(paired by seed; band: 95 % t interval)")


def _draw_hardest(figure: Any, who: str, data: Any, logits: np.ndarray, count: int = 14) -> None:
    """The test digits whose true class got the lowest probability, with the answers."""
    import numpy as np

    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    test = data["test"].with_format(None)
    truth = np.array(test["label"])
    hardest = np.argsort(probabilities[np.arange(len(truth)), truth], kind="stable")[:count]
    figure.suptitle(
        f"The {count} test digits hardest for {who}", x=0.012, ha="left", fontsize=12, weight="bold"
    )
    for axes, i in zip(figure.subplots(1, count), hardest, strict=True):
        axes.imshow(np.asarray(test[int(i)]["image"]), cmap="gray_r", interpolation="nearest")
        axes.set_axis_off()
        answer = int(logits[i].argmax())
        right = answer == truth[i]
        axes.set_title(
            f"{answer} ✓" if right else f"{answer}, not {truth[i]}",
            color="#222222" if right else PALETTE[1],
            fontsize=10.5,
            loc="center",
            weight="normal",
        )
