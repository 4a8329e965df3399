"""Runs of a study that nobody trained: losses by formula, for tests of what is said about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.suite import TASKS, Study
from scao_hf.finetune.comparison.protocol import Comparison
from scao_hf.finetune.comparison.runs import Run, Setting
from scao_hf.finetune.comparison.store import RunStore
from scao_hf.finetune.comparison.study import Config, run_study

ENVIRONMENT = {"python": "3.11", "torch": "2.0", "scao-hf": "0", "processor": "abacus", "cores": 2, "threads": 1}
STEPS, TOKENS = 100, 4000
CONDITIONS = {"initialisation": "i", "evaluation_set": "e", "clipping": 1.0, "schedule": "s", "token_budget": TOKENS}
STATE_BYTES = {"adamw": 8_000_000, "scao": 10_000_000}


def study(*optimizers: str, trials: int = 4, seeds: tuple[int, ...] = (42, 43, 44), confirmations: int = 0) -> Study:
    return Study("lm", {"size": "1m", "steps": STEPS}, optimizers, trials, seeds, confirmations)


def record(
    path: Path,
    study: Study,
    loss: Callable[[str, Setting, int], float],
    version: str = "code 1",
    conditions: Mapping[str, Any] | None = None,
) -> Comparison:
    """Run a study into the store at `path`, with losses from (optimizer, setting, seed)."""

    def configure(optimizer: str, setting: Setting, seed: int) -> Config:
        task = {"name": study.task, "version": TASKS[study.task].version, **study.options}
        config = {"task": task, "data": "local", "device": "cpu", "optimizer": optimizer}
        return {**config, "version": version, "setting": setting, "seed": seed}

    def train(config: Config) -> Run:
        optimizer, setting, seed = config["optimizer"], config["setting"], config["seed"]
        return run(optimizer, seed, loss(optimizer, setting, seed), setting, conditions=conditions)

    return run_study(study.plan(), configure, train, RunStore(path))


def run(
    arm: str,
    seed: int,
    loss: float,
    setting: Setting | None = None,
    curve: tuple[tuple[int, float], ...] | None = None,
    conditions: Mapping[str, Any] | None = None,
    **measures: Any,
) -> Run:
    """A run whose curve falls in a straight line from 4 to its loss; one that diverged stops half-way."""
    diverged = not math.isfinite(loss)
    straight = ((0, 4.0), (STEPS // 2, 3.0)) if diverged else ((0, 4.0), (STEPS, loss))
    return Run(
        arm=arm,
        setting=setting or {"lr": 0.1},
        seed=seed,
        conditions={**CONDITIONS, "steps": STEPS, "data_order": f"d{seed}", **(conditions or {})},
        loss=loss,
        curve=straight if curve is None else curve,
        step_seconds=0.5,
        measures={
            "train_losses": [4.0, 2.0],
            "ranks": {"layer.weight": [(50, 2.0 + seed), (100, 4.0)]} if arm == "scao" else {},
            "optimizer_seconds": 0.25,
            "state_bytes": STATE_BYTES.get(arm, 9_000_000),
            "peak_bytes": 100_000_000 + seed,
            "parameters": 1000,
            "trained_parameters": 1000,
            "diverged_at": STEPS // 2 if diverged else None,
            "environment": ENVIRONMENT,
            **measures,
        },
    )


def valley(best: Mapping[str, float], floor: Mapping[str, float]) -> Callable[[str, Setting, int], float]:
    """Losses with their lowest at a learning rate, a little higher with every seed."""
    return lambda optimizer, setting, seed: (
        floor[optimizer] + 0.1 * abs(math.log2(setting["lr"] / best[optimizer])) + 0.01 * (seed % 10)
    )
