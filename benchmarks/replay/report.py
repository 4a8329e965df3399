"""What a replay found: two tables as CSV, a page in words, three figures."""

from __future__ import annotations

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
from benchmarks.replay.defaults import BETAS, DEFAULTS, PERIOD, tracked_rank
from benchmarks.replay.directions import ADAMW, BLOCK_ROWS, DEFAULT, POLAR, SHAMPOO, SOAP_EXACT, DirectionRow, Measures
from benchmarks.replay.record import Recording
from benchmarks.replay.trackers import EXACT, TURNED, Grid, Scores, TrackerRow
from benchmarks.reporting.markdown import table
from benchmarks.reporting.report import write_csv
from scao_hf.finetune.comparison import figures
from scao_hf.finetune.comparison.study import Config

BETA = BETAS[0]
AS_IT_COMES = ("SCAO", DEFAULT, DEFAULT, PERIOD)
TOLD: dict[str, tuple[str, str, str, int | None]] = {
    "AdamW": (ADAMW, "", "", None),
    "SCAO": AS_IT_COMES,
    "SCAO with k full": ("SCAO", "full", DEFAULT, PERIOD),
    "SOAP": ("SOAP", "", "", PERIOD),
    "Muon": ("Muon", "", "", None),
    "dense Shampoo": (SHAMPOO, "", "", 1),
}
"""Which directions the page tells of: name, rank, rows of a block, and period."""
JUDGES = {
    "the polar factor": (POLAR, "cosine_polar"),
    "SOAP refreshed every step": (SOAP_EXACT, "cosine_soap"),
    "dense Shampoo": (SHAMPOO, "cosine_shampoo"),
}
"""By what the page calls a reference, its name among the candidates and the measure."""
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

    @cached_property
    def ranks(self) -> dict[str, int]:
        """By layer, the directions that SCAO tracks by default; of the layers that it whitens.

        Means are over these: few rules treat an embedding as they treat a matrix.
        """
        tracked = {layer.name: tracked_rank(layer.shape, layer.treatment) for layer in self.recording.layers}
        return {name: rank for name, rank in tracked.items() if rank}

    @property
    def rank(self) -> int:
        """The rank that the page tells of: the default, of the layers that track least."""
        return min(self.ranks.values())

    @cached_property
    def mean_tracked(self) -> list[TrackerRow]:
        return trackers.averaged([row for row in self.tracked if row.layer in self.ranks])

    @cached_property
    def mean_turned(self) -> list[DirectionRow]:
        return directions.averaged([row for row in self.turned if row.layer in self.ranks])

    def scores(
        self, tracker: str = TURNED, rank: int | None = None, period: int = PERIOD, beta: float = BETA
    ) -> Scores:
        """Of one tracker, mean over the layers; at SCAO's defaults where nothing is said."""
        wanted = (tracker, rank or self.rank, period, beta)
        return next(row.scores for row in self.mean_tracked if row[2:6] == wanted)

    def turn(self, *described: str | int | None) -> Measures:
        """Of one optimizer, described as in `TOLD`, mean over the layers."""
        return next(row.measures for row in self.mean_turned if row[1:5] == described)

    def by_rank(self) -> dict[str, Measures]:
        """SCAO refreshed at its default period, by directions tracked."""
        ranks = [*map(str, self.grid.ranks), "full"]
        return {rank: self.turn("SCAO", rank, DEFAULT, PERIOD) for rank in ranks}

    def by_block_rows(self) -> dict[str, Measures]:
        """SCAO at its default rank and period, by rows of a block."""
        return {str(rows): self.turn("SCAO", DEFAULT, str(rows), PERIOD) for rows in BLOCK_ROWS}

    def by_period(self) -> dict[str, Measures]:
        """SCAO as it comes but for its period."""
        return {str(period): self.turn("SCAO", DEFAULT, DEFAULT, period) for period in self.grid.periods}


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
        f"{findings.grid.burn_in}. Means are over {', '.join(findings.ranks)}."
    )


