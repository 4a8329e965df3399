"""Task `encoder`: a small BERT, trained by transformers' own Trainer, tells which of four texts a window comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tasks import texts
from benchmarks.tasks.lm import EVALUATION_SEED
from benchmarks.tasks.models import BYTES
from benchmarks.tasks.texts import Exchange, Exchanges, Text
from benchmarks.training import Batch, Build, Outcome, Schedule

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification

VERSION = 1
START = BYTES
"""Token in front of every window, from which the class is read."""
CLASSES = ("WikiText-2", "tiny Shakespeare", "GSM8K questions", "GSM8K answers")


@dataclass(frozen=True)
class Classification:
    """Tell which text a window of `length` bytes comes from: each with equal chance, at a random place of it.

    Sized so that AdamW is well above a loss of 0 after 300 steps.

    Args:
        folder: local texts; None takes the hub's.
        rows: windows a step.
        evaluation_windows: of the evaluation set; the first `curve_windows` give the curve.
    """

    folder: Path | None = None
    steps: int = 300
    rows: int = 16
    length: int = 64
    width: int = 128
    layers: int = 4
    heads: int = 4
    clip: float = 1.0
    schedule: Schedule = field(default_factory=Schedule)
    evaluate_every: int = 25
    evaluation_windows: int = 1024
    curve_windows: int = 256

    def model(self, seed: int) -> BertForSequenceClassification:
        """A freshly initialised encoder, without dropout: its training windows are always drawn anew."""
        from transformers import BertConfig, BertForSequenceClassification

        labels: dict[str, Any] = {"num_labels": len(CLASSES)}
        config = BertConfig(
            vocab_size=BYTES + 1,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            max_position_embeddings=1 + self.length,
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=None,
            **labels,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return BertForSequenceClassification(config)

    @cached_property
    def sources(self) -> list[Text]:
        """One for each class."""
        exchanges = texts.gsm8k(self.folder)
        columns = [_column(exchanges, name) for name in Exchange._fields]
        return [texts.wikitext(self.folder), texts.shakespeare(self.folder), *columns]

    def batches(self, seed: int) -> Iterator[Batch]:
        return windows([text.training for text in self.sources], self.rows, self.length, seed)

    def evaluation(self) -> Batch:
        validation = [text.validation for text in self.sources]
        return next(windows(validation, self.evaluation_windows, self.length, EVALUATION_SEED))


def _column(exchanges: Exchanges, name: str) -> Text:
    """The questions, or the answers, as one text."""
    training, validation = (
        texts.to_bytes("\n".join(getattr(row, name) for row in rows))
        for rows in (exchanges.training, exchanges.validation)
    )
    return Text(training, validation, exchanges.origin)


def windows(sources: Sequence[Tensor], rows: int, length: int, seed: int) -> Iterator[Batch]:
    """Endless batches: tokens (rows, 1 + length) from random places of random sources, labels (rows,) which of them."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        labels = torch.randint(len(sources), (rows,), generator=generator)
        shares = torch.rand(rows, generator=generator, dtype=torch.float64).tolist()
        taken = []
        for label, share in zip(labels.tolist(), shares, strict=True):
            start = int(share * (len(sources[label]) - length + 1))
            taken.append(sources[label][start : start + length].long())
        yield Batch(F.pad(torch.stack(taken), (1, 0), value=START), labels)


def run(task: Classification, build: Build, seed: int, device: torch.device, clip: float | None = None) -> Outcome:
    """See `benchmarks.tasks.trainer.train`, which takes seconds to import."""
    from benchmarks.tasks.trainer import train

    return train(task, build, seed, device, clip)
