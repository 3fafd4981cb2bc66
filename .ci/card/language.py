"""A language model of 10 M parameters from scratch on one card, on the Python that lies on the machine.

    PYTHONPATH=. python .ci/card/language.py --plan .ci/card/plans/language.yaml --seconds 500
    PYTHONPATH=. python .ci/card/language.py --plan ... --throughput    # how fast a step is, no more
    PYTHONPATH=. python .ci/card/language.py --plan ... --out FILE --summary    # the table, with its tests

The corpus is the source of the packages that are installed there, or of those in --data. A package belongs to
the training, the held-out or the test rows as a whole, by a hash of its name, and the vocabulary is made of
the training rows on the spot. What comes back is described in loop.py.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from lanes import Task
from loop import main
from plan import Plan
from torch import Tensor, nn

from adamnx_hf.common.errors import RecipeError

#: Goes before a package's name. With it the largest packages that most machines have are training rows, and
#: numpy, matplotlib and others test rows.
SALT = "f"

#: Larger files are tables rather than programs.
LARGEST_FILE = 400_000

END = "<|end|>"


def part_of(package: str) -> str:
    """Where a package belongs: an eighth of them each to the held-out and the test rows."""
    place = int(hashlib.sha256((SALT + package).encode()).hexdigest()[:8], 16) % 8
    return {0: "test", 1: "holdout"}.get(place, "train")


def texts_in(folders: list[Path], most: dict[str, int]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The files of each part, in an order that mixes packages, up to so many bytes; and the packages' names.

    A text that is there twice counts once, where it comes first.

    Raises:
        RecipeError: a part has none.
    """
    files = {}
    for folder in folders:
        for path in folder.rglob("*.py"):
            place = path.relative_to(folder)
            files[hashlib.sha256(place.as_posix().encode()).hexdigest()] = (
                path,
                place.parts[0].removesuffix(".py"),
            )
    texts: dict[str, list[str]] = {part: [] for part in most}
    names: dict[str, set[str]] = {part: set() for part in most}
    seen, left = set(), dict(most)
    for key in sorted(files):
        path, package = files[key]
        part = part_of(package)
        if left[part] <= 0:
            continue
        try:
            content = path.read_bytes() if path.stat().st_size <= LARGEST_FILE else b""
        except OSError:
            continue  # a link that leads nowhere
        digest = hashlib.sha256(content).digest()
        if content and digest not in seen:
            seen.add(digest)
            left[part] -= len(content)
            texts[part].append(content.decode("utf-8", errors="ignore"))
            names[part].add(package)
    for part, found in texts.items():
        if not found:
            told = ", ".join(map(str, folders))
            raise RecipeError(f"--data {told}: no Python for the {part} rows; name a folder of more packages")
    return texts, {part: sorted(found) for part, found in names.items()}


