"""The figures of a study. Every optimizer has one colour in all of them; SCAO has a wider line or a bold name."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.optimizers import ADAPTERS
from benchmarks.reporting.recorded import Recorded
from benchmarks.reporting.summary import SUBJECT, Summary
from benchmarks.reporting.tables import BASELINE, Reach
from scao_hf.finetune.comparison import figures
from scao_hf.finetune.comparison.protocol import Comparison, Entry
from scao_hf.finetune.comparison.runs import Run, canonical
from scao_hf.finetune.comparison.statistics import Estimate
from scao_hf.finetune.comparison.tuning import RATE

# A colour returns after seven, with a dashed line: those that share one are not compared in one study.
ORDER = (
    *("adamw", "scao", "soap", "muon", "normuon", "scao_published", "loraplus"),
    *("lorafa", "schedulefree", "soap_pytorch_optimizer", "shampoo", "adamw8bit", "scao_pypi", "riemannian"),
    "adamw_foreach",
)
GREY, PALE = "#555555", "#D9D9D9"
WIDE = 3.0
MEGABYTE = 1e6
BAR_INCHES = 0.42
LAYER_INCHES = 0.19
LONG_NAME = 18


def drawn(recorded: Recorded, summary: Summary) -> Iterator[tuple[str, Figure]]:
    """(file name, figure) of every figure that the runs allow; those in seconds need the timing."""
    comparison, timing = recorded.comparison, recorded.timing
    if comparison is None:
        return
    loss = f"held-out loss (nats per {summary.provenance.target})"
    yield "loss_by_step", loss_by_step(comparison, loss)
    if timing and comparison.entries.keys() <= timing.arms.keys():
        seconds = {name: statistics.fmean(arm.step_seconds) for name, arm in timing.arms.items()}
        yield "loss_by_seconds", loss_by_seconds(comparison, seconds, loss)
        yield "step_cost", step_cost(summary)
    if any(entry.trials for entry in comparison.entries.values()):
        yield "loss_by_rate", loss_by_rate(comparison, loss)
    if summary.time_to_baseline:
        yield "time_to_target", time_to_target(summary.time_to_baseline)
    yield "state_and_loss", state_and_loss(summary, loss)
    if ranks := adapted_ranks(comparison):
        yield "ranks", rank_maps(ranks)


def loss_by_step(comparison: Comparison, loss: str) -> Figure:
    return _emphasised(figures.loss_by_step(_in_order(comparison, _curves), loss=loss))


def loss_by_seconds(comparison: Comparison, step_seconds: Mapping[str, float], loss: str) -> Figure:
    seconds = {title(name): value for name, value in step_seconds.items()}
    return _emphasised(figures.loss_by_seconds(_in_order(comparison, _curves), seconds, loss=loss))


def loss_by_rate(comparison: Comparison, loss: str) -> Figure:
    """Every trial a dot; the line joins those that differ from the best one in their learning rate alone."""
    figure = figures.loss_by_rate(_in_order(comparison, lambda entry: _pairs(_beside_best(entry))), loss=loss)
    axes = figure.axes[0]
    with matplotlib.rc_context(figures.STYLE):
        ceiling = axes.get_ylim()[1]
        for entry in comparison.entries.values():
            others = [run for run in entry.searched if run not in _beside_best(entry)]
            look: dict[str, Any] = {"color": colour(entry.name), "alpha": 0.6, "linewidths": 0, "clip_on": False}
            within = [pair for pair in _pairs(others) if pair[1] <= ceiling]
            beyond = [(rate, ceiling) for rate, value in _pairs(others) if not value <= ceiling]
            axes.scatter(*_columns(within), s=16, **look)
            axes.scatter(*_columns(beyond), s=50, marker="^", **look)
        axes.set_ylim(top=ceiling)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    return _emphasised(figure)


def time_to_target(rows: Sequence[Reach]) -> Figure:
    """Steps, and seconds where they are known, to the tuned baseline's final loss; whiskers are standard deviations."""
    measures: list[tuple[str, Callable[[Reach], Estimate | None]]] = [("steps", lambda row: row.mean_steps)]
    if any(row.mean_seconds for row in rows):
        measures.append(("seconds", lambda row: row.mean_seconds))
    rows = sorted(rows, key=lambda row: row.mean_steps.mean if row.mean_steps else math.inf)
    with matplotlib.rc_context(figures.STYLE):
        figure, panels = _bars([row.optimizer for row in rows], len(measures))
        for axes, (unit, measure) in zip(panels, measures, strict=True):
            for place, row in enumerate(rows):
                _bar(axes, place, measure(row), colour(row.optimizer))
            axes.set_xlabel(f"{unit} to {title(BASELINE)}'s final loss")
        return _labelled(figure, "time-to-target")


