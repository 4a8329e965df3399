"""What a replay found: two tables as CSV, a page in words, three figures."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.optimizers import ADAPTERS
from benchmarks.replay import directions, trackers
from benchmarks.replay.directions import ADAMW, PERIOD, SHAMPOO, SOAP_EXACT, TOP_RANK, DirectionRow, Measures
from benchmarks.replay.record import Recording
from benchmarks.replay.trackers import AT_REFRESH, EVERY_STEP, EXACT, SKETCH, Grid, Scores, TrackerRow
from benchmarks.reporting.markdown import table
from benchmarks.reporting.report import write_csv
from scao_hf import SCAO
from scao_hf.finetune.comparison import figures
from scao_hf.finetune.comparison.study import Config

DEFAULTS = {name: inspect.signature(SCAO).parameters[name].default for name in ("precond_freq", "rho")}
RANK = 32
"""Columns that SCAO tracks of a side up to 256; of a longer one 64."""
AS_IT_COMES = ("SCAO", "default", "factored", PERIOD)
TOLD: dict[str, tuple[str, str, str, int | None]] = {
    "AdamW": (ADAMW, "", "", None),
    "SCAO": AS_IT_COMES,
    "SCAO with k full": ("SCAO", "full", "factored", PERIOD),
    "SOAP": ("SOAP", "", "", PERIOD),
    "Muon": ("Muon", "", "", None),
    "dense Shampoo": (SHAMPOO, "", "", 1),
}
"""Which directions the page tells of: name, rank, second moment and period."""
DIGITS = 4
DOTS_PER_INCH = 100


@dataclass(frozen=True)
class Findings:
    """All that a replay measured.

    Args:
        recording: of the gradients.
        grid: of the trackers.
        tracked: of every tracker on every side of every layer.
        turned: of every optimizer on every layer.
        environment: what it was made with.
        text: what the recorded run was trained on.
        command: what makes it again.
    """

    recording: Recording
    grid: Grid
    tracked: Sequence[TrackerRow]
    turned: Sequence[DirectionRow]
    environment: Mapping[str, Any]
    text: str
    command: str

    @property
    def config(self) -> Config:
        return self.recording.config

    @property
    def matrices(self) -> set[str]:
        """The layers that means are over: an embedding is left out, since few rules treat it as they treat a matrix."""
        layers = self.recording.layers
        return {layer.name for layer in layers if layer.treatment["kind"] == "matrix"} or {each.name for each in layers}

    @cached_property
    def mean_tracked(self) -> list[TrackerRow]:
        return trackers.averaged([row for row in self.tracked if row.layer in self.matrices])

    @cached_property
    def mean_turned(self) -> list[DirectionRow]:
        return directions.averaged([row for row in self.turned if row.layer in self.matrices])

    def scores(self, tracker: str, statistics: str, rank: int, period: int, rho: float) -> Scores:
        """Of one tracker, mean over the matrices and their sides."""
        wanted = (tracker, statistics, rank, period, rho)
        return next(row.scores for row in self.mean_tracked if row[2:7] == wanted)

    def predictive(self, changed: Mapping[str, Any]) -> float:
        """Of the sketch at SCAO's defaults but for a `rank`, `period` or `rho`."""
        at = {"rank": RANK, "period": DEFAULTS["precond_freq"], "rho": DEFAULTS["rho"], **changed}
        return self.scores(SKETCH, EVERY_STEP, **at).predictive

    def turn(self, *described: str | int | None) -> Measures:
        """Of one optimizer, described as in `TOLD`, mean over the matrices."""
        return next(row.measures for row in self.mean_turned if row[1:5] == described)