def _tracking(findings: Findings) -> Iterator[str]:
    grid, ours, exact = findings.grid, findings.scores(), findings.scores(EXACT)
    yield (
        f"**SCAO's subspace against the exact one** (k {findings.rank}, refreshed every {_steps(PERIOD)}, β₁ "
        f"{BETA:g}). Just after a refresh it holds {ours.mass:.3f} of what k columns can hold of the look-ahead "
        f"momentum and, just before the next, {ours.stale_mass:.3f}; the exact leading eigenvectors, taken as often, "
        f"1 and {exact.stale_mass:.3f}. Over all the steps in which it is used, it holds {ours.used_mass:.3f}, they "
        f"{exact.used_mass:.3f}. It overlaps with them by {ours.overlap:.2f} just after a refresh, and a refresh turns "
        f"it by {ours.drift:.2f}, them by {exact.drift:.2f}."
    )
    shares = [f"{findings.scores(rank=rank).share:.2f} at k {rank}" for rank in grid.ranks]
    yield f"**Rank.** Share of the momentum's energy in the subspace, in use: {', '.join(shares)}."
    held = [f"{findings.scores(period=period).used_mass:.3f} at {period}" for period in grid.periods]
    yield f"**Period.** Share of the best k columns, in use: {', '.join(held)}."
    held = [f"{findings.scores(beta=beta).used_mass:.3f} at {beta:g}" for beta in grid.betas]
    yield f"**β₁**, the same: {', '.join(held)}."


def _turning(findings: Findings) -> Iterator[str]:
    told = {name: findings.turn(*described) for name, described in TOLD.items()}
    for title, (judge, cosine) in JUDGES.items():
        others = {name: getattr(each, cosine) for name, each in told.items() if TOLD[name][0] != judge}
        yield f"**Cosine with {title}:** {', '.join(f'{value:.2f} for {name}' for name, value in others.items())}."
    cosines = {
        "k": findings.by_rank(),
        "the rows of a block": findings.by_block_rows(),
        "the period": findings.by_period(),
    }
    series = [f"by {name}, {_cosines(measured)}" for name, measured in cosines.items()]
    yield f"**SCAO's cosine with the polar factor:** {'; '.join(series)}."
    yield (
        "**Flatness.** Effective rank of the update, as a share of the largest possible: "
        + ", ".join(f"{each.effective_rank:.2f} for {name}" for name, each in told.items())
        + f". Of SCAO by k, {_effective_ranks(findings.by_rank())}; by the rows of a block, "
        + f"{_effective_ranks(findings.by_block_rows())}."
    )


def _cosines(measured: Mapping[str, Measures]) -> str:
    return ", ".join(f"{each.cosine_polar:.2f} at {name}" for name, each in measured.items())


def _effective_ranks(measured: Mapping[str, Measures]) -> str:
    return ", ".join(f"{each.effective_rank:.2f} at {name}" for name, each in measured.items())


def _defaults(findings: Findings) -> Iterator[str]:
    grid, rank, come = findings.grid, findings.rank, findings.turn(*AS_IT_COMES).cosine_polar
    held: list[tuple[str, Any, Mapping[Any, float]]] = [
        ("k_max", rank, {rank: findings.scores(rank=rank).used_mass for rank in grid.ranks}),
        ("precond_freq", PERIOD, {period: findings.scores(period=period).used_mass for period in grid.periods}),
        ("betas[0]", BETA, {beta: findings.scores(beta=beta).used_mass for beta in grid.betas}),
    ]
    yield "Share that the subspace holds, in use, of what the best k columns could, one setting changed at a time:"
    yield _standing([(name, (default, found[default]), found) for name, default, found in held])
    turned = [
        ("k_max", rank, findings.by_rank()),
        ("precond_freq", PERIOD, findings.by_period()),
        ("block_rows", DEFAULTS["block_rows"], findings.by_block_rows()),
    ]
    cosines = [(name, at, {value: each.cosine_polar for value, each in found.items()}) for name, at, found in turned]
    yield "Cosine of SCAO's direction with the polar factor, likewise:"
    yield _standing([(name, (default, come), found) for name, default, found in cosines])
    gains = ", ".join(f"{max(found.values()) - come:.3f} for `{name}`" for name, _, found in cosines)
    yield f"From the default to the best of the grid the cosine rises by {gains}."
    yield (
        "This is a pointer and no more. More mass or a larger cosine is not a lower loss, and the polar factor is a "
        "yardstick, not the best direction: SCAO whitens by damped triangular factors and then evens the columns, "
        "which is another direction even where all columns are tracked. "
        "The gradients are those of one run of one small model; their spectrum changes with the step, the batch and "
        "the optimizer that trains. What a default should be is for the studies that train."
    )


