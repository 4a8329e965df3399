"""Figures of one run, drawn from its history."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from scao_hf.finetune.phases import PHASES
from scao_hf.finetune.reporting.drawing import COLOURS, GREY, STYLE, rate_text
from scao_hf.finetune.results.history import History, Points, smoothed

BLUE, RED, GREEN = COLOURS[:3]
PHASE_COLOURS = dict(zip(PHASES, ("#EDEDED", "#FBE8CF", "#DDEBF7"), strict=True))
PALE = "#E4E4E4"
WIDTH = 9.0
"""Inches."""
SHARE_SMOOTHED = 0.06
"""Of the points of a curve, those that its smoothed line averages over."""
LOSS = "loss (nats per token)"
MOST_LABELS = 40
"""Layers whose names stand beside the map of ranks; of more than that, one name for each block."""
PARTS = {"weights": "#9AA5B1", "gradients": COLOURS[4], "optimizer": BLUE, "activations": "#A6D8C8", "rest": PALE}
MEBI, GIBI = 2.0**20, 2.0**30


def losses(history: History) -> Figure:
    """Training and held-out loss against the step and against seconds of training, side by side."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.7), dpi=100, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _draw_losses(left, history.losses(), history.held_out())
        by_seconds = [
            [(history.seconds_at(step), loss) for step, loss in points]
            for points in (history.losses(), history.held_out())
        ]
        _draw_losses(right, *by_seconds)
        left.set_xlabel("step")
        left.set_ylabel(LOSS)
        right.set_xlabel("seconds of training")
        left.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3)
        figure.set_label("losses")
        return figure


def _draw_losses(axes: Axes, training: Points, held_out: Points) -> None:
    span = max(3, round(SHARE_SMOOTHED * len(training)))
    if len(training) > 2 * span:
        axes.plot(*_columns(training), color=BLUE, linewidth=1, alpha=0.3, label="training, as logged")
        axes.plot(*_columns(smoothed(training, span)), color=BLUE, linewidth=1.8, label="training, smoothed")
    else:  # of a handful of points, an average would be another curve
        axes.plot(*_columns(training), color=BLUE, linewidth=1.8, marker=".", label="training")
    # A line between no more than two evaluations would be read as a course that nobody saw.
    line = (0, (4, 2)) if len(held_out) > 2 else ""
    look: dict[str, Any] = {"color": RED, "linewidth": 1.4, "linestyle": line, "marker": "o", "clip_on": False}
    axes.plot(*_columns(held_out), label="held out", zorder=3, **look)
    axes.set_xlim(left=0)


