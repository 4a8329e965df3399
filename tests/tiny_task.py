"""A task of the suite that trains in milliseconds, every condition of which can be changed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from benchmarks.tasks.models import IGNORED, ByteGPT, Shape, byte_gpt
from benchmarks.training import Batch, Schedule

SHAPE = Shape(width=8, layers=1, heads=2, context=8, vocabulary=16)


@dataclass(frozen=True)
class TinyTask:
    """Predict the next of sixteen tokens, each of which is the one before plus 1 or 2.

    Args:
        weights: added to the seed of the initialisation.
        order: added to the seed of the batches.
        text: seed of the evaluation set.
        masked: whether the first label of every row is ignored.
    """

    steps: int = 6
    clip: float = 1.0
    schedule: Schedule = field(default_factory=lambda: Schedule(warmup_steps=2, start=0.5))
    evaluate_every: int = 2
    curve_batches: int = 1
    weights: int = 0
    order: int = 0
    text: int = 0
    masked: bool = False

    def model(self, seed: int) -> ByteGPT:
        return byte_gpt(SHAPE, seed + self.weights)

    def batches(self, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed + self.order)
        while True:
            yield walk(generator, self.masked)

    def evaluation(self) -> Sequence[Batch]:
        generator = torch.Generator().manual_seed(self.text)
        return [walk(generator) for _ in range(3)]


def walk(generator: torch.Generator, masked: bool = False) -> Batch:
    """Four rows of eight."""
    steps = torch.randint(1, 3, (4, 9), generator=generator)
    tokens = steps.cumsum(1) % SHAPE.vocabulary
    labels = tokens[:, 1:].clone()
    if masked:
        labels[:, 0] = IGNORED
    return Batch(tokens[:, :-1], labels)


def adamw(model: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr)


def sgd(model: nn.Module, lr: float = 0.5) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)
