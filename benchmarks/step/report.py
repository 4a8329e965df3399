"""What was measured of steps alone: JSON, CSV, a page and a figure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.reporting.figures import colour, title, weight
from benchmarks.reporting.markdown import NONE, RESULTS, hardware_of, table, versions_of
from benchmarks.reporting.report import DOTS_PER_INCH, write_csv
from benchmarks.step.measure import DEFAULT_OPTIMIZERS, WARM_UP, Measured, Plan, values_of
from scao_hf.finetune.comparison import figures

MEGABYTE = 1e6
BAR_INCHES = 0.34
HEADER = (
    *("optimizer", "median ms", "mean ms", "95% below, ms", "slowest ms"),
    *("state MB", "× AdamW", "workspace MB"),
)


def write_step(
    found: Sequence[Measured], plan: Plan, optimizers: Sequence[str], environment: Mapping[str, Any], folder: Path
) -> None:
    """Write step.json, step.csv, summary.md and the figure into `folder`.

    Raises:
        ValueError: no optimizer was measured on any model.
    """
    if not any(measured.costs for measured in found):
        raise ValueError("nothing was measured: " + "; ".join(f"{m.name}: {dict(m.left_out)}" for m in found))
    folder.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment, "plan": asdict(plan), "models": [asdict(each) for each in found]}
    (folder / "step.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_csv(folder / "step.csv", [row for each in found for row in values_of(each)])
    figures.save(drawn([measured for measured in found if measured.costs]), folder / "step", DOTS_PER_INCH)
    (folder / "summary.md").write_text(page(found, plan, optimizers, environment), encoding="utf-8")


def page(found: Sequence[Measured], plan: Plan, optimizers: Sequence[str], environment: Mapping[str, Any]) -> str:
    parts = [
        "# Steps alone",
        "`optimizer.step()` with random weights and gradients in the real shapes, without forward and backward passes: "
        f"{plan.steps} steps after {WARM_UP} that do not count, {_clock(plan)}. The slowest step is one with a "
        "refresh, where an optimizer has such. AdamW's state is taken as 8 bytes a trained parameter; workspace is "
        "what a step with a refresh allocates beside the state.",
        "![](step.svg)",
    ]
    for measured in found:
        parts += _section(measured)
    return "\n\n".join([*parts, _footer(found, plan, optimizers, environment)]) + "\n"


def _clock(plan: Plan) -> str:
    if plan.device == "cuda":
        return "wall-clock time of the finished work"
    return "wall-clock time" if plan.threads > 1 else "CPU time of the process"


def _section(measured: Measured) -> Iterator[str]:
    yield f"## {measured.architecture.title}"
    yield " ".join(_said(measured))
    if measured.costs:
        yield table(HEADER, map(_cells, values_of(measured)))
    if measured.left_out:
        yield "Left out: " + "; ".join(f"{title(name)} {why}" for name, why in measured.left_out.items()) + "."


def _said(measured: Measured) -> Iterator[str]:
    layers = measured.architecture.num_layers
    yield f"{measured.parameters:,} trained parameters, {layers} layers."
    if measured.is_scaled:
        yield (
            f"**Scaled**: {measured.layers} of {layers} layers measured, and counted {layers / measured.layers:g} "
            "times; what an optimizer saves by working on all layers together is not in it."
        )
    if not measured.embedding:
        yield "Without what is outside of the layers, such as embeddings."
    if not measured.in_turn:
        yield "The optimizers ran one after the other, since there was no memory for the states of all at once."


def _cells(row: Mapping[str, Any]) -> list[str]:
    workspace = row["workspace_bytes"]
    return [
        title(row["optimizer"]),
        *(_short(row[name]) for name in ("median_ms", "mean_ms", "p95_ms", "max_ms")),
        f"{row['state_bytes'] / MEGABYTE:,.1f}",
        f"{row['state_of_adamw']:.2f}",
        NONE if workspace is None else f"{workspace / MEGABYTE:,.1f}",
    ]


def _footer(found: Sequence[Measured], plan: Plan, optimizers: Sequence[str], environment: Mapping[str, Any]) -> str:
    models = " ".join(measured.name for measured in found)
    chosen = "" if tuple(optimizers) == DEFAULT_OPTIMIZERS else "".join(f" --optimizer {name}" for name in optimizers)
    layers = "" if plan.layers is None else f" --layers {plan.layers}"
    rest = f" --periods {plan.periods} --seconds {plan.seconds:g} --threads {plan.threads} --device {plan.device}"
    bare = "" if plan.embedding else " --no-embedding"
    command = f"python -m benchmarks step {models}{chosen}{layers}{bare}{rest} --out {RESULTS}"
    return f"<sub>`{command}`. {hardware_of(environment)}; {versions_of(environment)}.</sub>"


def drawn(found: Sequence[Measured]) -> Figure:
    """A row of two panels for each model: mean milliseconds, with a mark at the slowest step, and bytes of state."""
    heights = [1 + len(measured.costs) for measured in found]
    with matplotlib.rc_context(figures.STYLE):
        size = (1.3 * figures.SIZE[0], 0.9 + BAR_INCHES * sum(heights) + 0.4 * len(found))
        figure = Figure(size, dpi=100, layout="constrained")
        ratios: Any = {"height_ratios": heights}
        grid = figure.subplots(len(found), 2, sharey="row", squeeze=False, gridspec_kw=ratios)
        for measured, (time, state) in zip(found, grid, strict=True):
            rows = sorted(values_of(measured), key=lambda row: row["mean_ms"])
            _draw_time(time, rows)
            _draw_state(state, rows)
            scaled = f", from {measured.layers} of {measured.architecture.num_layers} layers" * measured.is_scaled
            time.set_title(f"{measured.architecture.title}{scaled}", loc="left", fontsize=11)
        grid[-1][0].set_xlabel("ms a step, logarithmic: mean, and a line to the slowest")
        grid[-1][1].set_xlabel("state, in multiples of AdamW's")
        figure.set_label("step")
        return figure


def _draw_time(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [row["optimizer"] for row in rows]
    for place, row in enumerate(rows):
        mean, most = row["mean_ms"], row["max_ms"]
        axes.barh(place, mean, color=colour(row["optimizer"]))
        axes.plot([mean, most], [place, place], color=figures.GREY, marker="|", linewidth=1)
        axes.annotate(f"  {_short(mean)}, slowest {_short(most)}", (most, place), va="center", fontsize=9)
    axes.set_yticks(range(len(names)), [title(name) for name in names])
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontweight(weight(name))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(rows[0]["mean_ms"] / 4, 60 * max(row["max_ms"] for row in rows))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda milliseconds, _: _short(milliseconds)))
    _plain(axes)


def _short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.3g}" if value < 1000 else f"{float(f'{value:.3g}'):,.0f}"


def _draw_state(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for place, row in enumerate(rows):
        axes.barh(place, row["state_of_adamw"], color=colour(row["optimizer"]))
        axes.annotate(f" {row['state_of_adamw']:.2f}", (row["state_of_adamw"], place), va="center", fontsize=9)
    axes.axvline(1, color=figures.GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 1.2 * max(1, *(row["state_of_adamw"] for row in rows)))
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
