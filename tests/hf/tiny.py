"""Models, data and arguments of a size that trains in a second, built in code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

VOCABULARY = 64
LENGTH = 12

# Short phases, so that a run of forty steps, and each half of it, passes through all of them.
PHASES = {
    "scao": "warmup_steps=4,blend_steps=4,precond_freq=3",
    "scao_published": "warmup_steps=4,min_precond_updates=2,blend_steps=4,precond_freq=3,rho=0.9",
    "soap": "precondition_frequency=3",
}


def llama(*, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2))


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        num_labels=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def sequences(rows: int = 64) -> list[dict[str, Tensor]]:
    """Rows for a causal language model, each counting upwards, so that there is something to learn."""
    starts = torch.randint(VOCABULARY, (rows, 1), generator=torch.Generator().manual_seed(0))
    ids = (starts + torch.arange(LENGTH)) % VOCABULARY
    return [{"input_ids": row, "labels": row} for row in ids]


def classified(rows: int = 64) -> list[dict[str, Tensor]]:
    """Rows for a classifier: is the first token in the upper half of the vocabulary?"""
    return [
        {"input_ids": row["input_ids"], "labels": (row["input_ids"][0] >= VOCABULARY // 2).long()}
        for row in sequences(rows)
    ]


def arguments(folder: Path, optim: str = "scao", **changes: Any) -> TrainingArguments:
    """Arguments for a short silent run on the CPU; `changes` are those of TrainingArguments."""
    return TrainingArguments(**argument_values(folder, optim, **changes))


def argument_values(folder: Path, optim: str = "scao", **changes: Any) -> dict[str, Any]:
    settled = {
        "output_dir": str(folder),
        "optim": optim,
        "optim_args": PHASES.get(optim),
        "max_steps": 8,
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 4,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }
    return settled | changes


def trainer(folder: Path, model: nn.Module | None = None, optim: str = "scao", **changes: Any) -> Trainer:
    return Trainer(model or llama(), arguments(folder, optim, **changes), train_dataset=sequences())


def losses(history: list[dict[str, Any]]) -> list[float]:
    return [entry["loss"] for entry in history if "loss" in entry]
