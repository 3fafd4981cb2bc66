"""`adamnx-hf sharpness RUN ...`: how flat the place is where a run has ended.

Four measures, on training examples as evaluation sees them (no augmentation, dropout off, running means):

- `hessian`: the largest eigenvalue of the loss' Hessian, by Lanczos' method (scipy's) on products of the
  Hessian with vectors. It changes when weights are scaled and the function is not, as before a batch norm.
- `relative_hessian`: the same in units of each filter's own size, which does not: `D H D`, with the root mean
  square of each filter's weights on the diagonal of D (normalised as in Li et al. 2018, arXiv:1712.09913).
- `random`: how much the loss rises, on average over directions, when every weight is moved by a normal random
  number times `--random-radius` of its filter's root mean square.
- `ascent`: how much it can be made to rise by projected gradient ascent (as SAM's, arXiv:2010.01412, in units
  like those of ASAM, arXiv:2102.11600) within a ball whose radius, in the units of D, is `--ascent-radius`
  times the square root of the number of weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adamnx_hf.common.errors import RecipeError, number
from adamnx_hf.common.files import save_figure, write_json
from adamnx_hf.studies.paired import Difference, compared

__all__ = [
    "EXTRA",
    "MEASURES",
    "add_arguments",
    "ascent",
    "draw",
    "filter_sizes",
    "largest_eigenvalue",
    "markdown",
    "measure",
    "random_rise",
    "run",
    "trainer_of",
]

#: The extra of this package that has what this command needs.
EXTRA = "recipes"

#: In the order of the tables; the smaller, the flatter.
MEASURES = ("hessian", "relative_hessian", "random", "ascent")

#: The loss at the weights as they are, in parts that add up to it, such as batches. Called again and again.
Loss = Callable[[], Iterable[Tensor]]


def largest_eigenvalue(
    loss: Loss,
    params: Sequence[Tensor],
    *,
    scales: Sequence[Tensor] | None = None,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> float:
    """The largest (most positive) eigenvalue of the loss' Hessian.

    Args:
        loss: see :data:`Loss`; has to be differentiable twice.
        params: what it is differentiated by, of any shapes, all on one device; left as they are.
        scales: for each of `params` a tensor that broadcasts to it: the units of the weights; 1 by default.
        tolerance: relative, of Lanczos' method.
        seed: of the vector that it starts from.

    Raises:
        RuntimeError: the method does not converge, or the loss is not finite.
    """
    import numpy as np
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    size = sum(param.numel() for param in params)
    units = [torch.ones_like(param) for param in params] if scales is None else scales

    def product(vector: Any) -> Any:
        flat = torch.as_tensor(np.asarray(vector, dtype=np.float64).reshape(-1))
        directions = [
            part.view_as(param).to(param) * unit
            for part, param, unit in zip(
                flat.split([param.numel() for param in params]), params, units, strict=True
            )
        ]
        total = [torch.zeros_like(param) for param in params]
        for part in loss():
            grads = torch.autograd.grad(part, params, create_graph=True)
            along: Any = sum((grad * d).sum() for grad, d in zip(grads, directions, strict=True))
            if not along.requires_grad:
                continue  # a loss that is linear in the weights
            second = torch.autograd.grad(along, params, materialize_grads=True)
            torch._foreach_add_(total, list(second))
        result = torch.cat([(t * unit).reshape(-1) for t, unit in zip(total, units, strict=True)])
        if not torch.isfinite(result).all():
            raise RuntimeError("the Hessian is not finite; has the run diverged?")
        return result.double().cpu().numpy()

    if size == 1:
        return float(product(np.ones(1))[0])
    start = np.random.default_rng(seed).standard_normal(size)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    try:
        (value,) = eigsh(operator, k=1, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)
    except ArpackError as error:
        raise RuntimeError(f"the largest eigenvalue was not found: {error}") from error
    return float(value)


def filter_sizes(params: Iterable[Tensor]) -> list[Tensor]:
    """The root mean square of each filter (row of a matrix, output of a convolution), to broadcast.

    A vector (biases, norms) is one filter.
    """
    sizes = []
    for param in params:
        dims = tuple(range(1, param.ndim)) if param.ndim > 1 else tuple(range(param.ndim))
        detached = param.detach()
        sizes.append(detached.square().mean(dims, keepdim=True).sqrt() if dims else detached.abs())
    return sizes


@contextlib.contextmanager
def _moved(params: Sequence[Tensor], by: Sequence[Tensor]) -> Iterator[None]:
    kept = [param.detach().clone() for param in params]
    try:
        with torch.no_grad():
            for param, move in zip(params, by, strict=True):
                param.add_(move)
        yield
    finally:
        with torch.no_grad():
            for param, value in zip(params, kept, strict=True):
                param.copy_(value)


def _value(loss: Loss) -> float:
    with torch.no_grad():
        return math.fsum(float(part) for part in loss())


def random_rise(
    loss: Loss,
    params: Sequence[Tensor],
    radius: float,
    *,
    scales: Sequence[Tensor],
    directions: int = 8,
    seed: int = 0,
) -> float:
    """How much the loss rises when each weight moves by `radius · scale · N(0, 1)`, mean over directions.

    Args:
        loss, params, scales: as for :func:`largest_eigenvalue`.
        radius: as a share of the scales.
        directions: how many. They come in pairs of opposites, so that the slope drops out.
        seed: of the directions, which are the same for all nets of the same shape.
    """
    generator, start, rises = torch.Generator().manual_seed(seed), _value(loss), []
    for _ in range(max(1, directions // 2)):
        noise = [torch.randn(param.shape, generator=generator).to(param) for param in params]
        for sign in (radius, -radius):
            move = [sign * n * scale for n, scale in zip(noise, scales, strict=True)]
            with _moved(params, move):
                rises.append(_value(loss) - start)
    return statistics.fmean(rises)


def ascent(
    loss: Loss, params: Sequence[Tensor], radius: float, *, scales: Sequence[Tensor], steps: int = 5
) -> float:
    """How much gradient ascent raises the loss within a ball of `radius` in units of the scales.

    Args:
        loss, params, scales: as for :func:`largest_eigenvalue`.
        radius: of the ball around the weights.
        steps: each goes as far as the ball's radius along the gradient, then back into the ball. The first is
            SAM's.

    Returns:
        The largest rise of all steps; 0 where none raises the loss.
    """
    start, best = _value(loss), 0.0
    place = [torch.zeros_like(param) for param in params]
    for _ in range(steps):
        total = [torch.zeros_like(param) for param in params]
        with _moved(params, [p * scale for p, scale in zip(place, scales, strict=True)]):
            for part in loss():
                grads = torch.autograd.grad(part, params, materialize_grads=True)
                torch._foreach_add_(total, list(grads))
        upward = [t * scale for t, scale in zip(total, scales, strict=True)]
        place = _to_length(
            [p + u for p, u in zip(place, _to_length(upward, radius), strict=True)], radius, longer=False
        )
        with _moved(params, [p * scale for p, scale in zip(place, scales, strict=True)]):
            best = max(best, _value(loss) - start)
    return best


def _to_length(vector: list[Tensor], length: float, longer: bool = True) -> list[Tensor]:
    """The vector at that length, or only if it is longer than that."""
    norm = math.sqrt(sum(float(part.double().square().sum()) for part in vector))
    if norm == 0 or (not longer and norm <= length):
        return vector
    return [part * (length / norm) for part in vector]


def measure(
    loss: Loss,
    params: Sequence[Tensor],
    *,
    random_radius: float = 0.1,
    ascent_radius: float = 0.005,
    directions: int = 8,
    seed: int = 0,
) -> dict[str, float]:
    """The four measures (see the module's head), `loss`, and `norm`, the weights' own.

    Args:
        loss, params: as for :func:`largest_eigenvalue`.
        random_radius: of `random`.
        ascent_radius: of `ascent`, times the square root of the number of weights.
        directions: of `random`.
        seed: of all that is random here.
    """
    scales = filter_sizes(params)
    count = sum(param.numel() for param in params)
    return {
        "loss": _value(loss),
        "norm": math.sqrt(sum(float(param.detach().double().square().sum()) for param in params)),
        "hessian": largest_eigenvalue(loss, params, seed=seed),
        "relative_hessian": largest_eigenvalue(loss, params, scales=scales, seed=seed),
        "random": random_rise(loss, params, random_radius, scales=scales, directions=directions, seed=seed),
        "ascent": ascent(loss, params, ascent_radius * math.sqrt(count), scales=scales),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `adamnx-hf sharpness`."""
    parser.usage = "adamnx-hf sharpness RUN [RUN ...] | COMPARISON [--optim LABEL LABEL ...]"
    parser.description = (
        "Measures how flat the place is where runs have ended, on their own training examples; for a "
        "comparison made with --keep-models: of all its runs, paired by seed."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of runs, or of a comparison")
    parser.add_argument(
        "--optim",
        nargs="+",
        metavar="LABEL",
        help="which of a comparison's optimizers; the first is compared with each other one (default: all)",
    )
    parser.add_argument(
        "--dataset-name", "--dataset_name", metavar="FOLDER", help="in place of the run's own"
    )
    parser.add_argument(
        "--samples", type=number(int, 1), default=1000, metavar="N", help="examples (default: %(default)s)"
    )
    parser.add_argument(
        "--random-radius",
        type=float,
        default=0.1,
        metavar="R",
        help="of the random moves, as a share of each filter's root mean square (default: %(default)s)",
    )
    parser.add_argument(
        "--ascent-radius",
        type=float,
        default=0.005,
        metavar="R",
        help="of the ball of the ascent, the same per weight (default: %(default)s)",
    )
    parser.add_argument(
        "--directions", type=number(int, 2), default=8, metavar="N", help="random ones (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from tqdm import tqdm

    try:
        for name in ("random_radius", "ascent_radius"):
            if not 0 < getattr(args, name) < math.inf:
                raise RecipeError(
                    f"--{name.replace('_', '-')}: {getattr(args, name)} is not a number above 0"
                )
        if len(args.folders) == 1 and (args.folders[0] / "comparison.json").is_file():
            content = _of_comparison(args.folders[0], args)
            print(markdown(content))
            print(f"\nWritten to {args.folders[0]}: sharpness.json, sharpness.png")
            return 0
        if args.optim:
            raise RecipeError(
                "--optim: chooses among a comparison's optimizers; give the comparison's folder"
            )
        for folder in args.folders:
            _check(folder)
        for folder in tqdm(args.folders, desc="sharpness", unit=" runs", leave=False):
            print(json.dumps(_of_run(folder, args), indent=1))
    except RecipeError as error:
        print(f"adamnx-hf sharpness: error: {error}", file=sys.stderr)
        return 1
    return 0


def _check(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise RecipeError(f"{folder}: holds an adapter; only whole models can be measured")
    for name, remedy in (
        ("recipe.yaml", "give the folder of a run, or of a comparison"),
        ("config.json", "compare with --keep-models"),
    ):
        if not (folder / name).is_file():
            raise RecipeError(f"{folder}: holds no {name}; {remedy}")


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("samples", "random_radius", "ascent_radius", "directions")}


def _data(folder: Path, args: argparse.Namespace) -> str | None:
    """The data set that a run is measured on: its name on the Hub, or its folder's whole path."""
    from adamnx_hf import recipes

    name = args.dataset_name or recipes.read_recipe(folder / "recipe.yaml").get("dataset_name")
    path = Path(os.path.expanduser(name or ""))
    return str(path.resolve()) if name and path.is_dir() else name


def _of_run(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measures one run, and writes its sharpness.json; what was measured alike before is taken from there."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from adamnx_hf.runs.environment import describe_environment

    path, alike = folder / "sharpness.json", {"settings": _settings(args), "data": _data(folder, args)}
    weights = sorted(folder.glob("model*.safetensors"))
    stamp = max((item.stat().st_mtime_ns for item in weights), default=0)
    if path.is_file():
        there: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if alike.items() <= there.items() and path.stat().st_mtime_ns > stamp:
            return there
    model, batches = _model_and_batches(folder, args)
    params = [param for param in model.parameters() if param.requires_grad]

    def loss() -> Iterator[Tensor]:
        total = sum(share for share, _ in batches)
        for share, inputs in batches:
            yield model(**inputs).loss * (share / total)

    try:
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            values = measure(
                loss,
                params,
                random_radius=args.random_radius,
                ascent_radius=args.ascent_radius,
                directions=args.directions,
            )
    except RuntimeError as error:
        raise RecipeError(f"{folder}: {' '.join(str(error).split())}") from error
    result = {**alike, **values, "environment": describe_environment()}
    write_json(path, result)
    return result


def trainer_of(folder: Path, dataset_name: str | None = None) -> Any:
    """The Trainer of a run in `folder`, with its network as the run ended.

    Args:
        folder: of the run, with its model.
        dataset_name: where the data set is now, if not where the run had it.

    Raises:
        RecipeError: the folder holds no whole model, or the data set is not there.
    """
    from adamnx_hf import recipes

    _check(folder)
    words = ["--output_dir", str(folder), "--report_to=none", "--disable_tqdm=true"]
    words += ["--dataset_name", dataset_name] if dataset_name else []
    recipe = recipes.resolve(str(folder / "recipe.yaml"), words)
    try:
        trainer = recipe.task.make_trainer(recipe)
    except (ValueError, TypeError, OSError) as error:
        raise RecipeError(f"{folder}: {' '.join(str(error).split())}") from error
    model: Any = type(trainer.model).from_pretrained(str(folder))
    trainer.model = trainer.model_wrapped = model.to(trainer.args.device)
    return trainer


def _model_and_batches(folder: Path, args: argparse.Namespace) -> tuple[nn.Module, list[tuple[int, Any]]]:
    """The run's network, as it ended, and its first training examples as evaluation sees them."""
    import datasets

    trainer = trainer_of(folder, args.dataset_name)
    data = trainer.train_dataset
    if hasattr(data, "transform"):
        data.transform, data.random = trainer.eval_dataset.transform, None
    elif not isinstance(data, datasets.Dataset):  # language models' are not augmented
        raise RecipeError(f"{folder}: its training examples are not to be had without augmentation")
    trainer.model.eval()
    subset = torch.utils.data.Subset(data, range(min(args.samples, len(data))))
    batches = []
    for inputs in trainer.get_eval_dataloader(subset):
        ready = trainer._prepare_inputs(inputs)
        batches.append((len(ready["labels"]), dict(ready.items())))
    return trainer.model, batches


def _of_comparison(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measures the runs of a comparison, and writes its sharpness.json and sharpness.png."""
    from tqdm import tqdm

    from adamnx_hf.runs.environment import describe_environment
    from adamnx_hf.studies.compare import Contender, _slug

    there = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    known = {one["label"]: one for one in there["contenders"]}
    labels = args.optim or list(known)
    for label in labels:
        if label not in known:
            raise RecipeError(f"--optim: {label!r} is none of this comparison's: {', '.join(known)}")
    folders = {
        label: [
            folder / Contender(label).folder / _slug(known[label]["chosen"]) / f"seed{i}"
            for i in range(len(there["seeds"]))
        ]
        for label in labels
    }
    for place in (place for places in folders.values() for place in places):
        _check(place)
    rows: dict[str, list[dict[str, Any]]] = {label: [] for label in labels}
    with tqdm(total=sum(map(len, folders.values())), desc="sharpness", unit=" runs", leave=False) as bar:
        for i in range(len(there["seeds"])):
            for label in labels:
                measured = _of_run(folders[label][i], args)
                rows[label].append(
                    {"seed": there["seeds"][i]}
                    | {name: measured[name] for name in ("loss", "norm", *MEASURES)}
                )
                bar.update()
    first, *others = labels
    comparisons = []
    for other in others:
        for name in MEASURES:
            a, b = ([row[name] for row in rows[label]] for label in (first, other))
            record, difference = compared((first, other), name, "lower", a, b)
            comparisons.append(record | {"verdict": _verdict(first, other, difference)})
    content = {
        "recipe": there["recipe"],
        "comparison": there["command"],
        "settings": _settings(args),
        "seeds": there["seeds"],
        "contenders": [
            {"label": label, "chosen": known[label]["chosen"], "runs": rows[label]} for label in labels
        ],
        "comparisons": comparisons,
        "environment": describe_environment(),
    }
    write_json(folder / "sharpness.json", content)
    draw(folder / "sharpness.png", content)
    return content


def _verdict(first: str, second: str, difference: Difference | None) -> str:
    sign = difference.sign if difference else None
    if sign is None:
        return "cannot be judged"
    if sign == 0:
        return "no difference shown (the interval holds 0)"
    return f"{first} is {'flatter' if sign < 0 else 'sharper'} than {second} here"


def markdown(content: dict[str, Any]) -> str:
    """The measures as Markdown: a table of the optimizers and one of the paired differences."""
    from adamnx_hf.studies.compare import _differences, _number, _spread, _table

    rows = [["optimizer", "loss", "norm of the weights", *(name.replace("_", " ") for name in MEASURES)]]
    for one in content["contenders"]:
        cells = []
        for name in ("loss", "norm", *MEASURES):
            values = [row[name] for row in one["runs"]]
            cells.append(_number(statistics.fmean(values)) + _spread(values))
        rows.append([one["label"], *cells])
    text = [*_table(rows), ""]
    count = len(content["comparisons"])
    text += [
        *_differences(content["comparisons"], "measure", lambda item: item["metric"].replace("_", " ")),
        "",
        f"{count} intervals at 95 % each: of 20 such, one misses the truth by chance.",
    ]
    return "\n".join(text)


def draw(path: Path, content: dict[str, Any]) -> None:
    """Each measure of each run, runs of one seed joined.

    Args:
        path: of the PNG.
        content: of a comparison's sharpness.json.
    """
    from matplotlib import pyplot as plt

    from adamnx_hf.common.drawing import PALETTE, RC

    titles = {
        "hessian": "Largest eigenvalue\nof the Hessian",
        "relative_hessian": "The same, in units of\neach filter's size",
        "random": "Rise of the loss when\nmoved at random",
        "ascent": "Rise of the loss\nby ascent",
    }
    labels = [one["label"] for one in content["contenders"]]
    plt.switch_backend("agg")
    with plt.rc_context(RC):
        figure, axes = plt.subplots(1, len(MEASURES), figsize=(12, 4.4), dpi=150, layout="constrained")
        for panel, name in zip(axes, MEASURES, strict=True):
            values = [[row[name] for row in one["runs"]] for one in content["contenders"]]
            for pair in zip(*values, strict=True):
                panel.plot(range(len(labels)), pair, color="#bbbbbb", lw=1, zorder=1)
            for place, row in enumerate(values):
                colour = PALETTE[place % len(PALETTE)]
                label = labels[place] if panel is axes[0] else None
                panel.plot([place] * len(row), row, "o", color=colour, alpha=0.6, mew=0, label=label)
                panel.plot([place - 0.25, place + 0.25], [statistics.fmean(row)] * 2, color=colour, lw=3)
            panel.set_title(titles[name], fontsize=10)
            panel.set_xticks([])
            panel.set(xlim=(-0.5, len(labels) - 0.5), ylim=(0, None))
        seeds = len(content["seeds"])
        figure.suptitle(
            f"{content['recipe']} · {seeds} seeds, joined by a grey line; bars: means; lower is flatter",
            fontsize=11,
        )
        figure.legend(loc="outside lower center", ncols=min(len(labels), 3), frameon=False)
        save_figure(figure, path)
