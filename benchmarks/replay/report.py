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

from benchmarks.markdown import table
from benchmarks.optimizers import ADAPTERS
from benchmarks.replay import directions, trackers
from benchmarks.replay.directions import ADAMW, PERIOD, SHAMPOO, SOAP_EXACT, TOP_RANK, DirectionRow
from benchmarks.replay.trackers import AT_REFRESH, EVERY_STEP, EXACT, SKETCH, Grid, Scores, TrackerRow
from benchmarks.report import write_csv
from scao_hf import SCAO
from scao_hf.finetune.comparison import figures
from scao_hf.finetune.comparison.study import Config

DEFAULTS = {name: inspect.signature(SCAO).parameters[name].default for name in ("precond_freq", "rho")}
RANK = 32
"""What SCAO tracks of a side up to 256; of a longer one it is 64."""
TOLD = {
    "AdamW": (ADAMW, "", ""),
    "SCAO": ("SCAO", "default", "factored"),
    "SCAO, k full": ("SCAO", "full", "factored"),
    "SOAP": ("SOAP", "", ""),
    "Muon": ("Muon", "", ""),
    "dense Shampoo": (SHAMPOO, "", ""),
}
"""Which directions the page tells of, and what to look them up by."""
DIGITS = 4
DOTS_PER_INCH = 100


@dataclass(frozen=True)
class Findings:
    """All that a replay measured.

    Args:
        config: of the recording.
        losses: training loss of the recorded steps, nats.
        grid: of the trackers.
        tracked: of every tracker on every side of every layer.
        turned: of every optimizer on every layer.
        environment: what it was made with.
        command: what makes it again.
    """

    config: Config
    losses: Sequence[float]
    grid: Grid
    tracked: Sequence[TrackerRow]
    turned: Sequence[DirectionRow]
    environment: Mapping[str, Any]
    command: str

    @cached_property
    def mean_tracked(self) -> list[TrackerRow]:
        return trackers.averaged(self.tracked)

    @cached_property
    def mean_turned(self) -> list[DirectionRow]:
        return directions.averaged(self.turned)

    def scores(self, tracker: str, statistics: str, rank: int, period: int, rho: float) -> Scores:
        """Of one tracker, mean over layers and sides."""
        wanted = (tracker, statistics, rank, period, rho)
        return next(row.scores for row in self.mean_tracked if row[2:7] == wanted)

    def predictive(self, changed: Mapping[str, Any]) -> float:
        """Of the sketch at SCAO's defaults but for a `rank`, `period` or `rho`."""
        at = {"rank": RANK, "period": DEFAULTS["precond_freq"], "rho": DEFAULTS["rho"], **changed}
        return self.scores(SKETCH, EVERY_STEP, **at).predictive

    def turn(self, optimizer: str, rank: str = "", second_moment: str = "") -> DirectionRow:
        """Of one optimizer, mean over layers."""
        wanted = (optimizer, rank, second_moment)
        return next(row for row in self.mean_turned if row[1:4] == wanted)


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
    layers = ", ".join(f"`{name}`" for name in findings.config["recording"]["layers"])
    return (
        f"The gradients of {layers}, recorded once, after clipping, in steps {task['steps'] - window + 1} to "
        f"{task['steps']} of {ADAPTERS[findings.config['optimizer']].title} ({setting}) on task `lm`, size "
        f"{task['size']}, seed {findings.config['seed']}, and replayed through trackers and optimizers. Nothing is "
        f"trained on what they say: all see the same gradients, those of that run, whose training loss went from "
        f"{findings.losses[0]:.2f} to {findings.losses[-1]:.2f} nats meanwhile. Judged after the first "
        f"{findings.grid.burn_in} recorded steps."
    )


