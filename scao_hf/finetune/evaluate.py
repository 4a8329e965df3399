"""Loss and perplexity on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100
"""Label of a token that the loss leaves out."""


@dataclass(frozen=True)
class Evaluation:
    """Mean negative log-likelihood over all supervised tokens of all rows, so no row or batch weighs more."""

    loss: float
    """Nats per supervised token."""
    tokens: int
    """Supervised tokens."""

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


Batches = Iterable[Mapping[str, Any]]


def evaluate(model: nn.Module, batches: Batches, *, autocast: torch.dtype | None = None) -> Evaluation:
    """Evaluate a causal language model; it is put into evaluation mode and back.

    Args:
        model: returns `.logits` (batch, length, vocabulary).
        batches: mappings with `input_ids` and `labels` (batch, length), labels -100 where the loss leaves a token out,
            and what else the model takes; moved to the model's device.
        autocast: dtype of mixed precision; None for none.

    Raises:
        ValueError: if no token of any batch is supervised.
    """
    total, tokens = 0.0, 0
    for part_sum, part_tokens in negative_log_likelihoods(model, batches, autocast=autocast):
        total += part_sum
        tokens += part_tokens
    if tokens == 0:
        raise ValueError("batches must have a supervised token, all labels are masked")
    return Evaluation(total / tokens, tokens)


@torch.no_grad()
def negative_log_likelihoods(
    model: nn.Module, batches: Batches, *, autocast: torch.dtype | None = None
) -> list[tuple[float, int]]:
    """Sum over supervised tokens, in nats, and their number, for each batch; arguments as for `evaluate`."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        return [_batch(model, batch, device, autocast) for batch in batches]
    finally:
        model.train(was_training)


def _batch(
    model: nn.Module, batch: Mapping[str, Any], device: torch.device, autocast: torch.dtype | None
) -> tuple[float, int]:
    inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    labels = inputs.pop("labels")[:, 1:]
    supervised = labels != IGNORED
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        logits = model(**inputs, use_cache=False).logits
    # Only supervised positions are widened to float32: the logits of a long prompt would take most of the memory.
    predicted = logits[:, :-1][supervised].float()
    total = nn.functional.cross_entropy(predicted, labels[supervised], reduction="sum")
    return float(total), int(supervised.sum())
