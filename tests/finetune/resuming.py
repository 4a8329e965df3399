"""A run of a few epochs with everything random in it, and what of it must be equal to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

STEPS = 12

SETTINGS = [
    f"max_steps={STEPS}",
    "logging_steps=5",
    "eval_strategy=steps",
    "eval_steps=4",
    "save_strategy=steps",
    "save_steps=3",
    "save_total_limit=2",
    "lora.lora_dropout=0.2",
    "lr_scheduler_type=cosine",
    "training.warmup_steps=2",
    "scao.precond_freq=2",
]
"""Five steps an epoch, dropout, and a checkpoint amid an epoch and between two logs."""

OF_THE_PROCESS = ("seconds", "elapsed_seconds", "eta_seconds", "tokens_per_second", "memory_bytes")
"""What a line tells of the clock and of the memory of whoever ran it."""


def measured(directory: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what the process measured of itself."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in OF_THE_PROCESS} for line in lines]


def weights(directory: Path) -> dict[str, bytes]:
    """The bytes of every file with weights that a run has left."""
    saved = (path for name in ("adapter", "model") for path in directory.glob(f"{name}/*.safetensors"))
    return {path.name: path.read_bytes() for path in saved}


def last_state(directory: Path, step: int = STEPS) -> dict[str, Any]:
    """Optimizer, schedule and the random numbers of every process of a checkpoint."""
    folder = directory / f"checkpoint-{step}"
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    schedule = torch.load(folder / "scheduler.pt", weights_only=True)
    random = {path.name: path.read_bytes() for path in folder.glob("rng_state*.pth")}
    assert random
    return {"optimizer": optimizer, "schedule": schedule, "random": random}


def equal(left: Any, right: Any) -> bool:
    """Whether two nested values are the same to the last bit."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def assert_same_run(directory: Path, expected: Path) -> None:
    """Weights, optimizer, schedule, random numbers and metrics of two runs are equal."""
    assert weights(directory)
    assert weights(directory) == weights(expected)
    assert measured(directory) == measured(expected)
    assert equal(last_state(directory), last_state(expected))
