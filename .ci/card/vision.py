"""CIFAR-100 with a real network on one card: the paper's protocol, and the same with tuned rates.

    PYTHONPATH=. python .ci/card/vision.py --plan .ci/card/plans/vision_tuned.yaml --data FOLDER --seconds 500
    PYTHONPATH=. python .ci/card/vision.py --plan ... --data FOLDER --throughput    # steps a second, no more
    PYTHONPATH=. python .ci/card/vision.py --plan ... --out FILE --summary    # the table, with its tests

FOLDER holds train-*.parquet and test-*.parquet, maybe in folders, of the schema of uoft-cs/cifar100. Some of
the shards are enough. The images lie on the card as bytes; each pass through them is augmented at once, by
the project's own transforms, so that a step takes its batch from memory. What comes back is described in
loop.py. Augmentation, schedule and decay are the paper's; the network is its EfficientNetV2 in small, with
neither dropout nor stochastic depth, which a few passes do not need.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from lanes import Task
from loop import main
from plan import Plan
from torch import Tensor, nn
from torchvision.transforms import v2

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.models.torchvision_net.nets import efficientnet_v2
from adamnx_hf.tasks.transforms import make_eval_transform, make_train_transform

#: The authors': values in [0, 1] less a half, over a half.
NORMAL = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

#: Images that are evaluated, and that are augmented, at a time.
CHUNK, CHUNK_OF_PASS = 2500, 15_000

#: Augmented passes that are kept for other lanes of the same seed.
KEPT_PASSES = 16

CLASSES = 100


def images_in(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """The images of a split as bytes, (rows, 3, height, width), and their labels.

    Raises:
        RecipeError: there are none.
    """
    import pyarrow.parquet as pq  # type: ignore[import-untyped]
    from PIL import Image

    files = sorted(folder.rglob(f"{split}-*.parquet"))
    if not files:
        raise RecipeError(
            f"--data {folder}: has no {split}-*.parquet; name the folder with CIFAR-100's shards"
        )

    def decode(content: bytes) -> np.ndarray[Any, Any]:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))

    images: list[np.ndarray[Any, Any]] = []
    labels: list[int] = []
    with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
        for file in files:
            table = pq.read_table(file, columns=["img", "fine_label"])
            content = [cell["bytes"] for cell in table["img"].to_pylist()]
            images += pool.map(decode, content, chunksize=64)
            labels += table["fine_label"].to_pylist()
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def augmentation(jitter: float = 0.5, flip: float = 0.5) -> v2.Compose:
    """Bytes to the network's input, each image of a batch augmented on its own."""
    return make_train_transform(**NORMAL, jitter=jitter, flip=flip)