def write(findings: Findings, out: Path) -> None:
    """Write everything into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "trackers.csv", [_flat(row) for row in (*findings.tracked, *findings.mean_tracked)])
    write_csv(out / "directions.csv", [_flat(row) for row in (*findings.turned, *findings.mean_turned)])
    names = []
    for name, figure in drawn(findings):
        figures.save(figure, out / name, DOTS_PER_INCH)
        names.append(name)
    (out / "summary.md").write_text(page(findings, names), encoding="utf-8")


def _flat(row: TrackerRow | DirectionRow) -> dict[str, Any]:
    """One level of names and values, the measured ones to `DIGITS` places."""
    flat: dict[str, Any] = {}
    for name, value in row._asdict().items():
        if hasattr(value, "_asdict"):
            flat |= {inner: part if part is None else round(part, DIGITS) for inner, part in value._asdict().items()}
        else:
            flat[name] = value
    return flat


# The page


def page(findings: Findings, names: Sequence[str]) -> str:
    """The summary, in Markdown, with the figures of these names; every number in it is of these findings."""
    parts = [
        "# Replay",
        _origin(findings),
        f"```bash\n{findings.command}\n```",
        "## What it shows",
        "\n".join(f"- {sentence}" for sentence in (*_tracking(findings), *_turning(findings))),
        "## Where the defaults stand",
        *_defaults(findings),
        "## Tracking by layer",
        _layer_table(findings),
        "## Directions",
        *_direction_table(findings),
        *(f"![{name}]({name}.svg)" for name in names),
        _footer(findings),
    ]
    return "\n\n".join(parts) + "\n"


def _origin(findings: Findings) -> str:
    task, window = findings.config["task"], findings.config["recording"]["window"]
    setting = ", ".join(f"{name} {value}" for name, value in findings.config["setting"].items())
    layers = findings.config["recording"]["layers"]
    losses = findings.recording.losses
    return (
        f"The gradients of {', '.join(layers)}, recorded once, after clipping, in steps {task['steps'] - window + 1} "
        f"to {task['steps']} of {ADAPTERS[findings.config['optimizer']].title} ({setting}) on task `lm`, size "
        f"{task['size']}, seed {findings.config['seed']}, whose training loss went from {losses[0]:.2f} to "
        f"{losses[-1]:.2f} nats meanwhile, and replayed through trackers and optimizers. Nothing is trained on what "
        "they say: all see the same gradients. Each starts at the first of them and is judged after "
        f"{findings.grid.burn_in}. Means are over {', '.join(name for name in layers if name in findings.matrices)}."
    )


def _tracking(findings: Findings) -> Iterator[str]:
    period, rho, grid = DEFAULTS["precond_freq"], DEFAULTS["rho"], findings.grid
    ours = findings.scores(SKETCH, EVERY_STEP, RANK, period, rho)
    exact = findings.scores(EXACT, EVERY_STEP, RANK, period, rho)
    sparse = findings.scores(SKETCH, AT_REFRESH, RANK, period, rho)
    yield (
        f"**The sketch against the exact eigenbasis** (k {RANK}, refreshed every {period} steps, ρ {rho}). "
        f"After a refresh the sketch holds {ours.mass:.3f} of the mass that k columns can hold of "
        f"the exact average and, before the next one, {ours.stale_mass:.3f}; the exact basis then "
        f"{exact.stale_mass:.3f}. Their spans overlap by {ours.overlap:.2f}. Of gradients not yet seen the sketch "
        f"holds {ours.predictive:.3f} of what k columns could, chosen for each gradient; the exact basis "
        f"{exact.predictive:.3f}."
    )
    yield (
        f"**Statistics** from the gradients of refresh steps alone, with the same memory in steps: "
        f"{sparse.predictive:.3f} of gradients not yet seen instead of {ours.predictive:.3f}."
    )
    ranks = [(k, findings.scores(SKETCH, EVERY_STEP, k, period, rho)) for k in grid.ranks]
    yield (
        "**Rank.** Share of the energy of gradients not yet seen: "
        + ", ".join(f"{scores.share:.2f} at k {k}" for k, scores in ranks)
        + "."
    )
    yield f"**Period**, share of the best k columns: {_series('period', grid.periods, findings)}."
    yield f"**ρ**, the same: {_series('rho', grid.rhos, findings)}."


def _series(name: str, values: Sequence[float], findings: Findings) -> str:
    return ", ".join(f"{findings.predictive({name: value}):.3f} at {value:g}" for value in values)


def _turning(findings: Findings) -> Iterator[str]:
    told = {name: findings.turn(*described) for name, described in TOLD.items()}
    ranks = [*map(str, findings.grid.ranks), "full"]
    by_period = [(period, findings.turn(*AS_IT_COMES[:3], period).cosine_soap) for period in findings.grid.periods]
    yield (
        f"**Directions.** The cosine with SOAP refreshed at every step is {told['AdamW'].cosine_soap:.2f} for AdamW, "
        f"{told['Muon'].cosine_soap:.2f} for Muon, {told['dense Shampoo'].cosine_soap:.2f} for dense Shampoo and "
        f"{told['SOAP'].cosine_soap:.2f} for SOAP refreshed every {PERIOD} steps. For SCAO, refreshed as often, it is "
        f"{_cosines(ranks, 'factored', findings)} with the factored second moment and "
        f"{_cosines(ranks, 'elementwise', findings)} with the elementwise one at k {', '.join(ranks)}. As SCAO comes, "
        f"it is {', '.join(f'{cosine:.2f} refreshed every {_steps(period)}' for period, cosine in by_period)}."
    )
    yield (
        "**Flatness.** Effective rank of the update, as a share of the largest possible: "
        + "; ".join(f"{name} {measures.effective_rank:.2f}" for name, measures in told.items())
        + f". Share of the update's energy in the leading {TOP_RANK} exact eigenvectors of each side: "
        + "; ".join(f"{name} {measures.top_share:.2f}" for name, measures in told.items())
        + "."
    )


def _cosines(ranks: Sequence[str], second_moment: str, findings: Findings) -> str:
    return ", ".join(f"{findings.turn('SCAO', rank, second_moment, PERIOD).cosine_soap:.2f}" for rank in ranks)


def _defaults(findings: Findings) -> Iterator[str]:
    grid, rows, gains = findings.grid, [], []
    for argument, name, values, default in (
        ("k_max", "rank", grid.ranks, RANK),
        ("precond_freq", "period", grid.periods, DEFAULTS["precond_freq"]),
        ("rho", "rho", grid.rhos, DEFAULTS["rho"]),
    ):
        held = {value: findings.predictive({name: value}) for value in values}
        best, worst = max(held, key=held.__getitem__), min(held, key=held.__getitem__)
        rows.append([f"`{argument}`", *(f"{held[value]:.3f} at {value:g}" for value in (default, best, worst))])
        gains.append(f"{held[best] - held[default]:.3f} for `{argument}`")
    yield "Share of the best k columns of gradients not yet seen, one setting changed at a time:"
    yield table(["", "the default", "most in the grid", "least in the grid"], rows)
    soap = findings.turn(*AS_IT_COMES).cosine_soap
    rank_gain = findings.turn(*TOLD["SCAO with k full"]).cosine_soap - soap
    period_gain = findings.turn(*AS_IT_COMES[:3], min(grid.periods)).cosine_soap - soap
    yield (
        f"From the default to the best of the grid this rises by {', '.join(gains)}; of `k_max` the default is {RANK} "
        f"for sides up to 256 and 64 for longer ones, and the table takes {RANK} for all. The cosine with SOAP, "
        f"{soap:.2f} as SCAO comes, rises by {rank_gain:.2f} with all columns and by {period_gain:.2f} with a refresh "
        f"every {_steps(min(grid.periods))}."
    )
    yield (
        "This is a pointer and no more. More mass or a larger cosine is not a lower loss, and SOAP's direction is a "
        "yardstick, not the best one. The gradients are those of one run of one small model; their spectrum changes "
        "with the step, the batch and the optimizer that trains. What a default should be is for the studies that "
        "train."
    )


def _steps(period: int) -> str:
    return "step" if period == 1 else f"{period} steps"


def _layer_table(findings: Findings) -> str:
    period, rho = DEFAULTS["precond_freq"], DEFAULTS["rho"]
    chosen = [row for row in findings.tracked if (row.rank, row.period, row.rho) == (RANK, period, rho)]
    exact = {(row.layer, row.side): row.scores for row in chosen if row.tracker == EXACT}
    rows = [
        [
            f"`{row.layer}`, {row.side}",
            *(f"{value:.3f}" for value in row.scores),
            f"{exact[row.layer, row.side].predictive:.3f}",
            f"{exact[row.layer, row.side].drift:.3f}",
        ]
        for row in chosen
        if (row.tracker, row.statistics) == (SKETCH, EVERY_STEP)
    ]
    return (
        f"The sketch at k {RANK}, period {period}, ρ {rho}; the last two columns are the exact eigenbasis's. `mass` "
        "and `stale mass`: just after a refresh and just before the next, over the most that k columns can hold of "
        "the exact average; `predictive`: the same of each gradient not yet seen, and `share` of its whole energy; "
        "`overlap` with the exact span; `drift`, how far the span turns at a refresh. The embedding's vocabulary "
        "gets no basis.\n\n"
        + table(["", *(name.replace("_", " ") for name in Scores._fields), "exact: predictive", "exact: drift"], rows)
    )


def _direction_table(findings: Findings) -> Iterator[str]:
    yield (
        f"All use β 0.95 and 0.95 and, where they average curvature, ρ {directions.RHO}. The embedding's vocabulary "
        "gets no basis but in SCAO as published, and Muon takes AdamW's step there."
    )
    yield _cosines_by_layer(findings)
    yield (
        "Means over layers as above. RMS is of the update at a learning rate of 1; effective rank is exp(entropy of "
        "σ²) over min(m, n), and the quantiles are of the update's singular values over its largest. Milliseconds "
        "are process time of one matrix at a time, median of all steps and of those that refresh, on a machine that "
        "may have been at other work: `timing` and `step` measure cost properly."
    )
    rows = [
        [
            _described(row),
            *(f"{value:.2f}" for value in row.measures[:3]),
            f"{row.measures.rms:.3f}",
            *(f"{value:.2f}" for value in row.measures[4:]),
            f"{row.cost.step_ms:.1f}",
            "–" if row.cost.refresh_ms is None else f"{row.cost.refresh_ms:.1f}",
            f"{row.cost.state_bytes / 1e6:.2f}",
        ]
        for row in findings.mean_turned
    ]
    measures = ["cos SOAP", "cos Shampoo", "cos AdamW", "RMS", "eff. rank", "σ 10%", "σ 50%", "σ 90%"]
    yield table(["", *measures, f"in top {TOP_RANK}", "ms", "ms, refresh", "state, MB"], rows)


def _cosines_by_layer(findings: Findings) -> str:
    layers = findings.config["recording"]["layers"]
    found = {(row.layer, row[1:5]): row.measures.cosine_soap for row in findings.turned}
    rows = [[name, *(f"{found[layer, described]:.2f}" for layer in layers)] for name, described in TOLD.items()]
    return table([f"cosine with {SOAP_EXACT}", *(f"`{layer}`" for layer in layers)], rows)


def _described(row: DirectionRow) -> str:
    parts = [f"k {row.rank}", row.second_moment] if row.rank else []
    if row.period and row.optimizer in ("SCAO", "SOAP"):
        parts.append(f"every {row.period}")
    return f"{row.optimizer} ({', '.join(parts)})" if parts else row.optimizer


def _footer(findings: Findings) -> str:
    made = findings.environment
    return (
        f"<sub>`{findings.command}`. {made['processor']}, {made['cores']} cores, {made['threads']} thread; Python "
        f"{made['python']}, torch {made['torch']}. {findings.text}. `trackers.csv` and `directions.csv` have every "
        "row, by layer and as means.</sub>"
    )


# Figures


def drawn(findings: Findings) -> Iterator[tuple[str, Figure]]:
    """(file name, figure)."""
    with matplotlib.rc_context(figures.STYLE):
        yield "captured-mass", captured_mass(findings)
        yield "cosine-to-soap", cosine_to_soap(findings)
        yield "rho-by-period", rho_by_period(findings)


def captured_mass(findings: Findings) -> Figure:
    """By rank, a line a period: of the average when the basis is oldest, and of the gradients not yet seen."""
    figure, panels = _panels("captured-mass", 2)
    grid, rho = findings.grid, DEFAULTS["rho"]
    for axes, name, title in zip(
        panels,
        ("stale_mass", "predictive"),
        ("of the exact average, before a refresh", "of gradients not yet seen"),
        strict=True,
    ):
        for place, period in enumerate(grid.periods):
            for tracker, line in ((SKETCH, "-"), (EXACT, ":")):
                heights = [
                    getattr(findings.scores(tracker, EVERY_STEP, rank, period, rho), name) for rank in grid.ranks
                ]
                label = _steps(period) if tracker == SKETCH else None
                look: dict[str, Any] = {"color": figures.COLOURS[place], "marker": figures.MARKERS[place]}
                axes.plot(grid.ranks, heights, line, label=label, markersize=5, **look)
        _by_rank(axes, grid.ranks, [str(rank) for rank in grid.ranks])
        axes.set_title(title, fontsize=11)
    panels[0].set_ylabel(f"share of the best k columns (ρ {rho})")
    panels[0].plot([], [], ":", color=figures.GREY, label="exact eigenbasis")
    panels[0].legend(title="refreshed every", fontsize=9, title_fontsize=9)
    return figure


def cosine_to_soap(findings: Findings) -> Figure:
    """SCAO by rank, and where the others are."""
    figure, (axes,) = _panels("cosine-to-soap", 1)
    ranks = [*map(str, findings.grid.ranks), "full"]
    places = [*findings.grid.ranks, 2 * findings.grid.ranks[-1]]
    for place, moment in enumerate(("factored", "elementwise")):
        heights = [findings.turn("SCAO", rank, moment, PERIOD).cosine_soap for rank in ranks]
        look: dict[str, Any] = {"color": figures.COLOURS[place], "marker": figures.MARKERS[place]}
        axes.plot(places, heights, label=f"SCAO, {moment} second moment", **look)
    for place, name in enumerate(("AdamW", "Muon", "dense Shampoo", "SOAP"), 2):
        height = findings.turn(*TOLD[name]).cosine_soap
        axes.axhline(height, color=figures.COLOURS[place], linestyle="--", linewidth=1.2, label=name)
    _by_rank(axes, places, ranks)
    axes.set_ylabel(f"cosine with {SOAP_EXACT}", fontsize=10)
    axes.set_ylim(0, 1)
    axes.legend(fontsize=9, ncols=2, loc="lower right")
    return figure


def rho_by_period(findings: Findings) -> Figure:
    """Share of the best k columns of gradients not yet seen, with statistics from every step and from refreshes."""
    figure, panels = _panels("rho-by-period", 2)
    grid = findings.grid
    found = {
        (row.statistics, row.rho, row.period): row.scores.predictive
        for row in findings.mean_tracked
        if row.tracker == SKETCH and row.rank == RANK
    }
    low, high = min(found.values()), max(found.values())
    for axes, statistics in zip(panels, (EVERY_STEP, AT_REFRESH), strict=True):
        shown = [[found.get((statistics, rho, period), float("nan")) for period in grid.periods] for rho in grid.rhos]
        axes.imshow(shown, cmap="Blues", vmin=low - 0.3 * (high - low), vmax=high, aspect="auto")
        for i, row in enumerate(shown):
            for j, value in enumerate(row):
                dark = value > (low + high) / 2
                text = f"{value:.3f}" if value == value else "as left"
                axes.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
        axes.set_xticks(range(len(grid.periods)), [str(period) for period in grid.periods])
        axes.set_yticks(range(len(grid.rhos)), [f"{rho:g}" for rho in grid.rhos])
        axes.set_xlabel("steps between refreshes")
        axes.set_title(
            f"statistics {'of' if statistics == EVERY_STEP else ''} {statistics}".replace("  ", " "), fontsize=11
        )
        axes.grid(visible=False)
    panels[0].set_ylabel(f"ρ per step (k {RANK})")
    return figure


def _panels(name: str, count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(figures.SIZE[0] * (1.25 if count > 1 else 1), figures.SIZE[1]), layout="constrained")
    figure.set_label(name)
    drawn = figure.subplots(1, count, squeeze=False, sharey=True)
    return figure, list(drawn[0])


def _by_rank(axes: Axes, places: Sequence[int], names: Sequence[str]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, names)
    axes.minorticks_off()
    axes.set_xlabel("columns k per side")
