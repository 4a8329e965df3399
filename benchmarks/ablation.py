"""SCAO with one thing changed at a time, on the 1M task: what each part is worth, and how wide the learning rate is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.optimizers import ADAPTERS
from benchmarks.reporting.markdown import hardware_of, interval, short, spread, table, versions_of
from benchmarks.suite import SEEDS, STUDIES, Machine, configuration, make_run
from scao_hf.finetune.comparison.figures import COLOURS, STYLE, save
from scao_hf.finetune.comparison.runs import Run
from scao_hf.finetune.comparison.statistics import Estimate, estimate, paired_difference
from scao_hf.finetune.comparison.store import RunStore
from scao_hf.finetune.comparison.study import Config, Tell, make_runs

STUDY, OPTIMIZER = STUDIES["lm-1m"], "scao"
DEFAULT = "as it comes"
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""On the learning rate of AdamW's best setting, for the curve."""


@dataclass(frozen=True)
class Arm:
    """A change of SCAO's setting.

    Args:
        name: as the table calls it.
        part: which part of the rule it questions.
        change: keys of the setting to their values.
    """

    name: str
    part: str
    change: Mapping[str, Any]


def _arms() -> list[Arm]:
    swept: dict[str, Sequence[Any]] = {
        "k_max": (8, 16, 32),
        "k_exact": (128,),
        "block_rows": (1, 8, 32, 64),
        "precond_freq": (1, 50),
        "damping": (1e-3, 1e-2),
        "tau": (None, 0.04, 0.16),
        "warmup_steps": (10, 50),
        "blend_steps": (50,),
        "epsilon_sparse": (0.05, 0.2),
        "k_min": (32,),
        "max_precond_dim": (128,),
        "state_dtype": ("bfloat16", "int8"),
        "betas": ([0.95, 0.95], [0.9, 0.99]),
        "weight_decay": (0.01,),
        "auxiliary": (0.5,),
    }
    singles = [
        Arm(f"{name} {short(value)}", name, {name: value, **({"k_max": value} if name == "k_min" else {})})
        for name, values in swept.items()
        for value in values
    ]
    return [Arm(DEFAULT, "", {}), *singles]


ARMS = _arms()


def start() -> dict[str, Any]:
    return dict(ADAPTERS[OPTIMIZER].space().start)


def rate_arms() -> list[Arm]:
    base = start()["lr"]
    return [Arm(f"lr × {factor:g}", "lr", {"lr": base * factor} if factor != 1 else {}) for factor in FACTORS]


def config_of(machine: Machine, arm: Arm, seed: int) -> Config:
    return configuration(machine, STUDY.task, STUDY.options, OPTIMIZER, {**start(), **arm.change}, seed)


def make_all(machine: Machine, store: RunStore, arms: Sequence[Arm], workers: int, tell: Tell) -> None:
    """Make the runs that the store lacks, arm by arm, so that those that there is time for are whole."""
    configs = [config_of(machine, arm, seed) for arm in arms for seed in SEEDS]
    make_runs(
        list({str(config): config for config in configs}.values()),
        partial(make_run, machine),
        store,
        workers,
        tell,
        machine.reuses_workers,
    )


@dataclass(frozen=True)
class Finding:
    """What an arm came to on all seeds."""

    arm: Arm
    runs: Sequence[Run]
    difference: Estimate | None
    """Of its final loss from SCAO's as it comes, paired by seed; None for that itself."""

    @property
    def loss(self) -> Estimate:
        return estimate([run.loss for run in self.runs])


def findings(machine: Machine, store: RunStore, arms: Sequence[Arm]) -> list[Finding]:
    """Of the arms whose runs are all there.

    Raises:
        ValueError: SCAO as it comes is not among them.
    """
    found = {arm.name: [store.get(config_of(machine, arm, seed)) for seed in SEEDS] for arm in (ARMS[0], *arms)}
    whole = {name: [run for run in runs if run] for name, runs in found.items() if all(runs)}
    if DEFAULT not in whole:
        raise ValueError(f"the runs of SCAO {DEFAULT} are not there yet: python -m benchmarks ablation makes them")
    usual = [run.loss for run in whole[DEFAULT]]
    return [
        Finding(
            arm,
            whole[arm.name],
            paired_difference([run.loss for run in whole[arm.name]], usual) if arm.change else None,
        )
        for arm in arms
        if arm.name in whole
    ]


def write(machine: Machine, store: RunStore, folder: Path) -> list[Path]:
    """Write `summary.md` and, of more than one learning rate, its figure.

    Raises:
        ValueError: there is nothing to write about.
    """
    parts, rates = findings(machine, store, ARMS), findings(machine, store, rate_arms())
    page = folder / "summary.md"
    page.write_text(_page(parts, rates, machine), encoding="utf-8")
    if len(rates) == 1:
        return [page]
    with matplotlib.rc_context(STYLE):
        return [page, *save(_rate_figure(rates), folder / "loss_by_rate")]


def _page(parts: Sequence[Finding], rates: Sequence[Finding], machine: Machine) -> str:
    data = " --data-dir DATA" if machine.folder else ""
    made = [*dict.fromkeys(found.arm.part for found in (*parts, *rates) if found.arm.change)]
    every = {arm.part for arm in (*ARMS, *rate_arms()) if arm.change}
    only = "" if set(made) == every else "".join(f" --only {part}" for part in made)
    environment = parts[0].runs[0].measures["environment"]
    seeds = ", ".join(map(str, SEEDS))
    return "\n\n".join(
        [
            "# Ablation",
            f"SCAO on task `lm`, size 1m, 500 steps, seeds {seeds}: final loss in nats per byte, mean ± standard "
            "deviation, and its difference from SCAO as it comes, paired by seed with Student's t interval. The "
            f"setting is not tuned again: {', '.join(f'{name} {short(value)}' for name, value in start().items())}.",
            "## One thing changed at a time",
            table(("changed", "final loss", "− as it comes (95%)", "ms a step in the optimizer"), map(_row, parts)),
            *(_rate_section(rates) if len(rates) > 1 else ()),
            f"<sub>`python -m benchmarks ablation{data}{only} --out benchmarks/results`. {hardware_of(environment)}; "
            f"{versions_of(environment)}. Milliseconds are process time of a machine that may have been at other "
            "work.</sub>",
            "",
        ]
    )


def _rate_section(rates: Sequence[Finding]) -> list[str]:
    return [
        "## The learning rate",
        f"× is of {start()['lr']:g}, the best of AdamW's on this task.",
        table(("learning rate", "final loss", "− at × 1 (95%)", "ms a step in the optimizer"), map(_row, rates)),
        "![loss_by_rate](loss_by_rate.svg)",
    ]


def _row(found: Finding) -> tuple[str, ...]:
    milliseconds = estimate([1e3 * run.measures["optimizer_seconds"] for run in found.runs])
    return found.arm.name, spread(found.loss), interval(found.difference, True), f"{milliseconds.mean:.1f}"


def _rate_figure(rates: Sequence[Finding]) -> Figure:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    base = start()["lr"]
    points = [({**start(), **found.arm.change}["lr"] / base, found) for found in rates]
    points.sort(key=lambda point: point[0])
    axes.plot([x for x, _ in points], [found.loss.mean for _, found in points], color=COLOURS[0], marker="o")
    for x, found in points:
        axes.plot([x] * len(found.runs), [run.loss for run in found.runs], ".", color=COLOURS[0], alpha=0.5)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("learning rate, × AdamW's best")
    axes.set_ylabel("final loss, nats per byte")
    return figure