class Vision(Task):
    """What loop.py trains."""

    name = "vision"
    metrics: ClassVar[dict[str, str]] = {"loss": "min", "top1": "max", "top5": "max"}
    networks: ClassVar[dict[str, Any]] = {
        # The paper's strides: of the stem and of the second stage 1, so that three stages halve the image.
        "full": {
            "depths": (1, 1, 2, 2, 3, 4),
            "widths": (16, 16, 24, 48, 96, 112, 160),
            "expand_ratios": (1, 2, 4, 4, 4, 6),
            "strides": (1, 1, 2, 2, 1, 2),
            "head_width": 640,
        },
        "toy": {
            "depths": (1, 1),
            "widths": (8, 8, 16),
            "expand_ratios": (1, 2),
            "strides": (2, 2),
            "fused_stages": 1,
            "head_width": 16,
        },
    }

    def __init__(self, plan: Plan, folder: Path | None, device: torch.device) -> None:
        if folder is None:
            raise RecipeError("--data: name the folder with CIFAR-100's parquet files")
        self.plan, self.device = plan, device
        images, labels = images_in(folder, "train")
        test_images, test_labels = images_in(folder, "test")
        digest = hashlib.sha256()
        for tensor in (images, labels, test_images, test_labels):
            digest.update(tensor.numpy().tobytes())
        self.sha256 = digest.hexdigest()
        if len(images) - plan.holdout < plan.batch:
            raise RecipeError(
                f"holdout: {plan.holdout} of {len(images)} training rows leave no batch of {plan.batch}; "
                "lower it"
            )
        # The same rows are held out in every run, whatever its seed.
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
        train, holdout = order[plan.holdout :], order[: plan.holdout]
        self.rows = {
            "train": (images[train].to(device), labels[train].to(device)),
            "holdout": (images[holdout].to(device), labels[holdout].to(device)),
            "test": (test_images.to(device), test_labels.to(device)),
        }
        self.count = len(train) // plan.batch * plan.batch
        self.augment, prepare = augmentation(), make_eval_transform(**NORMAL)
        # bfloat16 is what autocast makes of them before the first convolution.
        self.prepared = {
            name: prepare(self.rows[name][0]).to(torch.bfloat16, memory_format=torch.channels_last)
            for name in ("holdout", "test")
        }
        self.passes: dict[tuple[int, int], tuple[Tensor, Tensor, torch.cuda.Event | None]] = {}
        self.facts = {
            **{f"{name}_rows": len(labels) for name, (_, labels) in self.rows.items()},
            "parameters": sum(param.numel() for param in self.model().parameters()),
        }

    def model(self) -> nn.Module:
        """An EfficientNetV2."""
        options = self.networks[self.plan.network]
        return efficientnet_v2(CLASSES, **options, stem_stride=1, dropout=0.0, stochastic_depth=0.0)

    def inputs(self) -> tuple[Tensor, ...]:
        """Images and labels."""
        shape, form = (self.plan.batch, *self.rows["train"][0].shape[1:]), torch.channels_last
        images = torch.zeros(shape, dtype=torch.bfloat16, device=self.device).to(memory_format=form)
        return images, torch.zeros(len(images), dtype=torch.long, device=self.device)

    def batches(self, seed: int) -> Iterator[tuple[Tensor, ...]]:
        """Passes through the training rows. Each is augmented, in its order, before its first batch."""
        done = 0
        while True:
            ready, labels = self.pass_of(seed, done)
            for start in range(0, self.count, self.plan.batch):
                yield ready[start : start + self.plan.batch], labels[start : start + self.plan.batch]
            done += 1

    def pass_of(self, seed: int, number: int) -> tuple[Tensor, Tensor]:
        """An augmented pass and its labels, for the current stream; made once for all lanes of the seed."""
        cuda = self.device.type == "cuda"
        if (seed, number) not in self.passes:
            images, labels = self.rows["train"]
            generator = torch.Generator().manual_seed(seed * 10_000 + number)
            order = torch.randperm(len(images), generator=generator)[: self.count]
            order = order.pin_memory().to(self.device, non_blocking=True) if cuda else order
            torch.manual_seed(seed * 10_000 + number)
            ready = torch.empty((self.count, *images.shape[1:]), dtype=torch.bfloat16, device=self.device)
            ready = ready.to(memory_format=torch.channels_last)
            for start in range(0, self.count, CHUNK_OF_PASS):
                chosen = order[start : start + CHUNK_OF_PASS]
                ready[start : start + CHUNK_OF_PASS] = self.augment(images[chosen])
            labels = labels[order]
            event = torch.cuda.current_stream().record_event() if cuda else None
            self.passes[seed, number] = ready, labels, event
            while len(self.passes) > KEPT_PASSES:
                del self.passes[next(iter(self.passes))]
        ready, labels, event = self.passes[seed, number]
        if event:  # another stream may have made it, and may outlive it here
            stream = torch.cuda.current_stream()
            stream.wait_event(event)
            ready.record_stream(stream)
            labels.record_stream(stream)
        return ready, labels

    @staticmethod
    def loss(net: nn.Module, *inputs: Tensor) -> Tensor:
        """Cross-entropy."""
        images, labels = inputs
        return F.cross_entropy(net(images), labels)

    def evaluate(self, net: nn.Module, rows: str) -> Tensor | None:
        """Cross-entropy, and the shares of hits in percent, without augmentation."""
        images, labels = self.prepared[rows], self.rows[rows][1]
        if not len(images):
            return None
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for start in range(0, len(images), CHUNK):
            answers = labels[start : start + CHUNK]
            logits = net(images[start : start + CHUNK]).float()
            hits = logits.topk(5).indices == answers[:, None]
            loss = F.cross_entropy(logits, answers, reduction="sum")
            sums += torch.stack([loss, 100 * hits[:, 0].sum(), 100 * hits.sum()]).double()
        return sums / len(images)


if __name__ == "__main__":
    sys.exit(main(Vision, str(__doc__)))