def _standing(rows: Sequence[tuple[str, tuple[Any, float], Mapping[Any, float]]]) -> str:
    """Each setting's value at its default, and at the best and the least of its grid."""
    cells = []
    for name, default, found in rows:
        best, worst = max(found, key=found.__getitem__), min(found, key=found.__getitem__)
        shown = (default, (best, found[best]), (worst, found[worst]))
        cells.append([f"`{name}`", *(f"{value:.3f} at {at}" for at, value in shown)])
    return table(["", "the default", "most in the grid", "least in the grid"], cells)


def _steps(period: int) -> str:
    return "step" if period == 1 else f"{period} steps"


def _layer_table(findings: Findings) -> str:
    chosen = [row for row in findings.tracked if row[3:6] == (findings.rank, PERIOD, BETA)]
    exact = {row.layer: row.scores for row in chosen if row.tracker == EXACT}
    rows = [
        [
            f"`{row.layer}`, {row.side}",
            *(f"{value:.3f}" for value in row.scores),
            *(f"{value:.3f}" for value in (exact[row.layer].stale_mass, exact[row.layer].used_mass)),
            f"{exact[row.layer].drift:.3f}",
        ]
        for row in chosen
        if row.tracker == TURNED
    ]
    ours = [name.replace("_", " ") for name in Scores._fields]
    return (
        f"SCAO's subspace of the short side at k {findings.rank}, period {PERIOD}, β₁ {BETA:g}; the last three columns "
        "are those of the exact leading eigenvectors, taken as often. `mass` and `stale mass`: just after a refresh "
        "and just before the next, over the most that k columns can hold of the look-ahead momentum of that step; "
        "`used mass`: the mean over the steps in which the subspace is used, and `share` there of the whole energy; "
        "`overlap` with the exact span just after a refresh; `drift`, how far a refresh turns the span.\n\n"
        + table(["", *ours, "exact: stale mass", "exact: used mass", "exact: drift"], rows)
    )


def _direction_table(findings: Findings) -> Iterator[str]:
    beta1, beta2 = BETAS
    elsewhere = [layer.name for layer in findings.recording.layers if layer.name not in findings.ranks]
    yield (
        f"All use β {beta1:g} and {beta2:g} and, where they average curvature, ρ {directions.RHO:g}. SCAO, Muon and "
        "the polar factor look ahead, the others do not."
        + (f" SCAO and Muon take AdamW's step for {', '.join(elsewhere)}." if elsewhere else "")
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
            *(f"{value:.2f}" for value in row.measures[:4]),
            f"{row.measures.rms:.3f}",
            *(f"{value:.2f}" for value in row.measures[5:]),
            f"{row.cost.step_ms:.1f}",
            "–" if row.cost.refresh_ms is None else f"{row.cost.refresh_ms:.1f}",
            f"{row.cost.state_bytes / 1e6:.2f}",
        ]
        for row in findings.mean_turned
    ]
    measures = ["cos polar", "cos SOAP", "cos Shampoo", "cos AdamW", "RMS", "eff. rank", "σ 10%", "σ 50%", "σ 90%"]
    yield table(["", *measures, "ms", "ms, refresh", "state, MB"], rows)


def _cosines_by_layer(findings: Findings) -> str:
    layers = findings.config["recording"]["layers"]
    found = {(row.layer, row[1:5]): row.measures.cosine_polar for row in findings.turned}
    rows = [[name, *(f"{found[layer, described]:.2f}" for layer in layers)] for name, described in TOLD.items()]
    return table(["cosine with the polar factor", *(f"`{layer}`" for layer in layers)], rows)


def _described(row: DirectionRow) -> str:
    parts = [f"k {row.rank}"] if row.rank not in ("", DEFAULT) else []
    parts += [f"blocks of {row.block_rows}"] if row.block_rows not in ("", DEFAULT) else []
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
        yield "cosine-to-polar", cosine_to_polar(findings)
        yield "beta-by-period", beta_by_period(findings)


