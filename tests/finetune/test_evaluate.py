"""The held-out loss against the definition, token by token."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from scao_hf.finetune.evaluate import Evaluation, evaluate


@pytest.fixture
def model(tiny_model: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model)


def test_the_loss_is_the_mean_over_supervised_tokens_of_all_batches(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    batches, expected = [], []
    for length in (5, 9):
        ids = torch.randint(0, 256, (2, length), generator=generator)
        labels = torch.where(torch.rand(2, length, generator=generator) < 0.5, ids, -100)
        labels[0, -1] = ids[0, -1]
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
        with torch.no_grad():
            logits = model(input_ids=ids).logits.double()
        for row in range(2):
            for position in range(1, length):
                if labels[row, position] != -100:
                    log_probabilities = logits[row, position - 1] - logits[row, position - 1].logsumexp(-1)
                    expected.append(-float(log_probabilities[ids[row, position]]))
    result = evaluate(model, batches)
    assert result.tokens == len(expected)
    assert result.loss == pytest.approx(sum(expected) / len(expected), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(result.loss))


def test_the_model_comes_back_in_the_mode_it_was_in(model: torch.nn.Module) -> None:
    ids = torch.tensor([[1, 2, 3]])
    model.train()
    evaluate(model, [{"input_ids": ids, "labels": ids}])
    assert model.training


def test_batches_without_supervised_tokens_are_refused(model: torch.nn.Module) -> None:
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match="all labels are masked"):
        evaluate(model, [{"input_ids": ids, "labels": torch.full_like(ids, -100)}])


def test_a_perplexity_beyond_the_floats_is_infinite() -> None:
    assert Evaluation(loss=1000.0, tokens=1).perplexity == math.inf
