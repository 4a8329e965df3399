"""Whether one learning rate serves every LoRA: losses over learning rates, for ranks, alphas, starts and gauges."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.optimizers import ADAPTERS
from benchmarks.reporting.markdown import hardware_of, short, spread, table, title, versions_of
from benchmarks.suite import Machine, configuration, make_run, make_task
from scao_hf.finetune.comparison.figures import COLOURS, MARKERS, STYLE, save
from scao_hf.finetune.comparison.runs import Run
from scao_hf.finetune.comparison.statistics import Estimate, estimate
from scao_hf.finetune.comparison.store import RunStore
from scao_hf.finetune.comparison.study import Config, Tell, make_runs
from scao_hf.finetune.comparison.tuning import RATE, rounded

TASK, TEXT, RANK = "lora", "shakespeare", 16
OPTIMIZERS = ("adamw", "scao", "loraplus")
POWERS = range(-4, 4)
"""Of two, on the learning rate at which an optimizer's search starts."""
TOLERANCE = 0.02
"""Nats above the best loss of a curve that a learning rate may cost."""
ABOVE_THE_BEST = 0.4
"""Nats that a figure shows."""


@dataclass(frozen=True)
class Variation:
    """One value of what is varied.

    Args:
        part: what is varied.
        value: as tables call it.
        options: of the task, those that are not at their defaults.
    """

    part: str
    value: str
    options: Mapping[str, Any]


def _variations() -> list[Variation]:
    def options(**more: Any) -> dict[str, Any]:
        return {"text": TEXT, "rank": RANK, **more}

    return [
        *(Variation("rank", f"r = {rank}", options(rank=rank)) for rank in (4, 16, 64, 128)),
        Variation("alpha", "α = r", options(alpha_ratio=1.0)),
        Variation("alpha", "α = 2r", options()),
        Variation("alpha", "α = 4r", options(alpha_ratio=4.0)),
        Variation("init", "default", options()),
        *(Variation("init", init, options(init=init)) for init in ("gaussian", "pissa", "olora")),
        Variation("imbalance", "c = 1", options(init="pissa")),
        Variation("imbalance", "c = 4", options(init="pissa", imbalance=4.0)),
    ]


VARIATIONS = _variations()
PARTS = {
    "rank": "Ranks, with α = 2r.",
    "alpha": f"LoRA's α at r = {RANK}.",
    "init": f"Starts of the factors at r = {RANK}, by PEFT's names.",
    "imbalance": "PiSSA's factors A and B turned into cA and B/c: the same product, the same model.",
}


def chosen_variations(parts: Sequence[str] | None = None) -> list[Variation]:
    """Those of some parts, or all.

    Raises:
        ValueError: an unknown part.
    """
    for part in parts or ():
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}; there are {', '.join(PARTS)}")
    return [variation for variation in VARIATIONS if not parts or variation.part in parts]


def start(optimizer: str) -> dict[str, Any]:
    return dict(ADAPTERS[optimizer].space(lora=True).start)


def rates(optimizer: str) -> list[float]:
    """Ascending."""
    return [rounded(start(optimizer)[RATE] * 2.0**power) for power in POWERS]


def config_of(machine: Machine, variation: Variation, optimizer: str, rate: float, seed: int) -> Config:
    return configuration(machine, TASK, variation.options, optimizer, {**start(optimizer), RATE: rate}, seed)


def make_all(
    machine: Machine, store: RunStore, variations: Sequence[Variation], seeds: Sequence[int], workers: int, tell: Tell
) -> None:
    """Make the runs that the store lacks, variation by variation, so that those that there is time for are whole.

    Raises:
        FileNotFoundError: texts are missing.
    """
    task = make_task(machine, {"name": TASK, **VARIATIONS[0].options})
    task.prepare()
    task.evaluation()
    configs = [
        config_of(machine, variation, optimizer, rate, seed)
        for variation in variations
        for optimizer in OPTIMIZERS
        for rate in rates(optimizer)
        for seed in seeds
    ]
    # Two parts may have a variation in common.
    once = list({str(config): config for config in configs}.values())
    make_runs(once, partial(make_run, machine), store, workers, tell, machine.reuses_workers)


@dataclass(frozen=True)
class Basin:
    """The learning rates around the best one that cost at most `TOLERANCE`."""

    low: float
    high: float
    is_open: bool
    """Whether it goes on beyond the rates that were run."""

    @property
    def factor(self) -> float:
        return self.high / self.low

    def __str__(self) -> str:
        return f"{'≥ ' * self.is_open}{self.factor:.1f} ×"


