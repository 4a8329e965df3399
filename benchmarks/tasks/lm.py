"""Task `lm`: pretrain a byte-level GPT on WikiText-2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.tasks import texts
from benchmarks.tasks.models import SHAPES, ByteGPT, Shape, byte_gpt
from benchmarks.training import Batch, Schedule

EVALUATION_SEED = 0
PRECISIONS = ("float32", "bfloat16")
VERSION = 1
"""Counts changes that make earlier runs incomparable."""


@dataclass(frozen=True)
class LanguageModelling:
    """Predict every next byte. 16 rows of 128 bytes a step at random places; the published setting.

    Args:
        precision: "float32"; "bfloat16" takes products in that.
    """

    size: str = "1m"
    steps: int = 500
    folder: Path | None = None
    rows: int = 16
    length: int = 128
    precision: str = "float32"
    clip: float = 1.0
    schedule: Schedule = field(default_factory=Schedule)
    evaluate_every: int = 25
    evaluation_batches: int = 48
    curve_batches: int = 8

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    @property
    def shape(self) -> Shape:
        shape = SHAPES[self.size]
        return shape._replace(context=max(shape.context, self.length))

    @cached_property
    def text(self) -> texts.Text:
        return texts.wikitext(self.folder)

    def model(self, seed: int) -> ByteGPT:
        return byte_gpt(self.shape, seed, self.precision == "bfloat16")

    def batches(self, seed: int) -> Iterator[Batch]:
        return windows(self.text.training, self.rows, self.length, seed)

    def evaluation(self) -> Sequence[Batch]:
        drawn = windows(self.text.validation, self.rows, self.length, EVALUATION_SEED)
        return [next(drawn) for _ in range(self.evaluation_batches)]


def windows(text: Tensor, rows: int, length: int, seed: int) -> Iterator[Batch]:
    """Endless batches of windows at random places of a (bytes,) uint8 text."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - length - 1, (rows,), generator=generator)
        window = torch.stack([text[start : start + length + 1] for start in starts.tolist()]).long()
        yield Batch(window[:, :-1], window[:, 1:])