def _tracking(findings: Findings) -> Iterator[str]:
    period, rho, grid = DEFAULTS["precond_freq"], DEFAULTS["rho"], findings.grid
    ours = findings.scores(SKETCH, EVERY_STEP, RANK, period, rho)
    exact = findings.scores(EXACT, EVERY_STEP, RANK, period, rho)
    sparse = findings.scores(SKETCH, AT_REFRESH, RANK, period, rho)
    yield (
        f"**The sketch against the exact eigenbasis** (k {RANK}, refreshed every {period} steps, ρ {rho}; means over "
        f"layers and sides). After a refresh the sketch holds {ours.mass:.3f} of the mass that k columns can hold of "
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
    def cosine(*key: str) -> float:
        return findings.turn(*key).measures.cosine_soap

    ranks = [*map(str, findings.grid.ranks), "full"]
    yield (
        f"**Directions.** The cosine with SOAP refreshed at every step is {cosine(ADAMW):.2f} for AdamW, "
        f"{cosine('Muon'):.2f} for Muon, {cosine(SHAMPOO):.2f} for dense Shampoo and {cosine('SOAP'):.2f} for SOAP "
        f"refreshed every {PERIOD} steps, as all that follow. For SCAO at k {', '.join(ranks)} it is "
        + ", ".join(f"{cosine('SCAO', k, 'factored'):.2f}" for k in ranks)
        + " with the factored second moment and "
        + ", ".join(f"{cosine('SCAO', k, 'elementwise'):.2f}" for k in ranks)
        + " with the elementwise one."
    )
    flat = {name: findings.turn(*key).measures for name, key in TOLD.items()}
    yield (
        "**Flatness.** Effective rank of the update, as a share of the largest possible: "
        + ", ".join(f"{name} {measures.effective_rank:.2f}" for name, measures in flat.items())
        + f". Share of the update's energy in the leading {TOP_RANK} exact eigenvectors of each side: "
        + ", ".join(f"{name} {measures.top_share:.2f}" for name, measures in flat.items())
        + "."
    )


def _defaults(findings: Findings) -> Iterator[str]:
    rows = []
    for argument, name, values in (
        ("precond_freq", "period", findings.grid.periods),
        ("rho", "rho", findings.grid.rhos),
    ):
        held = {value: findings.predictive({name: value}) for value in values}
        best, default = max(held, key=held.__getitem__), DEFAULTS[argument]
        rows.append([f"`{argument}`", f"{default:g}", f"{held[default]:.3f}", f"{best:g}", f"{held[best]:.3f}"])
    yield table(["", "default", "of the next gradients", "most in the grid", "of the next gradients"], rows)
    whole = findings.turn("SCAO", "full", "factored").measures.cosine_soap
    ranks = {k: findings.turn("SCAO", str(k), "factored").measures.cosine_soap for k in findings.grid.ranks}
    yield (
        f"Rank ({RANK} for sides up to 256, 64 beyond): "
        + ", ".join(f"k {k} has {cosine / whole:.0%}" for k, cosine in ranks.items())
        + " of the cosine with SOAP that k = full has at the same period and ρ. As the defaults come, the cosine is "
        f"{findings.turn('SCAO', 'default', 'factored').measures.cosine_soap:.2f}."
    )
    yield (
        "This is a pointer and no more. More mass or a larger cosine is not a lower loss, and SOAP's direction is a "
        "yardstick, not the best one. The gradients are those of one run of one small model; their spectrum changes "
        "with the step, the batch and the optimizer that trains. What a default should be is for the studies that "
        "train."
    )


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
        f"Means over layers. All use β 0.95 and 0.95 and, where they average curvature, ρ {directions.RHO}; what has "
        f"a basis refreshes it every {PERIOD} steps, the two references excepted. The embedding's vocabulary gets no "
        "basis but in SCAO as published, and Muon takes AdamW's step there. RMS is of the update at a learning rate "
        "of 1; effective rank is exp(entropy of σ²) over min(m, n), and the quantiles are of the update's singular "
        "values over its largest. Milliseconds are process time of one matrix at a time, median of all steps and of "
        "those that refresh, on a machine that may have been at other work: `timing` and `step` measure cost "
        "properly."
    )
    rows = [
        [
            " ".join(part for part in (row.optimizer, _described(row)) if part),
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
    yield _cosines_by_layer(findings)
    yield table(["", *measures, f"in top {TOP_RANK}", "ms", "ms, refresh", "state, MB"], rows)


def _cosines_by_layer(findings: Findings) -> str:
    layers = findings.config["recording"]["layers"]
    found = {(row.layer, row[1:4]): row.measures.cosine_soap for row in findings.turned}
    rows = [[name, *(f"{found[layer, key]:.2f}" for layer in layers)] for name, key in TOLD.items()]
    return table([f"cosine with {SOAP_EXACT}", *(f"`{layer}`" for layer in layers)], rows)


def _described(row: DirectionRow) -> str:
    return f"(k {row.rank}, {row.second_moment})" if row.rank else ""


def _footer(findings: Findings) -> str:
    made = findings.environment
    return (
        f"<sub>`{findings.command}`. {made['processor']}, {made['cores']} cores, {made['threads']} thread; Python "
        f"{made['python']}, torch {made['torch']}. `trackers.csv` and `directions.csv` have every row, by layer and as "
        "means.</sub>"
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
                label = f"every {period}" if tracker == SKETCH else None
                look: dict[str, Any] = {"color": figures.COLOURS[place], "marker": figures.MARKERS[place]}
                axes.plot(grid.ranks, heights, line, label=label, markersize=5, **look)
        _by_rank(axes, grid.ranks, [str(rank) for rank in grid.ranks])
        axes.set_title(title, fontsize=11)
    panels[0].set_ylabel(f"share of the best k columns (ρ {rho})")
    panels[0].plot([], [], ":", color=figures.GREY, label="exact eigenbasis")
    panels[0].legend(title="refreshed", fontsize=9, title_fontsize=9)
    return figure


def cosine_to_soap(findings: Findings) -> Figure:
    """SCAO by rank, and where the others are."""
    figure, (axes,) = _panels("cosine-to-soap", 1)
    ranks = [*map(str, findings.grid.ranks), "full"]
    places = [*findings.grid.ranks, 2 * findings.grid.ranks[-1]]
    for place, moment in enumerate(("factored", "elementwise")):
        heights = [findings.turn("SCAO", rank, moment).measures.cosine_soap for rank in ranks]
        look: dict[str, Any] = {"color": figures.COLOURS[place], "marker": figures.MARKERS[place]}
        axes.plot(places, heights, label=f"SCAO, {moment} second moment", **look)
    for place, name in enumerate((ADAMW, "Muon", SHAMPOO, "SOAP"), 2):
        height = findings.turn(name).measures.cosine_soap
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
