"""Small runs of the random Llama, trained once for all tests that look at what such a run leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.results.folder import RunFolder, open_run
from scao_hf.finetune.run import finetune


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def chats_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    turns = [
        [{"role": "user", "content": f"what is {n}?"}, {"role": "assistant", "content": f"it is {n}."}]
        for n in range(24)
    ]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in turns), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def train(tiny_model: Path, chats_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """Trains eight steps on chats, as `lora-sft` with these overrides."""

    def trained(*overrides: str) -> RunFolder:
        folder = tmp_path_factory.mktemp("runs") / "run"
        own = [
            f"model.model_name_or_path={tiny_model}",
            f"data.path={chats_file}",
            f"output_dir={folder}",
            "data.max_length=96",
            "data.test_split_size=4",
            "data.sample_tokens=48",
            "lora.r=4",
            "learning_rate=1e-1",
            "max_steps=8",
            "gradient_accumulation_steps=1",
            "gradient_checkpointing=false",
            "logging_steps=1",
            "eval_strategy=no",
            "save_strategy=no",
            "use_cpu=true",
            "scao.precond_freq=1",
        ]
        finetune(load_recipe("lora-sft", [*own, *overrides]))
        return open_run(folder)

    return trained


@pytest.fixture(scope="session")
def lora_run(train: Callable[..., RunFolder]) -> RunFolder:
    return train()


@pytest.fixture(scope="session")
def full_run(train: Callable[..., RunFolder]) -> RunFolder:
    return train("lora=null", "learning_rate=1e-2")
