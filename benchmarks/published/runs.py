"""Making the runs, timing the pairs, and finding what was made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import suite
from benchmarks.environment import environment
from benchmarks.optimizers import ADAPTERS
from benchmarks.published.arms import ARMS, TASK, Arm
from benchmarks.published.measures import Evidence
from benchmarks.reporting.recorded import RUNS, TIMING, read_timing
from benchmarks.suite import Machine, make_task
from benchmarks.timing import BLOCK_STEPS, interleaved, told
from scao_hf.finetune.comparison.protocol import ProtocolError
from scao_hf.finetune.comparison.runs import Run
from scao_hf.finetune.comparison.store import RunStore
from scao_hf.finetune.comparison.study import Config, Tell, make_runs
from scao_hf.optim import published

EQUAL_CONDITIONS = ("initialisation", "data_order", "evaluation_set", "token_budget", "steps")
"""Of the runs of one task and seed; what may differ is the optimizer, its learning rate and the clipping."""
TIMED = ("500", "200", "5m", "10m")


def make_all(
    machine: Machine, store: RunStore, arms: Sequence[Arm], seeds: Sequence[int], workers: int, tell: Tell
) -> None:
    """Make the runs that the store lacks: group by group, in a group seed by seed."""
    for arm in arms:
        if not ADAPTERS[arm.optimizer].is_available:
            tell(f"{arm.name} is left out: {ADAPTERS[arm.optimizer].package} is not installed")
    available = [arm for arm in arms if ADAPTERS[arm.optimizer].is_available]
    groups = [list(members) for _, members in groupby(available, key=lambda arm: arm.group)]
    configs = [arm.config(machine, seed) for group in groups for seed in seeds for arm in group]
    tell(f"{sum(store.get(config) is None for config in configs)} of {len(configs)} runs to be made")
    make_runs(configs, partial(make_run, machine), store, workers, tell, machine.reuses_workers)


def make_run(machine: Machine, config: Config) -> Run:
    """As `suite.make_run`, with the Kronecker factors starting at the configuration's `initial_factor`."""
    with initial_factor(config.get("initial_factor", published.INITIAL_FACTOR)):
        return suite.make_run(machine, config)


@contextmanager
def initial_factor(value: float) -> Iterator[None]:
    """Let `PublishedSCAO` start its factors at another multiple of the identity, which it has no option for."""
    usual = published.INITIAL_FACTOR
    published.INITIAL_FACTOR = value
    try:
        yield
    finally:
        published.INITIAL_FACTOR = usual


def write_timing(machine: Machine, folder: Path, tell: Tell) -> None:
    """Time AdamW and SCAO in turn at each scale, over all the steps of a run but its first, into `timing.json`."""
    torch.set_num_threads(1)
    device = torch.device(machine.device)
    arms: dict[str, Any] = {}
    for scale in TIMED:
        pair = [ARMS[f"{scale}/{name}"] for name in ("adamw", "scao")]
        task = make_task(machine, {"name": TASK, **pair[0].options})
        builds = {arm.name: partial(_build, arm) for arm in pair}
        timed = interleaved(task, builds, device, blocks=pair[0].steps // BLOCK_STEPS, settle=1)
        for line in told(timed):
            tell(line)
        arms |= timed
    folder.mkdir(parents=True, exist_ok=True)
    measured = {"environment": environment(device), "arms": arms}
    (folder / TIMING).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def _build(arm: Arm, model: nn.Module) -> torch.optim.Optimizer:
    return ADAPTERS[arm.optimizer].build(model, arm.setting)


def evidence_in(folder: Path, seeds: Sequence[int]) -> Evidence:
    """What `runs.jsonl` and `timing.json` of a folder hold, as far as they are there.

    Raises:
        ProtocolError: runs of one task and seed that were not given the same weights and data.
    """
    timing = read_timing(folder / TIMING)
    times = {name: arm.step_seconds for name, arm in timing.arms.items()} if timing else {}
    store = RunStore(folder / RUNS)
    versions = {config["optimizer"]: config["version"] for config, _ in store.records()}
    return Evidence(runs_in(store, list(ARMS.values()), seeds), seeds, times, versions)


def runs_in(store: RunStore, arms: Sequence[Arm], seeds: Sequence[int]) -> dict[str, dict[int, Run]]:
    """The runs of some arms, by name and seed, made like the last run of the same optimizer.

    Raises:
        ProtocolError: runs of one task and seed that were not given the same weights and data.
    """
    last = {config["optimizer"]: config for config, _ in store.records()}
    found: dict[str, dict[int, Run]] = {arm.name: {} for arm in arms}
    for arm in arms:
        for seed in seeds:
            like = last.get(arm.optimizer)
            if like and (run := store.get(arm.config_like(like, seed))):
                found[arm.name][seed] = run
    for scale in dict.fromkeys(arm.scale for arm in arms):
        _require_equal_conditions({arm.name: found[arm.name] for arm in arms if arm.scale == scale})
    return found


def _require_equal_conditions(runs: Mapping[str, Mapping[int, Run]]) -> None:
    first: dict[int, tuple[str, Run]] = {}
    for name, by_seed in runs.items():
        for seed, run in by_seed.items():
            other, theirs = first.setdefault(seed, (name, run))
            for key in EQUAL_CONDITIONS:
                if run.conditions[key] != theirs.conditions[key]:
                    raise ProtocolError(f"different {key.replace('_', ' ')} at seed {seed}: {other} and {name}")
