"""Seconds per step, side by side: short blocks of steps of every optimizer in turn, A B C A B C, in one process."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks import memory
from benchmarks.training import Batch, Task, to

Build = Callable[[nn.Module], torch.optim.Optimizer]
BLOCK_STEPS = 10
"""Steps of a block: a whole refresh period at the default settings."""
SEED = 1


@dataclass
class _Runner:
    """One optimizer with a model of its own, some steps into training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Iterator[Batch]
    clip: float
    device: torch.device

    def block(self, steps: int) -> tuple[float, float]:
        """Take some steps; seconds per step, and those of them inside `optimizer.step()`."""
        whole = inside = 0.0
        for batch in itertools.islice(self.batches, steps):
            batch = to(batch, self.device)
            started = self._now()
            self.model(*batch).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            stepping = self._now()
            self.optimizer.step()
            ended = self._now()
            self.optimizer.zero_grad()
            whole += ended - started
            inside += ended - stepping
        return whole / steps, inside / steps

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def interleaved(
    task: Task, builds: Mapping[str, Build], device: torch.device, blocks: int, settle: int
) -> dict[str, dict[str, Any]]:
    """Time training steps of several optimizers in turn; evaluation and the making of batches are left out.

    Args:
        task: what is trained.
        builds: by name, how an optimizer is made for the model.
        device: where.
        blocks: blocks of `BLOCK_STEPS` steps of each.
        settle: steps of each before the first block, past warm-ups, first refreshes and first allocations.

    Returns:
        By name: "step_seconds" and "optimizer_seconds", a list with the mean of every block; "state_bytes".
    """
    runners = {}
    for name, build in builds.items():
        model = task.model(SEED).to(device)
        runners[name] = _Runner(model, build(model), task.batches(SEED), task.clip, device)
        if settle:
            runners[name].block(settle)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    for _ in range(blocks):
        for name, runner in runners.items():
            taken[name].append(runner.block(BLOCK_STEPS))
    return {
        name: {
            "step_seconds": [whole for whole, _ in taken[name]],
            "optimizer_seconds": [inside for _, inside in taken[name]],
            "state_bytes": memory.state_bytes(runner.optimizer),
        }
        for name, runner in runners.items()
    }


def told(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each optimizer."""
    return [
        f"{name:<16} {1e3 * statistics.median(arm['step_seconds']):8.1f} ms a step, "
        f"{1e3 * statistics.median(arm['optimizer_seconds']):7.1f} ms in the optimizer"
        for name, arm in arms.items()
    ]