def tokenizer_of(texts: list[str], size: int, sample: int) -> Any:
    """A byte-level BPE of `size` tokens, made of the first `sample` characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    chosen, characters = [], 0
    for text in texts:
        if characters < sample:
            chosen.append(text)
            characters += len(text)
    tokenizer.train_from_iterator(chosen, trainer)
    return tokenizer


def tokens_of(tokenizer: Any, texts: list[str]) -> Tensor:
    """All texts in one row of tokens, each with an end."""
    end, rows = tokenizer.token_to_id(END), []
    for start in range(0, len(texts), 512):
        for encoding in tokenizer.encode_batch_fast(texts[start : start + 512]):
            rows.append(np.asarray([*encoding.ids, end], dtype=np.int32))
    return torch.from_numpy(np.concatenate(rows))


# ---------------------------------------------------------------- the network


class Block(nn.Module):
    """Attention and a gated MLP, each after a norm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """What comes out for x, (batch, length, width)."""
        batch, length, width = x.shape
        heads = self.qkv(self.before(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        q, k = (_turned(tensor, cos, sin).to(v.dtype) for tensor in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        gate, up = self.up(self.between(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv:2104.09864), in the halves that Llama has."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class GPT(nn.Module):
    """Llama's blocks, with the input's embedding as the output's."""

    def __init__(
        self, vocabulary: int, width: int, layers: int, heads: int, hidden: int, length: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        half = width // heads // 2
        angles = torch.arange(length)[:, None] * 10_000.0 ** -(torch.arange(half) / half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, param in self.named_parameters():
            if param.ndim == 2:
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(param, std=0.02 / (2 * layers) ** 0.5 if deep else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at each place."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.linear(self.norm(x), self.embedding.weight)


class Language(Task):
    """What loop.py trains."""

    name = "language"
    metrics: ClassVar[dict[str, str]] = {"loss": "min"}
    networks: ClassVar[dict[str, Any]] = {
        "full": {
            "shape": {
                "vocabulary": 8192,
                "width": 320,
                "layers": 6,
                "heads": 5,
                "hidden": 864,
                "length": 512,
            },
            "bytes": {"train": 80_000_000, "holdout": 4_000_000, "test": 4_000_000},
            "sample": 20_000_000,
            "windows": 1024,  # of the held-out and of the test rows, each, that are evaluated at most
        },
        "toy": {
            "shape": {"vocabulary": 300, "width": 32, "layers": 2, "heads": 2, "hidden": 64, "length": 16},
            "bytes": {"train": 60_000, "holdout": 5_000, "test": 5_000},
            "sample": 20_000,
            "windows": 8,
        },
    }

    def __init__(self, plan: Plan, folder: Path | None, device: torch.device) -> None:
        if plan.holdout:
            raise RecipeError(
                f"holdout: {plan.holdout} rows cannot be asked for; packages are held out, so leave it out"
            )
        self.plan, self.device, options = plan, device, self.networks[plan.network]
        self.shape, self.length, self.windows = (
            options["shape"],
            options["shape"]["length"],
            options["windows"],
        )
        installed = dict.fromkeys(
            sysconfig.get_path(kind) for kind in ("purelib", "platlib")
        )  # often the same
        folders = [folder] if folder else [Path(path) for path in installed]
        texts, packages = texts_in(folders, options["bytes"])
        tokenizer = tokenizer_of(texts["train"], self.shape["vocabulary"], options["sample"])
        tokens = {part: tokens_of(tokenizer, found) for part, found in texts.items()}
        digest = hashlib.sha256()
        for row in tokens.values():
            digest.update(row.numpy().tobytes())
        self.sha256 = digest.hexdigest()
        windows = (len(tokens["train"]) - 1) // self.length - 1
        if windows < plan.batch or min(map(len, tokens.values())) <= self.length:
            raise RecipeError(
                f"--data: {len(tokens['train'])} tokens of training rows are no batch of {plan.batch} x "
                f"{self.length}, or another part is no window; name a folder of more packages"
            )
        self.tokens = {part: row.to(device) for part, row in tokens.items()}
        self.window = torch.arange(self.length + 1, device=device)
        self.facts = {
            **{f"{part}_tokens": len(row) for part, row in tokens.items()},
            "passes": round(plan.steps * plan.batch / windows, 2),
            "held_out": packages["holdout"],
            "tested": packages["test"],
            "parameters": sum(param.numel() for param in self.model().parameters()),
        }

    def model(self) -> nn.Module:
        """A GPT."""
        return GPT(**self.shape)

    def inputs(self) -> tuple[Tensor, ...]:
        """Windows of tokens, each with the one that comes after it."""
        return (torch.zeros(self.plan.batch, self.length + 1, dtype=torch.long, device=self.device),)

    def batches(self, seed: int) -> Iterator[tuple[Tensor, ...]]:
        """Passes through windows that do not overlap, in an order and from a place of each pass's own."""
        row, done, batch = self.tokens["train"], 0, self.plan.batch
        windows = (len(row) - 1) // self.length - 1  # the last may be cut off by where the first begins
        while True:
            generator = torch.Generator().manual_seed(seed * 10_000 + done)
            first = torch.randint(self.length, (1,), generator=generator)
            starts = (first + torch.randperm(windows, generator=generator) * self.length).to(self.device)
            for begin in range(0, windows - batch + 1, batch):
                yield (row[starts[begin : begin + batch, None] + self.window],)
            done += 1

    @staticmethod
    def loss(net: nn.Module, *inputs: Tensor) -> Tensor:
        """Cross-entropy of the next token."""
        (tokens,) = inputs
        return F.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def evaluate(self, net: nn.Module, rows: str) -> Tensor:
        """The mean cross-entropy in nats a token, of windows that do not overlap."""
        row, total, count = self.tokens[rows], torch.zeros((), device=self.device, dtype=torch.float64), 0
        windows = min(self.windows, (len(row) - 1) // self.length)
        for begin in range(0, windows, self.plan.batch):
            starts = (
                torch.arange(begin, min(begin + self.plan.batch, windows), device=self.device) * self.length
            )
            total += self.loss(net, row[starts[:, None] + self.window].long()).double() * len(starts)
            count += len(starts)
        return total[None] / count


if __name__ == "__main__":
    sys.exit(main(Language, str(__doc__)))