@dataclass(frozen=True)
class Curve:
    """The final losses of an optimizer on a variation, on all seeds at every learning rate.

    Args:
        runs: by learning rate, ascending; one run for each seed.
    """

    variation: Variation
    optimizer: str
    runs: Mapping[float, Sequence[Run]]

    @property
    def losses(self) -> dict[float, Estimate]:
        return {rate: estimate([run.loss for run in runs]) for rate, runs in self.runs.items()}

    @property
    def best_rate(self) -> float:
        losses = self.losses
        return min(losses, key=lambda rate: losses[rate].mean)

    @property
    def best_loss(self) -> float:
        return self.losses[self.best_rate].mean

    def excess(self, rate: float) -> float:
        """Nats that a learning rate costs over the best one; infinite where it diverges."""
        loss = self.losses[rate].mean
        return loss - self.best_loss if math.isfinite(loss) else math.inf

    @property
    def basin(self) -> Basin:
        """Between learning rates the loss is taken to be linear in the rate's logarithm."""
        if not math.isfinite(self.best_loss):
            return Basin(self.best_rate, self.best_rate, is_open=False)
        ascending = list(self.runs)
        place = ascending.index(self.best_rate)
        low, low_open = self._edge(ascending[place::-1])
        high, high_open = self._edge(ascending[place:])
        return Basin(low, high, low_open or high_open)

    def _edge(self, outwards: Sequence[float]) -> tuple[float, bool]:
        """Where the loss, from the best rate on, first leaves the tolerance; and whether it never does."""
        for inner, outer in itertools.pairwise(outwards):
            if self.excess(outer) > TOLERANCE:
                rise = self.excess(outer) - self.excess(inner)
                share = (TOLERANCE - self.excess(inner)) / rise if math.isfinite(rise) else 0.0
                return inner * (outer / inner) ** share, False
        return outwards[-1], True


def curves_in(machine: Machine, store: RunStore, variations: Sequence[Variation], seeds: Sequence[int]) -> list[Curve]:
    """Of the variations whose runs are all there, of every optimizer."""
    found = []
    for variation in variations:
        curves = [_curve(machine, store, variation, optimizer, seeds) for optimizer in OPTIMIZERS]
        whole = [curve for curve in curves if curve is not None]
        if len(whole) == len(OPTIMIZERS):
            found += whole
    return found


def _curve(
    machine: Machine, store: RunStore, variation: Variation, optimizer: str, seeds: Sequence[int]
) -> Curve | None:
    runs: dict[float, list[Run]] = {}
    for rate in rates(optimizer):
        kept = [store.get(config_of(machine, variation, optimizer, rate, seed)) for seed in seeds]
        runs[rate] = [run for run in kept if run is not None]
        if len(runs[rate]) < len(seeds):
            return None
    return Curve(variation, optimizer, runs)


@dataclass(frozen=True)
class Verdict:
    """How well an optimizer's learning rate transfers over some variations."""

    narrowest: Basin
    moves: float
    """The highest of the best learning rates over the lowest."""
    rate: float
    """The one of those run whose highest cost over the variations is lowest."""
    cost: float
    """That cost, in nats."""


def verdict_on(curves: Sequence[Curve]) -> Verdict:
    """Of one optimizer's curves, at least one."""
    best = [curve.best_rate for curve in curves]
    costs = {rate: max(curve.excess(rate) for curve in curves) for rate in curves[0].runs}
    rate = min(costs, key=costs.__getitem__)
    narrowest = min((curve.basin for curve in curves), key=lambda basin: basin.factor)
    return Verdict(narrowest, max(best) / min(best), rate, costs[rate])


# What is written


def write(
    machine: Machine, store: RunStore, variations: Sequence[Variation], seeds: Sequence[int], folder: Path
) -> list[Path]:
    """Write `summary.md`, `losses.csv` and the figure.

    Raises:
        ValueError: no variation has all its runs.
    """
    curves = curves_in(machine, store, variations, seeds)
    if not curves:
        raise ValueError("no variation has all its runs yet: python -m benchmarks transfer makes them")
    page, losses = folder / "summary.md", folder / "losses.csv"
    page.write_text(_page(curves, seeds, machine), encoding="utf-8")
    with losses.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(_csv_rows(curves))
    with matplotlib.rc_context(STYLE):
        drawn = save(_figure(curves), folder / "loss_by_rate")
    return [page, losses, *drawn]


def _csv_rows(curves: Sequence[Curve]) -> Iterator[tuple[Any, ...]]:
    yield "part", "value", "optimizer", "lr", "seed", "loss"
    for curve in curves:
        for rate, runs in curve.runs.items():
            for run in runs:
                yield curve.variation.part, curve.variation.value, curve.optimizer, rate, run.seed, run.loss


