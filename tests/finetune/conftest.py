"""A random Llama of a few thousand parameters with a byte tokenizer, and small files of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random Llama with a context of 128 bytes and a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from scao_hf.finetune.embedded.tokenizer import VOCABULARY_SIZE, byte_tokenizer

    directory = tmp_path_factory.mktemp("models") / "tiny-random"
    tokenizer = byte_tokenizer(128)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON lines and returns where."""

    def write(rows: Sequence[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def texts(rows_file: Callable[..., Path]) -> Path:
    return rows_file([{"text": f"the cat number {number} sat on the mat"} for number in range(24)])


@pytest.fixture
def chats(rows_file: Callable[..., Path]) -> Path:
    turns = [
        [{"role": "user", "content": f"what is {n}?"}, {"role": "assistant", "content": f"it is {n}."}]
        for n in range(24)
    ]
    return rows_file([{"messages": messages} for messages in turns], "chats.jsonl")


@pytest.fixture(scope="session")
def write_recipe(tiny_model: Path) -> Callable[[Path, Path], Path]:
    """Writes a recipe into a folder that trains the tiny model for three steps on texts with LoRA and SCAO."""

    def write(folder: Path, texts: Path) -> Path:
        path = folder / "small.yaml"
        path.write_text(
            f"""\
schema: 1
model:
  model_name_or_path: {tiny_model}
lora:
  r: 4
  target_modules: all-linear
data:
  path: {texts}
  test_split_size: 4
  max_length: 64
  sample_tokens: 4
training:
  output_dir: {folder / "run"}
  optim: scao
  learning_rate: 1e-2
  max_steps: 3
  per_device_train_batch_size: 4
  logging_steps: 1
  save_strategy: no
  use_cpu: true
scao:
  warmup_steps: auto
  precond_freq: 1
""",
            encoding="utf-8",
        )
        return path

    return write


@pytest.fixture
def recipe_file(tmp_path: Path, texts: Path, write_recipe: Callable[[Path, Path], Path]) -> Path:
    return write_recipe(tmp_path, texts)