def step_cost(summary: Summary) -> Figure:
    """Milliseconds of a step: in the optimizer, coloured, and in the rest of it."""
    rows = sorted(summary.costs, key=lambda row: row.step_seconds.mean if row.step_seconds else math.inf)
    with matplotlib.rc_context(figures.STYLE):
        figure, (axes,) = _bars([row.optimizer for row in rows], 1)
        for place, row in enumerate(rows):
            assert row.step_seconds
            assert row.optimizer_seconds
            whole, inside = 1e3 * row.step_seconds.mean, 1e3 * row.optimizer_seconds.mean
            axes.barh(place, whole - inside, color=PALE)
            axes.barh(place, inside, left=whole - inside, color=colour(row.optimizer))
            axes.annotate(f" {whole:.0f} ms, {row.share:.0%} in the optimizer", (whole, place), va="center", fontsize=9)
        axes.set_xlim(right=1.6 * axes.get_xlim()[1])
        axes.set_xlabel("wall-clock ms a step; coloured: in the optimizer")
        return _labelled(figure, "step-cost")


def state_and_loss(summary: Summary, loss: str) -> Figure:
    """Final loss, with standard deviation, against the bytes that the optimizer keeps."""
    state = {row.optimizer: row.state_bytes / MEGABYTE for row in summary.costs}
    rows = [row for row in summary.losses if math.isfinite(row.loss.mean)]
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=figures.SIZE, dpi=100, layout="constrained")
        axes = figure.add_subplot()
        for row in rows:
            x, name = state[row.optimizer], row.optimizer
            axes.errorbar(
                x,
                row.loss.mean,
                row.loss.deviation,
                capsize=3,
                markersize=8,
                linestyle="",
                color=colour(name),
                marker=marker(name),
            )
            axes.annotate(
                title(name),
                (x, row.loss.mean),
                (8, 6),
                textcoords="offset points",
                fontsize=10,
                fontweight=weight(name),
            )
        axes.set_xlim(0, 1.25 * max(state.values()))
        axes.set_xlabel("optimizer state (MB)")
        axes.set_ylabel(f"final {loss}")
        return _labelled(figure, "state-and-loss")


Ranks = dict[str, dict[int, float]]
"""By layer and step, active columns, the mean over sides and seeds."""


def adapted_ranks(comparison: Comparison) -> dict[str, Ranks]:
    """By optimizer, of those whose ranks move."""
    ranks = {name: mean_ranks(entry.finals) for name, entry in comparison.entries.items()}
    return {
        name: layers
        for name, layers in ranks.items()
        if any(len(set(by_step.values())) > 1 for by_step in layers.values())
    }


def mean_ranks(runs: Sequence[Run]) -> Ranks:
    collected: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        for layer, points in run.measures["ranks"].items():
            for step, rank in points:
                collected.setdefault(layer, {}).setdefault(step, []).append(rank)
    return {
        layer: {step: statistics.fmean(values) for step, values in by_step.items()}
        for layer, by_step in collected.items()
    }


