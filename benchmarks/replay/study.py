"""Record once, replay everything, write what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.environment import environment
from benchmarks.replay import directions, trackers
from benchmarks.replay.record import record, recording_configuration
from benchmarks.replay.report import Findings, write
from benchmarks.replay.trackers import Grid
from benchmarks.reporting.markdown import RESULTS
from benchmarks.suite import Machine, make_task

BLOCK = "blocks.1"
LAYERS = (f"{BLOCK}.query_key_value", f"{BLOCK}.projection", f"{BLOCK}.up", f"{BLOCK}.down", "tokens")


@dataclass(frozen=True)
class Plan:
    """What is recorded and what it is replayed through.

    Args:
        steps: of the recorded run.
        window: the last so many are recorded.
        layers: names of modules.
        size: of the model.
        optimizer: a key of `ADAPTERS`.
        seed: of initialisation and data order.
        grid: of the trackers; its ranks and its burn-in are the directions' as well.
    """

    steps: int = 300
    window: int = 200
    layers: Sequence[str] = LAYERS
    size: str = "1m"
    optimizer: str = "adamw"
    seed: int = 1
    grid: Grid = field(default_factory=Grid)


FULL = Plan()
QUICK = Plan(steps=60, window=50, grid=Grid((8, 32), (5, 10), (0.9, 0.95, 0.99), burn_in=20))


def command(plan: Plan, base: Plan, local: bool) -> str:
    """What a reader would type for a plan that began as `base`, one of the two above."""
    changed = [
        name for name in ("steps", "window", "size", "optimizer", "seed") if getattr(plan, name) != getattr(base, name)
    ]
    layers = plan.layers if plan.layers != base.layers else ()
    return " ".join(
        [
            "python -m benchmarks replay",
            *(["--data-dir DATA"] if local else []),
            *(["--quick"] if base == QUICK else []),
            *(f"--{name} {getattr(plan, name)}" for name in changed),
            *(f"--layer {name}" for name in layers),
            f"--out {RESULTS}",
        ]
    )


def replay(machine: Machine, plan: Plan, out: Path, command: str, tell: Callable[[str], None]) -> Findings:
    """Write `trackers.csv`, `directions.csv`, `summary.md` and figures.

    Args:
        machine: where the run is made, and where recordings are kept.
        plan: what to do.
        out: folder of the results.
        command: what a reader would type to get them.
        tell: is told what is going on, a line at a time.

    Raises:
        ValueError: the plan does not fit the model, or the window the grid.
    """
    plan.grid.starts(plan.window)
    torch.set_num_threads(1)
    config = recording_configuration(
        machine, plan.size, plan.optimizer, plan.seed, plan.steps, plan.window, plan.layers
    )
    tell(f"gradients of steps {plan.steps - plan.window + 1} to {plan.steps}")
    recording = record(machine, config, machine.cache)
    among = directions.candidates(plan.grid.ranks, plan.grid.periods)
    tracked: list[trackers.TrackerRow] = []
    turned: list[directions.DirectionRow] = []
    for layer in recording.layers:
        tell(f"{layer.name}: trackers")
        tracked += trackers.tracker_rows(layer, plan.grid)
        tell(f"{layer.name}: directions")
        turned += directions.direction_rows(layer, among, plan.grid.burn_in)
    made_with = environment(torch.device(machine.device))
    text = make_task(machine, config["task"]).text.origin
    findings = Findings(recording, plan.grid, tracked, turned, made_with, text, command)
    write(findings, out)
    return findings