def captured_mass(findings: Findings) -> Figure:
    """By rank, a line a period: just before a refresh, and over all the steps in use."""
    figure, panels = _panels("captured-mass", 2)
    grid = findings.grid
    titles = {"stale_mass": "just before a refresh", "used_mass": "over the steps in use"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        for place, period in enumerate(grid.periods):
            for tracker, line in ((TURNED, "-"), (EXACT, ":")):
                heights = [getattr(findings.scores(tracker, rank, period), name) for rank in grid.ranks]
                label = _steps(period) if tracker == TURNED else None
                look: dict[str, Any] = {"color": figures.COLOURS[place], "marker": figures.MARKERS[place]}
                axes.plot(grid.ranks, heights, line, label=label, markersize=5, **look)
        _powers(axes, grid.ranks, [str(rank) for rank in grid.ranks])
        axes.set_xlabel("directions tracked, k")
        axes.set_title(title, fontsize=11)
    panels[0].set_ylabel(f"share of the best k columns (β₁ {BETA:g})")
    panels[0].plot([], [], ":", color=figures.GREY, label="exact eigenvectors")
    panels[1].legend(*panels[0].get_legend_handles_labels(), title="refreshed every", fontsize=9, title_fontsize=9)
    return figure


def cosine_to_polar(findings: Findings) -> Figure:
    """SCAO by rank, by rows of a block and by period, and where the others are."""
    figure, panels = _panels("cosine-to-polar", 3)
    by_name = {
        "directions tracked, k": findings.by_rank(),
        "rows of a block": findings.by_block_rows(),
        "steps between refreshes": findings.by_period(),
    }
    come = findings.turn(*AS_IT_COMES).cosine_polar
    for axes, (name, measured) in zip(panels, by_name.items(), strict=True):
        heights = [each.cosine_polar for each in measured.values()]
        axes.plot(range(len(heights)), heights, label="SCAO", color=figures.COLOURS[0], marker=figures.MARKERS[0])
        axes.axhline(come, color=figures.COLOURS[0], linestyle=":", linewidth=1.2, label="SCAO as it comes")
        for place, other in enumerate(("AdamW", "Muon", "dense Shampoo", "SOAP"), 1):
            height = findings.turn(*TOLD[other]).cosine_polar
            axes.axhline(height, color=figures.COLOURS[place], linestyle="--", linewidth=1.2, label=other)
        axes.set_xticks(range(len(heights)), list(measured))
        axes.set_xlabel(name)
        axes.set_ylim(0, 1)
    panels[0].set_ylabel("cosine with the polar factor")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=9)
    return figure


def beta_by_period(findings: Findings) -> Figure:
    """Share of the best k columns over the steps in use, of SCAO's subspace and of the exact one."""
    figure, panels = _panels("beta-by-period", 2)
    grid = findings.grid
    found = {
        (row.tracker, row.beta, row.period): row.scores.used_mass
        for row in findings.mean_tracked
        if row.rank == findings.rank
    }
    low, high = min(found.values()), max(found.values())
    for axes, tracker in zip(panels, (TURNED, EXACT), strict=True):
        shown = [[found[tracker, beta, period] for period in grid.periods] for beta in grid.betas]
        axes.imshow(shown, cmap="Blues", vmin=low - 0.3 * (high - low), vmax=high, aspect="auto")
        for i, row in enumerate(shown):
            for j, value in enumerate(row):
                colour = "white" if value > (low + high) / 2 else "black"
                axes.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=9, color=colour)
        axes.set_xticks(range(len(grid.periods)), [str(period) for period in grid.periods])
        axes.set_yticks(range(len(grid.betas)), [f"{beta:g}" for beta in grid.betas])
        axes.set_xlabel("steps between refreshes")
        axes.set_title("SCAO's subspace" if tracker == TURNED else "exact eigenvectors", fontsize=11)
        axes.grid(visible=False)
    panels[0].set_ylabel(f"β₁ (k {findings.rank})")
    return figure


def _panels(name: str, count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(figures.SIZE[0] * (1.25 if count > 1 else 1), figures.SIZE[1]), layout="constrained")
    figure.set_label(name)
    drawn = figure.subplots(1, count, squeeze=False, sharey=True)
    return figure, list(drawn[0])


def _powers(axes: Axes, places: Sequence[int], names: Sequence[str]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, names)
    axes.minorticks_off()