def _parts_of(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    return {part: of for part in PARTS if (of := [curve for curve in curves if curve.variation.part == part])}


def _page(curves: Sequence[Curve], seeds: Sequence[int], machine: Machine) -> str:
    first = next(iter(curves[0].runs.values()))[0]
    environment = first.measures["environment"]
    command = f"python -m benchmarks transfer --seeds {','.join(map(str, seeds))}"
    command += " --data-dir DATA" * (machine.folder is not None)
    command += f" --device {machine.device}" * (machine.device != "cpu")
    starts = ", ".join(f"{title(optimizer)} {start(optimizer)[RATE]:g}" for optimizer in OPTIMIZERS)
    parts = _parts_of(curves)
    return "\n\n".join(
        [
            "# Transfer of the learning rate",
            f"LoRA on {TEXT}, {first.conditions['steps']} steps, seed{'s' * (len(seeds) > 1)} "
            f"{', '.join(map(str, seeds))}: final loss in nats per byte, mean ± standard deviation over seeds, at "
            f"learning rates a factor of 2 apart. × 1 is where searches start: {starts}. Nothing else is tuned.",
            f"The range is that of the learning rates within {TOLERANCE} nats of the best one, the narrowest over the "
            "variations, interpolated between the rates that were run; ≥ where it goes on beyond them. The best rate "
            "moves by the ratio of its highest to its lowest. The rate for all is the one that costs least where it "
            "costs most.",
            "## All variations",
            _verdicts(curves),
            *(block for part, of in parts.items() for block in (f"## {part}", PARTS[part], _verdicts(of), _losses(of))),
            "![loss_by_rate](loss_by_rate.svg)",
            f"<sub>`{command} --out benchmarks/results`. {hardware_of(environment)}; {versions_of(environment)}.</sub>",
            "",
        ]
    )


def _verdicts(curves: Sequence[Curve]) -> str:
    header = ("optimizer", "range", "best rate moves by", "rate for all", "costs at most")
    rows = []
    for optimizer in OPTIMIZERS:
        verdict = verdict_on([curve for curve in curves if curve.optimizer == optimizer])
        cost = f"{verdict.cost:.3f}" if math.isfinite(verdict.cost) else "diverges"
        row = (str(verdict.narrowest), f"{verdict.moves:g} ×", short(verdict.rate), cost)
        rows.append((title(optimizer), *row))
    return table(header, rows)


def _losses(curves: Sequence[Curve]) -> str:
    """A row for every curve, a column for every learning rate, the best in bold."""
    header = ("optimizer", "", *(f"× {2.0**power:g}" for power in POWERS), "range")
    rows = []
    for curve in curves:
        cells = {rate: spread(loss) for rate, loss in curve.losses.items()}
        cells[curve.best_rate] = f"**{cells[curve.best_rate]}**"
        rows.append((title(curve.optimizer), curve.variation.value, *cells.values(), str(curve.basin)))
    return table(header, rows)


def _figure(curves: Sequence[Curve]) -> Figure:
    """A column of panels for every part, a row for every optimizer, a line for every value."""
    parts = _parts_of(curves)
    figure = Figure(figsize=(3.0 * len(parts) + 0.6, 2.5 * len(OPTIMIZERS)), layout="constrained")
    panels = figure.subplots(len(OPTIMIZERS), len(parts), squeeze=False, sharey="col", sharex=True)
    for column, (part, of) in enumerate(parts.items()):
        lowest = min(curve.best_loss for curve in of)
        for row, optimizer in enumerate(OPTIMIZERS):
            axes = panels[row][column]
            _draw(axes, [curve for curve in of if curve.optimizer == optimizer])
            if math.isfinite(lowest):
                axes.set_ylim(lowest - 0.03, lowest + ABOVE_THE_BEST)
            axes.set_title(f"{title(optimizer)}, {part}", fontsize=10)
            if row == 0:
                axes.legend(fontsize=8, loc="upper center")
        panels[-1][column].set_xlabel("learning rate, × start")
    for row in range(len(OPTIMIZERS)):
        panels[row][0].set_ylabel("final loss, nats per byte")
    figure.set_label("transfer")
    return figure


def _draw(axes: Axes, curves: Sequence[Curve]) -> None:
    for place, curve in enumerate(curves):
        base = start(curve.optimizer)[RATE]
        points = [(rate / base, loss.mean) for rate, loss in curve.losses.items() if math.isfinite(loss.mean)]
        look: dict[str, Any] = {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 4, "linewidth": 1.4}
        axes.plot([x for x, _ in points], [y for _, y in points], label=curve.variation.value, **look)
    axes.set_xscale("log", base=2)
