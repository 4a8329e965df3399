"""Figures of a comparison, drawn from plain values: name to curves, colours by the order of the names."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from scao_hf.finetune.comparison.curves import Curve, aligned
from scao_hf.finetune.reporting.drawing import COLOURS, GREY, MARKERS, SIZE, STYLE, rate_text, save, svg_text

__all__ = [
    "COLOURS",
    "GREY",
    "MARKERS",
    "SIZE",
    "STYLE",
    "loss_by_rate",
    "loss_by_seconds",
    "loss_by_step",
    "rate_text",
    "save",
    "svg_text",
]

MARKS_PER_LINE = 8
LOSS = "held-out loss (nats per token)"


def loss_by_step(curves: Mapping[str, Sequence[Curve]], *, target: float | None = None, loss: str = LOSS) -> Figure:
    """Mean over seeds of each competitor's loss against the step, with a band from its lowest to its highest seed.

    Args:
        curves: name -> one curve for each seed. A name without curves is not drawn, and keeps its colour.
        target: a loss to mark.
        loss: label of the loss axis.
    """
    return _loss_by("step", dict.fromkeys(curves, 1.0), curves, target, loss)


def loss_by_seconds(
    curves: Mapping[str, Sequence[Curve]],
    step_seconds: Mapping[str, float],
    *,
    target: float | None = None,
    loss: str = LOSS,
) -> Figure:
    """The same against seconds: steps times the mean seconds of a step of each competitor."""
    return _loss_by("seconds of training", step_seconds, curves, target, loss)


def loss_by_rate(trials: Mapping[str, Sequence[tuple[float, float]]], *, loss: str = LOSS) -> Figure:
    """Final loss against the learning rate for every trial; the best of each competitor is filled.

    Args:
        trials: name -> (learning rate, loss) in any order, a rate once; a loss that is not finite, or far above the
            others, is drawn as a triangle at the upper edge.
        loss: label of the loss axis.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _empty("learning rate", loss)
        axes.set_xscale("log")
        ceiling = _ceiling([value for pairs in trials.values() for _, value in pairs])
        for place, (name, pairs) in enumerate(trials.items()):
            if pairs:
                _draw_rates(axes, name, sorted(pairs), ceiling, _look(place))
        _mark_rates(axes, [rate for pairs in trials.values() for rate, _ in pairs])
        _legend(axes, len(trials))
        figure.set_label("loss-by-rate")
        return figure


def _loss_by(
    unit: str, units: Mapping[str, float], curves: Mapping[str, Sequence[Curve]], target: float | None, loss: str
) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure, axes = _empty(unit, loss)
        heights = [] if target is None else [target]
        for place, (name, seeds) in enumerate(curves.items()):
            points = aligned(seeds)
            if points:
                _draw_curve(axes, name, [(step * units[name], losses) for step, losses in points], _look(place))
                # The first steps fall by far more than all that follow, and would leave no room for it.
                heights += [each for step, losses in points if step >= points[-1][0] / 5 for each in losses]
        if target is not None:
            _mark_target(axes, target)
        if heights:
            margin = 0.05 * (max(heights) - min(heights)) or 0.05
            axes.set_ylim(min(heights) - margin, max(heights) + margin)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=unit == "step"))
        _legend(axes, len(curves))
        figure.set_label("loss-by-" + unit.partition(" ")[0])
        return figure


def _draw_curve(axes: Axes, name: str, points: Sequence[tuple[float, Sequence[float]]], look: dict[str, Any]) -> None:
    x = [place for place, _ in points]
    mean = [statistics.fmean(losses) for _, losses in points]
    between = max(1, len(x) // MARKS_PER_LINE)
    axes.plot(x, mean, label=name, markevery=between, markersize=5, linewidth=1.8, **look)
    low, high = ([bound(losses) for _, losses in points] for bound in (min, max))
    axes.fill_between(x, low, high, color=look["color"], alpha=0.22, linewidth=0)


def _mark_target(axes: Axes, target: float) -> None:
    axes.axhline(target, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    # At the left, where the curves are still far above it.
    start: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(f"target {target:.3f}", (0, target), (4, 4), color=GREY, fontsize=9, **start)


def _draw_rates(
    axes: Axes, name: str, pairs: Sequence[tuple[float, float]], ceiling: float, look: dict[str, Any]
) -> None:
    colour, marker = look["color"], look["marker"]
    height = {rate: value if value <= ceiling else ceiling for rate, value in pairs}
    axes.plot(list(height), list(height.values()), color=colour, linestyle=look["linestyle"], linewidth=1.3)
    plain = {"linestyle": "", "color": colour, "markersize": 7.0}
    inside = [rate for rate, value in pairs if value <= ceiling]
    axes.plot(inside, [height[rate] for rate in inside], marker=marker, markerfacecolor="white", label=name, **plain)
    beyond = [rate for rate in height if rate not in inside]
    axes.plot(beyond, [ceiling] * len(beyond), marker="^", markerfacecolor="white", **plain)
    if inside:
        chosen = min(inside, key=height.__getitem__)
        axes.plot([chosen], [height[chosen]], marker=marker, **plain)


def _ceiling(losses: Sequence[float]) -> float:
    """The loss above which a trial only stretches the axis: six times as far from the best as the middle one is."""
    finite = [value for value in losses if math.isfinite(value)]
    if not finite:
        return 1.0
    low, middle, high = min(finite), statistics.median(finite), max(finite)
    ceiling = low + 6 * (middle - low)
    return high if not low < ceiling < high else ceiling


def _mark_rates(axes: Axes, rates: Sequence[float]) -> None:
    if not rates:
        return
    low, high = min(rates), max(rates)
    mantissas = (1, 2, 5) if high / low > 20 else (1, 1.5, 2, 3, 4, 5, 7)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [mantissa * 10.0**decade for decade in decades for mantissa in mantissas]
    axes.set_xlim(low / 1.2, high * 1.2)
    axes.set_xticks([mark for mark in marks if low / 1.2 <= mark <= high * 1.2])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: rate_text(rate)))


def _look(place: int) -> dict[str, Any]:
    """Colour and marker of the competitor at a place; past the palette's end the lines are dashed."""
    turn, place = divmod(place, len(COLOURS))
    return {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": ("-", "--", ":")[turn % 3]}


def _empty(unit: str, loss: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(unit)
    axes.set_ylabel(loss)
    return figure, axes


def _legend(axes: Axes, entries: int) -> None:
    if axes.get_legend_handles_labels()[0]:
        columns = min(entries, 4)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=columns, handlelength=2.2)
