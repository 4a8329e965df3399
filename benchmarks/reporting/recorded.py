"""What a study's folder holds, without training: the runs that the study would make, and its timing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.optimizers import ADAPTERS
from benchmarks.suite import TASKS, Study
from scao_hf.finetune.comparison.protocol import Comparison, ProtocolError, compare
from scao_hf.finetune.comparison.runs import Run
from scao_hf.finetune.comparison.store import RunStore
from scao_hf.finetune.comparison.study import Config, Plan, course

RUNS, TIMING = "runs.jsonl", "timing.json"


@dataclass(frozen=True)
class Found:
    """The runs of one competitor that are at hand, each with its configuration."""

    trials: Sequence[tuple[Config, Run]] = ()
    finals: Sequence[tuple[Config, Run]] = ()

    def as_entry(self, name: str) -> tuple[str, list[Run], list[Run]]:
        return name, [run for _, run in self.trials], [run for _, run in self.finals]


@dataclass(frozen=True)
class StepTimes:
    """Blocks of steps of one optimizer; block i of every optimizer was timed side by side."""

    step_seconds: tuple[float, ...]
    """Wall seconds of a step, the mean of each block."""
    optimizer_seconds: tuple[float, ...]
    """Those of them inside `optimizer.step()`."""


@dataclass(frozen=True)
class Timing:
    environment: Mapping[str, Any]
    arms: Mapping[str, StepTimes]


@dataclass(frozen=True)
class Recorded:
    """A study as its folder tells it."""

    name: str
    study: Study
    found: Mapping[str, Found]
    comparison: Comparison | None
    """Of the competitors under the common schedule; None when none of them is complete."""
    outside: Comparison | None
    """Of those that bring a schedule of their own."""
    left_out: Mapping[str, str]
    """By competitor, why it is in neither."""
    extras: tuple[str, ...]
    """Competitors that were added to the study's own."""
    timing: Timing | None


def recorded(name: str, study: Study, folder: Path) -> Recorded:
    """Read a study's folder.

    Args:
        name: of the study.
        study: as it is defined now; optimizers that were added to its runs are added to it.
        folder: where `runs.jsonl` and, perhaps, `timing.json` are.

    Raises:
        ProtocolError: competitors whose runs were made under different conditions.
    """
    store = RunStore(folder / RUNS)
    added = extras(study, store)
    study = replace(study, optimizers=(*study.optimizers, *added))
    plan = study.plan()
    found = {optimizer: find(optimizer, study, plan, store) for optimizer in study.optimizers}
    reasons = {optimizer: why_not(optimizer, runs, plan) for optimizer, runs in found.items()}
    complete = [optimizer for optimizer, reason in reasons.items() if reason is None]
    return Recorded(
        name=name,
        study=study,
        found=found,
        comparison=_compared(name, found, [each for each in complete if not ADAPTERS[each].owns_schedule]),
        outside=_compared(name, found, [each for each in complete if ADAPTERS[each].owns_schedule]),
        left_out={optimizer: reason for optimizer, reason in reasons.items() if reason is not None},
        extras=added,
        timing=read_timing(folder / TIMING),
    )


def extras(study: Study, store: RunStore) -> tuple[str, ...]:
    """Optimizers that were run on the study's task beside its own, in the order of the table of optimizers."""
    present = {config["optimizer"] for config in _configurations(study, store)}
    return tuple(name for name in ADAPTERS if name in present and name not in study.optimizers)


def find(optimizer: str, study: Study, plan: Plan, store: RunStore) -> Found:
    """Follow a competitor's search through the store, as far as its runs are there.

    The versions are those of its last run in the store, rather than of what is installed here, so that a report can be
    made anywhere.
    """
    configurations = [config for config in _configurations(study, store) if config["optimizer"] == optimizer]
    if not configurations:
        return Found()
    template = configurations[-1]

    def configure(setting: Mapping[str, Any], seed: int) -> Config:
        return {**template, "setting": setting, "seed": seed}

    found: list[tuple[Config, Run]] = []
    asking = course(plan.spaces[optimizer], plan, configure)
    with suppress(StopIteration, ProtocolError):  # it has all it asked for, or every trial diverged
        wanted = next(asking)
        while True:
            answers = [(config, run) for config in wanted if (run := store.get(config)) is not None]
            found += answers
            if len(answers) < len(wanted):
                break
            wanted = asking.send([run for _, run in answers])
    tuning = {plan.tuning_seed, *plan.confirmation_seeds} if plan.trials else set()
    return Found(
        [(config, run) for config, run in found if run.seed in tuning],
        [(config, run) for config, run in found if run.seed not in tuning],
    )


def all_diverged(runs: Iterable[tuple[Config, Run]]) -> bool:
    return not any(math.isfinite(run.loss) for _, run in runs)


def why_not(optimizer: str, found: Found, plan: Plan) -> str | None:
    """Why a competitor cannot be compared; None if it can."""
    if not found.trials and not found.finals:
        return "no runs"
    if found.trials and len(found.trials) >= plan.trials and all_diverged(found.trials):
        return "every trial diverged"
    if len(found.trials) < plan.tuning_runs or len(found.finals) < len(plan.seeds):
        return (
            f"{len(found.trials)} of {plan.tuning_runs} trials and {len(found.finals)} of {len(plan.seeds)} final runs"
        )
    try:
        compare([found.as_entry(optimizer)])
    except ProtocolError as error:
        return str(error)
    return None


def read_timing(path: Path) -> Timing | None:
    if not path.exists():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    arms = {
        name: StepTimes(tuple(arm["step_seconds"]), tuple(arm["optimizer_seconds"]))
        for name, arm in values["arms"].items()
    }
    return Timing(values["environment"], arms)


def _configurations(study: Study, store: RunStore) -> list[Config]:
    """Of the study's runs, whatever their versions; an ablation's configuration has more to it."""
    task = {"name": study.task, "version": TASKS[study.task].version, **study.options}
    fields = {"task", "data", "device", "optimizer", "version", "setting", "seed"}
    return [config for config, _ in store.records() if config["task"] == task and config.keys() == fields]


def _compared(study: str, found: Mapping[str, Found], names: Sequence[str]) -> Comparison | None:
    if not names:
        return None
    try:
        return compare(found[name].as_entry(name) for name in names)
    except ProtocolError as error:
        raise ProtocolError(f"{study}: {error}") from error
