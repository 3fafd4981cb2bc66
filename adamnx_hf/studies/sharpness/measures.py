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
