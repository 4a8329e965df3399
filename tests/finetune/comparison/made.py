"""Runs made up for the tests of a comparison, and a training function of no cost that worker processes can import."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from scao_hf.finetune.comparison.runs import Run

RATES = (1e-3, 2e-3, 4e-3)
BEST = 2e-3
TUNING_SEED = 1
SEEDS = (42, 43, 44)

Parts = tuple[str, list[Run], list[Run]]
"""What `compare` takes of a competitor: name, trials, finals."""


def run(arm: str = "adamw", lr: float = BEST, seed: int = TUNING_SEED, **changes: Any) -> Run:
    """A run under the conditions of its seed; its loss is the distance of its learning rate to `BEST` in octaves."""
    conditions = {
        "initialisation": f"weights of {seed}",
        "data_order": f"batches of {seed}",
        "evaluation_set": "the second half",
        "clipping": 1.0,
        "schedule": {"warmup_steps": 25, "end": 0.0},
        "token_budget": 1000,
        "steps": 50,
    }
    setting = {"lr": lr, "betas": [0.9, 0.95]}
    made = Run(arm=arm, setting=setting, seed=seed, conditions=conditions, loss=1 + abs(math.log2(lr / BEST)))
    return replace(made, **changes)


def under(made: Run, **conditions: Any) -> Run:
    """The run with other conditions; one of None is left untold."""
    changed = {**made.conditions, **conditions}
    return replace(made, conditions={name: value for name, value in changed.items() if value is not None})


def competitor(arm: str, rates: Sequence[float] = RATES, lr: float = BEST, seeds: Sequence[int] = SEEDS) -> Parts:
    """One tuned on `rates`, with final runs at `lr`."""
    return arm, [run(arm, rate) for rate in rates], [run(arm, lr, seed) for seed in seeds]


def configure(arm: str, setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {"arm": arm, "setting": setting, "seed": seed}


OPTIMA = {"a": 1e-3, "b": 8e-3, "c": 1e-3}
"""Learning rates that `train` likes best; that of b lies two steps beyond the first grid about 1e-3."""


def train(config: Mapping[str, Any]) -> Run:
    """A run whose loss is known: the distance to the optimum in octaves, and a hundredth for every seed."""
    arm, setting, seed = config["arm"], config["setting"], config["seed"]
    loss = abs(math.log2(setting["lr"] / OPTIMA[arm])) + seed / 100
    return run(arm, seed=seed, setting=setting, loss=loss)


def fail_at_the_highest_rate(config: Mapping[str, Any]) -> Run:
    if config["setting"]["lr"] == 2e-3:
        raise RuntimeError("out of memory")
    return train(config)


def train_here(config: Mapping[str, Any]) -> Run:
    """`train`, told by which process."""
    return replace(train(config), measures={"process": os.getpid()})
