"""Record once, replay everything, write what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.environment import environment
from benchmarks.replay import directions, trackers
from benchmarks.replay.defaults import tracked_rank
from benchmarks.replay.record import record, recording_configuration, treatments
from benchmarks.replay.report import Findings, write
from benchmarks.replay.trackers import Grid
from benchmarks.reporting.markdown import RESULTS
from benchmarks.suite import Machine, make_task

BLOCK = "blocks.1"
LAYERS = (f"{BLOCK}.query_key_value", f"{BLOCK}.projection", f"{BLOCK}.up", f"{BLOCK}.down")


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
        grid: of the trackers; its ranks, periods and burn-in are the directions' as well. The ranks that SCAO tracks
            by default are added to it.
    """

    steps: int = 300
    window: int = 200
    layers: Sequence[str] = LAYERS
    size: str = "1m"
    optimizer: str = "adamw"
    seed: int = 1
    grid: Grid = field(default_factory=Grid)


FULL = Plan()
QUICK = Plan(steps=60, window=50, grid=Grid((8, 32), (5, 10), (0.9, 0.95), burn_in=20))


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


def default_ranks(model: nn.Module, layers: Sequence[str]) -> set[int]:
    """How many directions SCAO tracks by default of these layers.

    Raises:
        ValueError: of none of them any.
    """
    found = treatments(model)
    ranks = {tracked_rank(model.get_parameter(f"{name}.weight").shape, found[name]) for name in layers} - {0}
    if not ranks:
        raise ValueError(f"layers must name one that SCAO whitens, got {', '.join(layers)}, where it is AdamW")
    return ranks


def replay(machine: Machine, plan: Plan, out: Path, command: str, tell: Callable[[str], None]) -> Findings:
    """Write `trackers.csv`, `directions.csv`, `summary.md` and figures.

    Args:
        machine: where the run is made, and where recordings are kept.
        plan: what to do.
        out: folder of the results.
        command: what a reader would type to get them.
        tell: is told what is going on, a line at a time.

    Raises:
        ValueError: the plan does not fit the model, or the window the grid; SCAO whitens no layer of it.
    """
    plan.grid.starts(plan.window)
    torch.set_num_threads(1)
    config = recording_configuration(
        machine, plan.size, plan.optimizer, plan.seed, plan.steps, plan.window, plan.layers
    )
    ranks = default_ranks(make_task(machine, config["task"]).model(plan.seed), plan.layers)
    grid = replace(plan.grid, ranks=sorted({*plan.grid.ranks, *ranks}))
    tell(f"gradients of steps {plan.steps - plan.window + 1} to {plan.steps}")
    recording = record(machine, config, machine.cache)
    among = directions.candidates(grid.ranks, grid.periods)
    tracked: list[trackers.TrackerRow] = []
    turned: list[directions.DirectionRow] = []
    for layer in recording.layers:
        tell(f"{layer.name}: trackers")
        tracked += trackers.tracker_rows(layer, grid)
        tell(f"{layer.name}: directions")
        turned += directions.direction_rows(layer, among, grid.burn_in)
    made_with = environment(torch.device(machine.device))
    text = make_task(machine, config["task"]).text.origin
    findings = Findings(recording, grid, tracked, turned, made_with, text, command)
    write(findings, out)
    return findings
