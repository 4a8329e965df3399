"""Two figures: the curves, published and ours, and what the ablations add."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.published import source
from benchmarks.published.arms import ARMS
from benchmarks.published.claims import PERCENT, Finding
from benchmarks.published.measures import Evidence, gap_after
from scao_hf.finetune.comparison.figures import COLOURS, GREY, STYLE
from scao_hf.finetune.comparison.runs import Run
from scao_hf.finetune.comparison.statistics import Estimate

ADAMW, SCAO, CONTROL = COLOURS[0], COLOURS[1], COLOURS[2]
PUBLISHED: dict[str, Any] = {"linestyle": "--", "linewidth": 1.3}
OURS: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8}
BAR = 0.38


def convergence(evidence: Evidence) -> Figure:
    """Perplexity by step, and by how much SCAO's exceeds AdamW's; bands from the lowest to the highest seed."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.0, 4.4), dpi=100, layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_perplexities(left, evidence)
        _draw_gaps(right, evidence)
        for axes in (left, right):
            axes.set_xlabel("step")
            axes.set_xlim(0, ARMS["500/scao"].steps)
            axes.axvline(_start(), color=GREY, linewidth=0.8, linestyle=":")
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=2, fontsize=9)
        figure.set_label("published-convergence")
        return figure


def _start() -> int:
    start = ARMS["500/scao"].preconditioned_from()
    assert start is not None
    return start


def _draw_perplexities(axes: Axes, evidence: Evidence) -> None:
    curve = source.CURVES["500"]
    steps = [point.step for point in curve]
    axes.plot(steps, [point.adamw for point in curve], color=ADAMW, label="AdamW 3e-4, published", **PUBLISHED)
    axes.plot(steps, [point.scao for point in curve], color=SCAO, label="SCAO 3.51e-4, published", **PUBLISHED)
    for arm, label, colour in (
        ("500/adamw", "AdamW 3e-4, ours", ADAMW),
        ("500/scao", "SCAO 3.51e-4, ours", SCAO),
        ("500/adamw-1.17", "AdamW 3.51e-4, ours", CONTROL),
    ):
        curves = [{step: math.exp(loss) for step, loss in run.curve if step} for run in evidence.runs[arm].values()]
        _draw_band(axes, curves, label, colour)
    axes.set_yscale("log")
    axes.set_yticks([10, 12, 15, 20, 30, 50, 100], labels=["10", "12", "15", "20", "30", "50", "100"])
    axes.minorticks_off()
    axes.set_ylabel("validation perplexity")


def _draw_gaps(axes: Axes, evidence: Evidence) -> None:
    curve = source.CURVES["500"]
    axes.axhline(0, color=GREY, linewidth=0.8)
    gaps = [point.gap for point in curve]
    axes.plot([point.step for point in curve], gaps, color=SCAO, label="SCAO, published", **PUBLISHED)
    base = evidence.runs["500/adamw"]
    for arm, label, colour in (
        ("500/scao", "SCAO, ours", SCAO),
        ("500/adamw-1.17", "AdamW 3.51e-4, ours", CONTROL),
    ):
        runs = evidence.runs[arm]
        _draw_band(axes, [_gaps(run, base[seed]) for seed, run in runs.items() if seed in base], label, colour)
    axes.set_ylabel("perplexity over that of AdamW at 3e-4, %")
    axes.annotate(
        "preconditioning starts",
        (_start(), 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=9,
        color=GREY,
    )


def _gaps(run: Run, base: Run) -> dict[int, float]:
    shared = {step for step, _ in run.curve} & {step for step, _ in base.curve}
    return {step: gap_after(step)(run, base) for step in sorted(shared) if step}


def _draw_band(axes: Axes, curves: Sequence[Mapping[int, float]], label: str, colour: str) -> None:
    if not curves:
        return
    steps = sorted(set.intersection(*map(set, curves)))

    def along(summary: Callable[[Sequence[float]], float]) -> list[float]:
        return [summary([curve[step] for curve in curves]) for step in steps]

    axes.plot(steps, along(statistics.fmean), color=colour, label=label, **OURS)
    axes.fill_between(steps, along(min), along(max), color=colour, alpha=0.2, linewidth=0)


def ablations(findings: Sequence[Finding]) -> Figure:
    """What each ablation adds to the perplexity of the full system, percent; whiskers are standard deviations."""
    rows = [finding for finding in findings if finding.claim.id in source.ABLATIONS]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 0.62 * len(rows) + 1.0), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        published = [finding.claim.published or 0.0 for finding in rows]
        places = [place - BAR / 2 for place in range(len(rows))]
        axes.barh(places, published, BAR, label="published", facecolor="white", edgecolor=SCAO, hatch="////")
        ours = [(place + BAR / 2, finding.ours) for place, finding in enumerate(rows) if finding.ours is not None]
        for each, (place, estimate) in enumerate(ours):
            _draw_ablation(axes, place, estimate, "ours" if each == 0 else None)
        axes.axvline(0, color=GREY, linewidth=0.8)
        names = [f"{finding.claim.id}: {source.ABLATIONS[finding.claim.id].what}" for finding in rows]
        axes.set_yticks(range(len(rows)), labels=names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("perplexity over that of the full system, %")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=2)
        figure.set_label("published-ablations")
        return figure


def _draw_ablation(axes: Axes, place: float, ours: Estimate, label: str | None) -> None:
    diverged = not math.isfinite(ours.mean)
    mean, deviation = (0.0, 0.0) if diverged else (ours.mean, ours.deviation or 0.0)
    axes.barh(place, mean, BAR, xerr=deviation, color=SCAO, ecolor=GREY, label=label)
    text, end = "diverged" if diverged else PERCENT.write(mean), (max(mean + deviation, 0.0), place)
    axes.annotate(text, end, xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
