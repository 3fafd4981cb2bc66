"""YOLOv7's boxes, the objects that its anchors learn, and the loss.

Shapes: every image has `anchors` predictions, three for each cell of the strides 8, 16 and 32. Boxes are
centre x, centre y, width and height in pixels of the input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.nn.functional import logsigmoid, one_hot
from torchvision.ops import box_convert, box_iou, complete_box_iou_loss

from adamnx_hf.models.yolov7_tiny.configuration import Yolov7TinyConfig

__all__ = ["Priors", "decode", "find_candidates", "match", "sampled_loss", "yolov7_loss"]

STRIDES = Yolov7TinyConfig.strides

#: Weight of the objectness of each scale: fine scales have most cells and fewest objects.
BALANCE = (4.0, 1.0, 0.4)

#: Weight of the box in the cost of a prediction; the classes have 1.
BOX_COST = 3.0

#: Number of the best overlaps with an object. Their sum is how many predictions the object takes.
MOST_MATCHES = 10


@dataclasses.dataclass(frozen=True)
class Priors:
    """The cell and the anchor that each prediction starts from."""

    cells: Tensor
    """(anchors, 2): column and row of the cell."""
    sizes: Tensor
    """(anchors, 2): width and height of the anchor, in pixels."""
    strides: Tensor
    """(anchors, 1): pixels along a side of the cell."""
    shapes: tuple[tuple[int, int], ...]
    """Rows and columns of each scale."""
    anchors: Tensor
    """(scales, 3, 2): the anchors themselves."""

    @classmethod
    def of(
        cls,
        shapes: Sequence[tuple[int, int]],
        anchors: Sequence[Sequence[Sequence[float]]],
        device: torch.device | None = None,
    ) -> Priors:
        """Makes the priors of scales with `shapes` (rows, columns), by scale, anchor, row and column."""
        parts = []
        table = torch.tensor(anchors, dtype=torch.float32, device=device)
        for (rows, columns), level, stride in zip(shapes, table, STRIDES, strict=True):
            row, column = torch.meshgrid(
                torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
            )
            grid = torch.stack([column, row], -1).float().flatten(0, 1)
            side = torch.full((3 * rows * columns, 1), float(stride), device=device)
            parts.append((grid.repeat(3, 1), level.repeat_interleave(rows * columns, 0), side))
        cells, sizes, strides = map(torch.cat, zip(*parts, strict=True))
        return cls(cells, sizes, strides, tuple(shapes), table)

    @property
    def counts(self) -> list[int]:
        """The number of predictions of each scale."""
        return [3 * rows * columns for rows, columns in self.shapes]


def decode(raw: Tensor, priors: Priors) -> Tensor:
    """Turns the network's raw (batch, anchors, 4) into boxes.

    A centre is at most half a cell outside its cell, a side at most four times its anchor's.
    """
    share = raw.sigmoid()
    centre = (2 * share[..., :2] - 0.5 + priors.cells) * priors.strides
    # A side of no pixels has no aspect ratio, and CIoU no gradient there.
    sides = ((2 * share[..., 2:]) ** 2 * priors.sizes).clamp(min=0.01)
    return torch.cat([centre, sides], -1)


def find_candidates(boxes: Tensor, priors: Priors, ratio: float = 4.0) -> Tensor:
    """Finds the predictions of an image that may learn one of its objects: (n,) sorted, distinct indices.

    They belong to the cell that holds the object's centre, to the nearest cell beside it or to the nearest
    above or below it. The sides of their anchors are less than `ratio` times larger or smaller than the
    object's.

    Args:
        boxes: (objects, 4).
        priors: where the predictions start from.
        ratio: see above.
    """
    found, start = [], 0
    moves = torch.tensor([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]], device=boxes.device)
    for (rows, columns), anchors, stride in zip(priors.shapes, priors.anchors, STRIDES, strict=True):
        relative = boxes[:, None, 2:] / anchors  # (objects, 3, 2)
        fits = torch.maximum(relative, 1 / relative).amax(-1) < ratio
        centre = boxes[:, :2] / stride
        last = torch.tensor([columns - 1, rows - 1], device=boxes.device)
        cell = centre.long().clamp(min=0).minimum(last)
        nearer = centre - cell < 0.5  # to the left, to the top
        reached = torch.cat([torch.ones_like(nearer[:, :1]), nearer, ~nearer], 1)  # by each of `moves`
        cells = cell[:, None] + moves  # (objects, 5, 2)
        inside = ((cells >= 0) & (cells <= last)).all(-1) & reached
        ok = fits[:, :, None] & inside[:, None]  # (objects, 3, 5)
        anchor = torch.arange(3, device=boxes.device)[:, None]
        index = start + (anchor * rows + cells[:, None, :, 1]) * columns + cells[:, None, :, 0]
        found.append(index[ok])
        start += 3 * rows * columns
    return torch.cat(found).unique()


@torch.no_grad()
def match(
    boxes: Tensor, objectness: Tensor, logits: Tensor, true_boxes: Tensor, true_classes: Tensor
) -> tuple[Tensor, Tensor]:
    """Matches an image's candidates with the objects that they learn, by SimOTA (arXiv:2107.08430, Sec. 2.1).

    An object takes the predictions that cost it least, as many as its ten best overlaps add up to, and at
    least one. A prediction that several objects take goes to the one it costs least.

    Args:
        boxes: (candidates, 4).
        objectness: (candidates,), logits.
        logits: (candidates, classes).
        true_boxes: (objects, 4).
        true_classes: (objects,).

    Returns:
        Indices of candidates, and of objects: (matches,) each.
    """
    overlap = box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (true_boxes, boxes)))
    best = overlap.topk(min(MOST_MATCHES, overlap.shape[1]), 1).values
    count = best.sum(1).int().clamp(min=1)
    # The probability of a class is the geometric mean of its own and of there being an object.
    log_p = (logsigmoid(logits) + logsigmoid(objectness)[:, None]) / 2
    log_not = torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))
    wrong = -log_not.sum(1) - (log_p - log_not)[:, true_classes].T  # cross-entropy, (objects, candidates)
    cost = wrong - BOX_COST * torch.log(overlap + 1e-8)
    rank = cost.argsort(dim=1, stable=True).argsort(dim=1)
    taken = rank < count[:, None]
    cheapest = torch.zeros_like(taken).scatter_(0, cost.argmin(0, keepdim=True), True)
    taken = torch.where(taken.sum(0) > 1, cheapest, taken)
    objects, chosen = taken.nonzero(as_tuple=True)
    return chosen, objects


@torch.compiler.disable
def yolov7_loss(
    boxes: Tensor,
    objectness: Tensor,
    logits: Tensor,
    true_boxes: Sequence[Tensor],
    true_classes: Sequence[Tensor],
    priors: Priors,
    anchor_ratio: float = 4.0,
) -> dict[str, Tensor]:
    """Returns the parts of YOLOv7's loss, each a sum over the scales of the mean over a scale's predictions.

    Args:
        boxes: (batch, anchors, 4), with gradients.
        objectness: (batch, anchors), logits.
        logits: (batch, anchors, classes).
        true_boxes: the boxes of each image, (objects, 4).
        true_classes: the class ids of each image, (objects,).
        priors: where the predictions start from.
        anchor_ratio: see :func:`find_candidates`.

    Returns:
        `loss_box`: 1 - CIoU of the matches. `loss_objectness`: cross-entropy against the CIoU where there is
        a match and 0 where not. `loss_class`: cross-entropy of the matches' classes.
    """
    matches = []
    for i, (own_boxes, own_classes) in enumerate(zip(true_boxes, true_classes, strict=True)):
        near = find_candidates(own_boxes, priors, anchor_ratio)
        if len(near):
            which, objects = match(
                boxes[i, near], objectness[i, near], logits[i, near], own_boxes, own_classes
            )
            image = torch.full_like(which, i)
            matches.append((image, near[which], own_boxes[objects], own_classes[objects]))

    target = torch.zeros_like(objectness)
    zero = boxes.sum() * 0 + logits.sum() * 0  # so that every parameter has a gradient
    losses = {"loss_box": zero, "loss_objectness": zero, "loss_class": zero}
    if matches:
        image, anchor, targets, classes = map(torch.cat, zip(*matches, strict=True))
        xyxy = [box_convert(b, "cxcywh", "xyxy") for b in (boxes[image, anchor], targets)]
        off = complete_box_iou_loss(*xyxy)
        target[image, anchor] = (1 - off.detach()).clamp(min=0)
        known = logits[image, anchor]
        right = one_hot(classes, known.shape[1]).to(known.dtype)
        wrong = cross_entropy(known, right, reduction="none").mean(1)
        level = torch.repeat_interleave(torch.tensor(priors.counts, device=boxes.device))[anchor]
        weight = 1 / level.bincount()[level]  # the mean over each scale's matches, then the sum over scales
        losses["loss_box"] = zero + (weight * off).sum()
        losses["loss_class"] = zero + (weight * wrong).sum()
    surprise = cross_entropy(objectness, target, reduction="none").mean(0)
    per_level = zip(BALANCE, surprise.split(priors.counts), strict=True)
    losses["loss_objectness"] = torch.stack([balance * part.mean() for balance, part in per_level]).sum()
    return losses


def sampled_loss(objectness: Tensor, logits: Tensor, priors: Priors, weights: Mapping[str, float]) -> Tensor:
    """Returns a loss against objects and classes that are drawn as likely as they are predicted.

    The square of its gradient is on average the Gauss-Newton diagonal of the loss's two cross-entropies (the
    estimate of Gauss, Newton and Bartlett, arXiv:2305.14342, Sec. 2.3, with an independent draw for each
    logit): each term enters by the root of its weight. Boxes have no likelihood to draw from.

    Args:
        objectness: (batch, anchors), logits.
        logits: (batch, anchors, classes).
        priors: where the predictions start from.
        weights: the weights of `loss_objectness` and `loss_class` in the loss.
    """
    with torch.no_grad():
        there, classes = (torch.bernoulli(tensor.sigmoid()) for tensor in (objectness, logits))
    total = objectness.sum() * 0
    for balance, *level in zip(
        BALANCE,
        *(tensor.split(priors.counts, 1) for tensor in (objectness, there, logits, classes)),
        strict=True,
    ):
        guess, drawn, known, right = level
        known, right = known[drawn > 0], right[drawn > 0]
        for part, target, weight in (
            (guess, drawn, weights["loss_objectness"] * balance),
            (known, right, weights["loss_class"]),
        ):
            if part.numel():
                scale = (weight / part.numel()) ** 0.5
                total = total + scale * cross_entropy(part, target, reduction="sum")
    return total
