"""Four measures of how steep the loss is around a network's weights; the smaller, the flatter.

- `hessian`: the largest eigenvalue of the loss' Hessian, by Lanczos' method (scipy's) on products of the
  Hessian with vectors. It changes when weights are scaled and the function is not, as before a batch norm.
- `relative_hessian`: the same in units of each filter's own size, which does not: `D H D`, with the root mean
  square of each filter's weights on the diagonal of D (normalised as in Li et al. 2018, arXiv:1712.09913).
- `random`: how much the loss rises, on average over directions, when every weight is moved by a normal random
  number times `random_radius` of its filter's root mean square.
- `ascent`: how much it can be made to rise by projected gradient ascent (as SAM's, arXiv:2010.01412, in units
  like those of ASAM, arXiv:2102.11600) within a ball whose radius, in the units of D, is `ascent_radius`
  times the square root of the number of weights.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["MEASURES", "ascent", "filter_sizes", "largest_eigenvalue", "measure", "random_rise"]

#: The measures' names, in the order of the tables.
MEASURES = ("hessian", "relative_hessian", "random", "ascent")

#: Computes the loss at the present weights, as parts that add up to the loss, such as batches. It is called
#: again and again.
Loss = Callable[[], Iterable[Tensor]]


def largest_eigenvalue(
    loss: Loss,
    params: Sequence[Tensor],
    *,
    scales: Sequence[Tensor] | None = None,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> float:
    """Returns the largest (most positive) eigenvalue of the loss' Hessian.

    Args:
        loss: see :data:`Loss`; it must be differentiable twice.
        params: the weights, of any shapes, all on one device. They are left as they are.
        scales: the units of the weights: for each of `params` a tensor that broadcasts to it. 1 by default.
        tolerance: the relative tolerance of Lanczos' method.
        seed: draws the vector that the method starts from.

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
    """Returns the root mean square of each filter, in shapes that broadcast to `params`.

    A filter is a row of a matrix or an output of a convolution; a vector (biases, norms) is one filter.
    """
    sizes = []
    for param in params:
        dims = tuple(range(1 if param.ndim > 1 else 0, param.ndim))
        sizes.append(param.detach().square().mean(dims, keepdim=True).sqrt())
    return sizes


@contextlib.contextmanager
def _move(params: Sequence[Tensor], by: Sequence[Tensor]) -> Iterator[None]:
    """Adds `by` to the weights, and puts them back in the end."""
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


def _evaluate(loss: Loss) -> float:
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
    """Returns how much the loss rises, in the mean, when each weight moves by `radius · scale · N(0, 1)`.

    Args:
        loss, params, scales: as for :func:`largest_eigenvalue`.
        radius: the size of the moves as a share of the scales.
        directions: how many moves. They come in pairs of opposites, so that the slope drops out.
        seed: draws the directions, which are the same for all networks of one shape.
    """
    generator, start, rises = torch.Generator().manual_seed(seed), _evaluate(loss), []
    for _ in range(max(1, directions // 2)):
        noise = [torch.randn(param.shape, generator=generator).to(param) for param in params]
        for sign in (radius, -radius):
            move = [sign * n * scale for n, scale in zip(noise, scales, strict=True)]
            with _move(params, move):
                rises.append(_evaluate(loss) - start)
    return statistics.fmean(rises)


def ascent(
    loss: Loss, params: Sequence[Tensor], radius: float, *, scales: Sequence[Tensor], steps: int = 5
) -> float:
    """Returns how much gradient ascent raises the loss within a ball around the weights.

    Args:
        loss, params, scales: as for :func:`largest_eigenvalue`.
        radius: the ball's, in units of the scales.
        steps: how many. Each goes as far as the radius along the gradient, then back into the ball. The first
            is SAM's.

    Returns:
        The largest rise of all steps; 0 where none raises the loss.
    """
    start, best = _evaluate(loss), 0.0
    place = [torch.zeros_like(param) for param in params]
    for _ in range(steps):
        total = [torch.zeros_like(param) for param in params]
        with _move(params, [p * scale for p, scale in zip(place, scales, strict=True)]):
            for part in loss():
                grads = torch.autograd.grad(part, params, materialize_grads=True)
                torch._foreach_add_(total, list(grads))
        upward = [t * scale for t, scale in zip(total, scales, strict=True)]
        place = _to_length(
            [p + u for p, u in zip(place, _to_length(upward, radius), strict=True)], radius, longer=False
        )
        with _move(params, [p * scale for p, scale in zip(place, scales, strict=True)]):
            best = max(best, _evaluate(loss) - start)
    return best


def _to_length(vector: list[Tensor], length: float, longer: bool = True) -> list[Tensor]:
    """Returns the vector scaled to a length; without `longer` only if it exceeds that length."""
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
    """Returns the four measures (see the module), the `loss`, and the weights' `norm`.

    Args:
        loss, params: as for :func:`largest_eigenvalue`.
        random_radius: the radius of `random`.
        ascent_radius: the radius of `ascent`, before it is multiplied by the square root of the number of
            weights.
        directions: how many moves `random` averages over.
        seed: draws all that is random here.
    """
    scales = filter_sizes(params)
    count = sum(param.numel() for param in params)
    return {
        "loss": _evaluate(loss),
        "norm": math.sqrt(sum(float(param.detach().double().square().sum()) for param in params)),
        "hessian": largest_eigenvalue(loss, params, seed=seed),
        "relative_hessian": largest_eigenvalue(loss, params, scales=scales, seed=seed),
        "random": random_rise(loss, params, random_radius, scales=scales, directions=directions, seed=seed),
        "ascent": ascent(loss, params, ascent_radius * math.sqrt(count), scales=scales),
    }