def rank_maps(ranks: Mapping[str, Ranks]) -> Figure:
    """A map of layers and steps for each optimizer; grey where a layer has no rank."""
    layers = list(dict.fromkeys(layer for each in ranks.values() for layer in each))
    steps = sorted({step for each in ranks.values() for by_step in each.values() for step in by_step})
    highest = max(rank for each in ranks.values() for by_step in each.values() for rank in by_step.values())
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        size = (3.0 + 2.6 * len(ranks), 1.2 + LAYER_INCHES * len(layers))
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        panels = figure.subplots(1, len(ranks), sharey=True, squeeze=False)[0]
        colours = matplotlib.colormaps["viridis"].with_extremes(bad=PALE)
        for axes, (name, each) in zip(panels, ranks.items(), strict=True):
            cells = [[each.get(layer, {}).get(step, math.nan) for step in steps] for layer in layers]
            image = axes.imshow(cells, aspect="auto", cmap=colours, vmin=0, vmax=highest, interpolation="nearest")
            axes.set_title(title(name), fontsize=11, fontweight=weight(name))
            marked = range(0, len(steps), max(1, len(steps) // 4))
            axes.set_xticks(marked, [str(steps[place]) for place in marked])
            axes.set_xlabel("step")
        panels[0].set_yticks(range(len(layers)), [layer.removesuffix(".weight") for layer in layers], fontsize=8)
        figure.colorbar(image, ax=list(panels), label="active columns, mean of a layer's sides")
        return _labelled(figure, "ranks")


def title(optimizer: str) -> str:
    return ADAPTERS[optimizer].title


def colour(optimizer: str) -> str:
    return figures.COLOURS[ORDER.index(optimizer) % len(figures.COLOURS)]


def marker(optimizer: str) -> str:
    return figures.MARKERS[ORDER.index(optimizer) % len(figures.MARKERS)]


def weight(optimizer: str) -> str:
    return "bold" if optimizer == SUBJECT else "normal"


def _in_order(comparison: Comparison, values: Callable[[Entry], Any]) -> dict[str, Any]:
    """By title, in the order that the colours go by; nothing for those that are not in the comparison."""
    entries = comparison.entries
    return {title(name): values(entries[name]) if name in entries else [] for name in ORDER}


def _curves(entry: Entry) -> list[Sequence[tuple[int, float]]]:
    return [run.curve for run in entry.finals]


def _beside_best(entry: Entry) -> list[Run]:
    """Trials that share all but the learning rate with the chosen one."""
    if not entry.trials:
        return []
    chosen = canonical({**entry.chosen, RATE: None})
    return [run for run in entry.searched if canonical({**run.setting, RATE: None}) == chosen]


def _pairs(runs: Sequence[Run]) -> list[tuple[float, float]]:
    return [(run.setting[RATE], run.loss) for run in runs]


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _emphasised(figure: Figure) -> Figure:
    """With a wider line for the subject, and a legend that has room for long names."""
    axes = figure.axes[0]
    names = axes.get_legend_handles_labels()[1]
    columns = 3 if max(map(len, names)) > LONG_NAME else 4
    with matplotlib.rc_context(figures.STYLE):
        legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=columns, fontsize=9)
    for line, text in zip(legend.get_lines(), legend.get_texts(), strict=True):
        if text.get_text() == title(SUBJECT):
            text.set_fontweight("bold")
            line.set_linewidth(WIDE)
    for line in axes.get_lines():
        if line.get_label() == title(SUBJECT):
            line.set_linewidth(WIDE)
    return figure


def _bars(optimizers: Sequence[str], panels: int) -> tuple[Figure, Sequence[Axes]]:
    """Panels side by side with a row for each optimizer, the first on top."""
    figure = Figure((figures.SIZE[0], 1.0 + BAR_INCHES * len(optimizers)), dpi=100, layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, panels, sharey=True, squeeze=False, gridspec_kw={"wspace": 0.06})[0]
    axes[0].set_yticks(range(len(optimizers)), [title(name) for name in optimizers])
    axes[0].set_ylim(len(optimizers) - 0.4, -0.6)
    for label, name in zip(axes[0].get_yticklabels(), optimizers, strict=True):
        label.set_fontweight(weight(name))
    for each in axes:
        each.grid(visible=False, axis="y")
        each.tick_params(axis="y", length=0)
    return figure, axes


def _bar(axes: Axes, place: int, value: Estimate | None, colour: str) -> None:
    if value is None:
        axes.annotate(" never", (0, place), va="center", color=GREY)
        return
    axes.barh(place, value.mean, color=colour, xerr=value.deviation, error_kw={"ecolor": GREY, "capsize": 3})


def _labelled(figure: Figure, label: str) -> Figure:
    """Named for the ids of its SVG."""
    figure.set_label(label)
    return figure