def stability(history: History) -> Figure:
    """Learning rate above the norm of the gradient, over the phases of the optimizer."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2), dpi=100, layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.plot(*_columns(history.rates()), color=GREEN, linewidth=1.8)
        upper.set_ylabel("learning rate")
        upper.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.3g}"))
        upper.set_ylim(bottom=0)
        norms = [(step, norm) for step, norm in history.gradient_norms() if norm > 0]
        lower.plot(*_columns(norms), color=BLUE, linewidth=1.4)
        if norms and max(norm for _, norm in norms) > 30 * min(norm for _, norm in norms):
            lower.set_yscale("log")
        lower.set_ylabel("gradient norm")
        lower.set_xlabel("step")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        spans = history.phases()
        for name, start, end in spans:
            for axes in (upper, lower):
                axes.axvspan(start, end, color=PHASE_COLOURS[name], linewidth=0, zorder=0)
        if spans:
            seen = dict.fromkeys(name for name, _, _ in spans)
            patches = [Patch(color=PHASE_COLOURS[name], label=name) for name in seen]
            figure.legend(handles=patches, loc="outside upper left", ncols=len(patches), title=None)
        lower.set_xlim(0, max((event["step"] for event in history.steps), default=1))
        figure.set_label("stability")
        return figure


def rank_map(ranks: Mapping[str, Mapping[int, float]]) -> Figure:
    """Active columns of every layer at every step that was noted; grey where a layer has no basis yet.

    Args:
        ranks: layer -> step -> columns, as `History.ranks`; not empty.
    """
    layers = sorted(ranks, key=_by_depth)
    steps = sorted({step for by_step in ranks.values() for step in by_step})
    cells = [[ranks[layer].get(step, math.nan) for step in steps] for layer in layers]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, _map_height(len(layers))), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        colours = matplotlib.colormaps["viridis"].with_extremes(bad=PALE)
        noted = [rank for by_step in ranks.values() for rank in by_step.values()]
        lowest, highest = min(noted), max(noted)
        image = axes.imshow(cells, aspect="auto", cmap=colours, vmin=lowest, vmax=highest, interpolation="nearest")
        marked = range(0, len(steps), max(1, math.ceil(len(steps) / 10)))
        axes.set_xticks(marked, [str(steps[place]) for place in marked])
        axes.set_xlabel("step")
        labels = _labels(layers)
        axes.set_yticks(list(labels), list(labels.values()), fontsize=7.5)
        axes.tick_params(length=2)
        figure.colorbar(image, ax=axes, label="active columns", pad=0.015, aspect=30)
        figure.set_label("ranks")
        return figure


def _by_depth(layer: str) -> list[tuple[int, str]]:
    """A key that puts `layers.2` before `layers.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", layer)]


def _map_height(layers: int) -> float:
    """Inches: a line of text for each layer while they are few."""
    return 1.3 + 0.155 * layers if layers <= MOST_LABELS else min(8.0, 3.6 + 0.012 * layers)


def _labels(layers: Sequence[str]) -> dict[int, str]:
    """Row to label: every layer, or where they are many the first of each block."""
    if len(layers) <= MOST_LABELS:
        return dict(enumerate(layers))
    blocks = [_block(layer) for layer in layers]
    firsts = [row for row, block in enumerate(blocks) if row == 0 or block != blocks[row - 1]]
    kept = firsts[:: math.ceil(len(firsts) / MOST_LABELS)]
    return {row: blocks[row] for row in kept}


def _block(layer: str) -> str:
    """`layers.12` of `layers.12.self_attn.q_proj`; a layer outside all blocks as it is."""
    found = re.match(r".*?\.\d+(?=\.)", layer)
    return layer if found is None else found[0]


def memory(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Stacked bars, one for each row, such as "planned" and "measured".

    Args:
        rows: name -> part -> bytes; the parts are those of `PARTS`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.3 + 0.45 * len(rows)), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        drawn = {part: colour for part, colour in PARTS.items() if any(part in parts for parts in rows.values())}
        unit, scale = (
            ("GiB", GIBI) if max(sum(parts.values()) for parts in rows.values()) >= 4 * GIBI else ("MiB", MEBI)
        )
        for place, parts in enumerate(rows.values()):
            start = 0.0
            for part, colour in drawn.items():
                size = parts.get(part, 0.0) / scale
                axes.barh(place, size, left=start, height=0.6, color=colour, label=part if place == 0 else None)
                start += size
            told: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9, "color": GREY}
            axes.annotate(f"{start:,.1f} {unit}", (start, place), (4, 0), **told)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        axes.set_xlabel(unit)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=len(drawn))
        figure.set_label("memory")
        return figure


def rate_sweep(losses: Points, smooth: Points, suggestion: float | None, lowest: float) -> Figure:
    """Training loss against a learning rate that grows with every step, with the suggestion marked.

    Args:
        losses: (rate, loss), rates ascending.
        smooth: the same, averaged.
        suggestion: the rate to mark; None for none.
        lowest: the rate at which the smoothed loss is lowest.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 4.2), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.plot(*_columns(losses), color=BLUE, linewidth=1, alpha=0.3, label="training loss")
        axes.plot(*_columns(smooth), color=BLUE, linewidth=1.8, label="smoothed")
        table = dict(smooth)
        axes.plot([lowest], [table[lowest]], "s", color=GREY, markersize=6, label=f"lowest: {_short(lowest)}")
        if suggestion is not None:
            axes.axvline(suggestion, color=RED, linewidth=1, linestyle=(0, (4, 3)))
            axes.plot([suggestion], [table[suggestion]], "o", color=RED, label=f"suggested: {_short(suggestion)}")
        heights = [loss for _, loss in smooth]
        margin = 0.25 * (max(heights) - min(heights)) or 0.1
        axes.set_ylim(min(heights) - margin, max(heights) + margin)
        axes.set_xlabel("learning rate")
        axes.set_ylabel(LOSS)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
        figure.set_label("lr-find")
        return figure


def _short(rate: float) -> str:
    """Two figures: a sweep is no finer."""
    return rate_text(float(f"{rate:.2g}"))


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
