"""The runs that measure the tables of SCAO 0.1 again: its own script's settings, and what its ablations change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.optimizers import COMMON
from benchmarks.published import source
from benchmarks.suite import TASKS, Machine, configuration
from benchmarks.tasks.models import SHAPES
from scao_hf.finetune.comparison.runs import Setting
from scao_hf.finetune.comparison.study import Config
from scao_hf.optim.published import PublishedSCAO

Options = dict[str, Any]
TASK = "lm"
BETAS, WEIGHT_DECAY = [0.9, 0.95], 0.1
UNCLIPPED = 1e9
# The released code gathers statistics at refreshes alone, where the README's algorithm does so every step.
AT_REFRESHES = {"stats_freq": source.SCAO_OPTIONS["precond_freq"]}
AS_THE_README_SAYS: Options = {
    "warmup_steps": 100,
    "min_precond_updates": 10,
    "stats_freq": 1,
    "k_min": 8,
    "epsilon_sparse": 0.05,
    "tau": None,
}

SCALES: dict[str, Options] = {
    "500": {"size": "1m", "steps": 500},
    "200": {"size": "1m", "steps": 200},
    "5m": {"size": "published-5m", "steps": 50, "evaluation_batches": 16},
    "10m": {"size": "published-10m", "steps": 50, "length": 256, "evaluation_batches": 16},
    "125m": {"size": "published-125m", "steps": 5, "rows": 2, "length": 64, "evaluation_batches": 16},
}
"""What the published tables train, as options of the task."""


@dataclass(frozen=True)
class Arm:
    """One configuration, to be run on every seed.

    Args:
        name: "group/what"; the groups are run one after the other.
        scale: a key of `SCALES`.
        optimizer: a key of `ADAPTERS`.
        options: of the task.
        setting: of the optimizer.
        more: what else is changed: `clip`, or the `initial_factor` of the Kronecker factors.
    """

    name: str
    scale: str
    optimizer: str
    options: Mapping[str, Any]
    setting: Setting
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]

    @property
    def steps(self) -> int:
        return int(self.options["steps"])

    def config(self, machine: Machine, seed: int) -> Config:
        return configuration(machine, TASK, self.options, self.optimizer, self.setting, seed, **self.more)

    def config_like(self, other: Config, seed: int) -> Config:
        """Its configuration in another one's place: on the same text and device, with the same version of the code."""
        task = {"name": TASK, "version": TASKS[TASK].version, **self.options}
        place = {name: other[name] for name in ("data", "device", "optimizer", "version")}
        return {**place, "task": task, "setting": self.setting, "seed": seed, **self.more}

    def preconditioned_from(self) -> int | None:
        """First step whose gradient is preconditioned; None where the run ends before it.

        Raises:
            ValueError: another optimizer than `scao_published`, of which this is not known.
        """
        if self.optimizer != "scao_published":
            raise ValueError(f"only scao_published can say when it begins, not {self.optimizer}")
        own = {name: value for name, value in self.setting.items() if name not in COMMON}
        optimizer = PublishedSCAO([torch.zeros(2, 2, requires_grad=True)], **own)
        first = PublishedSCAO.adam_steps(optimizer.param_groups[0]) + 1
        return first if first <= self.steps else None


def _arms() -> Iterator[Arm]:
    yield from _compared("500")
    yield from _compared("200")
    yield _scao("ablation/A1", "200", more={"initial_factor": 0.0})
    yield _scao("ablation/A2", "200", more={"clip": UNCLIPPED})
    yield _scao("ablation/A3", "200", rate=source.ADAMW_RATE)
    yield _scao("ablation/A4", "200", rho=0.925, precond_freq=5, stats_freq=5)
    yield _scao("ablation/A5", "200", warmup_steps=1, min_precond_updates=1)
    yield _scao("ablation/A6", "200", blend_steps=0)
    yield _scao("ablation/A7", "200", k_max=4)
    yield from _compared("5m")
    yield from _compared("10m")
    yield _scao("int8/200", "200", use_int8_ema=True)
    yield from _compared("125m")
    yield _scao("int8/125m", "125m", use_int8_ema=True)
    for scale in ("500", "200", "5m", "10m"):
        yield _arm(f"package/{scale}", "scao_pypi", scale, source.SCAO_RATE, **_script_options(scale))
    for scale in ("500", "200"):
        yield _scao(f"text/{scale}", scale, **AS_THE_README_SAYS)


def _compared(scale: str) -> Iterator[Arm]:
    """The two that were compared, and AdamW at the other's learning rate."""
    yield _arm(f"{scale}/adamw", "adamw", scale, source.ADAMW_RATE)
    yield _scao(f"{scale}/scao", scale)
    yield _arm(f"{scale}/adamw-1.17", "adamw", scale, source.SCAO_RATE)


def _scao(
    name: str, scale: str, *, rate: float = source.SCAO_RATE, more: Mapping[str, Any] | None = None, **changes: Any
) -> Arm:
    own = {**_script_options(scale), **AT_REFRESHES, **changes}
    return _arm(name, "scao_published", scale, rate, more, **own)


def _script_options(scale: str) -> Options:
    task = SCALES[scale]
    return {
        "warmup_steps": source.warmup_steps(task["steps"]),
        "k_max": source.k_max(SHAPES[task["size"]].width),
        **source.SCAO_OPTIONS,
    }


def _arm(name: str, optimizer: str, scale: str, rate: float, more: Mapping[str, Any] | None = None, **own: Any) -> Arm:
    task = SCALES[scale]
    steps = task["steps"]
    schedule = {"warmup_steps": source.warmup_steps(steps), "start": 0.1, "end": source.LAST_RATE / rate}
    options = {**task, "schedule": schedule, "evaluate_every": min(steps, max(10, steps // 20))}
    setting = {"lr": rate, "auxiliary": 1.0, "betas": BETAS, "weight_decay": WEIGHT_DECAY, **own}
    return Arm(name, scale, optimizer, options, setting, more or {})


ARMS: dict[str, Arm] = {arm.name: arm for arm in _arms()}
