"""Tasks `lora` and `full`: fine-tune a small GPT, which the suite has pretrained itself, on another text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.muon import Muon
from benchmarks.tasks import texts
from benchmarks.tasks.lm import EVALUATION_SEED, LanguageModelling, windows
from benchmarks.tasks.models import IGNORED, LINEAR_LAYERS, ByteGPT, byte_gpt
from benchmarks.training import Batch, Schedule, train
from scao_hf import parameter_groups
from scao_hf.finetune.comparison.runs import digest

VERSION = 1
CONTEXT = 512
"""Of the base model, so that an exercise of GSM8K fits; longer ones are left out."""
END = b"\x00"
"""Follows an answer."""
BASE_TASK: dict[str, Any] = {"size": "1m", "rows": 4, "length": CONTEXT, "steps": 800, "evaluate_every": 800}
BASE_LR, BASE_AUXILIARY, BASE_SEED = 1e-2, 0.4, 1000
"""The base model is pretrained on WikiText-2 with Muon, which no LoRA study compares (`full` does, and has to say so):
at this length AdamW stays on the plateau of the bigrams for 1200 steps."""


@dataclass(frozen=True)
class Adaptation:
    """Fine-tune the base model, by LoRA on all linear layers or in full.

    Args:
        folder: local texts; None takes the hub's.
        cache: where the base model is kept.
        text: "shakespeare": every byte is predicted, 16 rows of 128 bytes a step; "gsm8k": a chat of question and
            answer, 4 a step, in which only the answer's bytes count.
        rank: of LoRA; None trains all weights. alpha is twice the rank, dropout 0.
    """

    folder: Path | None
    cache: Path
    text: str = "shakespeare"
    rank: int | None = 8
    steps: int = 200
    clip: float = 1.0
    schedule: Schedule = field(default_factory=lambda: Schedule(warmup_steps=10, start=0.1))
    evaluate_every: int = 10
    evaluation_batches: int = 48
    curve_batches: int = 8

    def __post_init__(self) -> None:
        if self.text not in _SOURCES:
            raise ValueError(f"text must be one of {', '.join(_SOURCES)}, got {self.text!r}")

    @cached_property
    def source(self) -> Any:
        return _SOURCES[self.text](self.folder)

    def prepare(self) -> None:
        """Pretrain the base model unless it is at hand."""
        base_weights(self.folder, self.cache)

    def model(self, seed: int) -> nn.Module:
        model = byte_gpt(LanguageModelling(**BASE_TASK).shape, seed)
        model.load_state_dict(base_weights(self.folder, self.cache))
        return model if self.rank is None else with_lora(model, self.rank, seed)

    def batches(self, seed: int) -> Iterator[Batch]:
        return self._drawn(self.source.training, seed)

    def evaluation(self) -> Sequence[Batch]:
        drawn = self._drawn(self.source.validation, EVALUATION_SEED)
        return [next(drawn) for _ in range(self.evaluation_batches)]

    def _drawn(self, part: Any, seed: int) -> Iterator[Batch]:
        return windows(part, 16, 128, seed) if self.text == "shakespeare" else exercises(part, 4, seed)


_SOURCES = {"shakespeare": texts.shakespeare, "gsm8k": texts.gsm8k}


def with_lora(model: nn.Module, rank: int, seed: int) -> nn.Module:
    """The model with PEFT's LoRA on all linear layers, its first factors drawn from `seed`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=list(LINEAR_LAYERS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def exercises(exchanges: Sequence[texts.Exchange], rows: int, seed: int) -> Iterator[Batch]:
    """Endless batches of random exchanges, padded to the longest; the labels are the answers and their end."""
    encoded = [pair for pair in map(_encoded, exchanges) if len(pair.tokens) <= CONTEXT]
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = [encoded[index] for index in torch.randint(len(encoded), (rows,), generator=generator).tolist()]
        tokens = pad_sequence([pair.tokens for pair in chosen], batch_first=True)
        labels = pad_sequence([pair.labels for pair in chosen], batch_first=True, padding_value=IGNORED)
        yield Batch(tokens, labels)


def _encoded(exchange: texts.Exchange) -> Batch:
    """Tokens (length,) and, for each, the byte that follows if it belongs to the answer."""
    prompt = f"User: {exchange.question}\nAssistant: ".encode()
    whole = torch.frombuffer(bytearray(prompt + exchange.answer.encode() + END), dtype=torch.uint8).long()
    labels = whole[1:].clone()
    labels[: len(prompt) - 1] = IGNORED
    return Batch(whole[:-1], labels)


# The base model


def base_weights(folder: Path | None, cache: Path) -> dict[str, Tensor]:
    """Weights of the base model, pretrained at the first call and then read from `cache`."""
    made_from = [BASE_TASK, BASE_LR, BASE_AUXILIARY, BASE_SEED, folder is None, torch.__version__]
    path = cache / f"base-{digest(made_from)}.safetensors"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(pretrain(folder).state_dict(), written)
        written.replace(path)
    return load_file(path)


def pretrain(folder: Path | None) -> ByteGPT:
    """The base model, from scratch."""
    task = LanguageModelling(folder=folder, **BASE_TASK)
    built: list[nn.Module] = []

    def build(model: nn.Module) -> torch.optim.Optimizer:
        built.append(model)
        scale = dict.fromkeys(("embedding", "vector"), BASE_AUXILIARY)
        return Muon(parameter_groups(model, weight_decay=0.1, lr=BASE_LR, lr_scale=scale), lr=BASE_LR)

    train(task, build, BASE_SEED, torch.device("cpu"))
    model = built[0]
    assert isinstance(model, ByteGPT)
    return model
