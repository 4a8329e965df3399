"""The report of one run: a page that needs nothing but a browser, and its figures as PNG and SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scao_hf.finetune.layout import REPORT
from scao_hf.finetune.results import summary
from scao_hf.finetune.results.folder import RunFolder, open_run
from scao_hf.finetune.results.history import History, read_history
from scao_hf.finetune.results.memory_use import memory_bars, memory_caption, memory_table
from scao_hf.finetune.units import byte_size, count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
TEMPLATE = "results/run.html.jinja"
STATUS = {
    "finished": "finished",
    "failed": "failed: what it had measured by then",
    "interrupted": "interrupted: what it had measured by then",
    "running": "still running, or killed: what it has measured so far",
}


def write_report(run: RunFolder) -> list[Path]:
    """Write `report/report.html` and each of its figures into the folder of the run; returns the files, the page first.

    Any run can be drawn that has begun, finished or not.
    """
    from scao_hf.finetune.reporting.drawing import save

    history = read_history(run.path)
    folder = run.path / REPORT
    folder.mkdir(exist_ok=True)
    drawn = list(figures_of(run, history))
    page = folder / PAGE
    page.write_text(html(run, history, drawn), encoding="utf-8", newline="")
    return [page, *(file for figure, _ in drawn for file in save(figure, folder / str(figure.get_label())))]


def draw(folder: Path) -> Path:
    """`write_report` for the run in a folder; returns the page."""
    return write_report(open_run(folder))[0]


def figures_of(run: RunFolder, history: History) -> Iterator[tuple[Figure, str]]:
    """(figure, caption) of all that the run has the numbers for."""
    from scao_hf.finetune.results import figures

    if history.losses() or len(history.held_out()) > 1:
        rows = f" Held out: {run.info['eval_rows']} rows." if history.held_out() else ""
        yield figures.losses(history), f"Nats per token.{rows} Seconds of training leave evaluation and saving out."
    if history.steps:
        yield figures.stability(history), _stability_caption(run, history)
    if history.ranks:
        yield figures.rank_map(history.ranks), _rank_caption(history)
    bars = memory_bars(run.facts)
    if bars:
        yield figures.memory(bars), memory_caption(run.facts)


def _stability_caption(run: RunFolder, history: History) -> str:
    told = "Learning rate, and the norm of the gradient before clipping."
    if not history.phases():
        return told
    return f"{told} Shaded: the phases of {run.info['optimizer']}, from plain Adam to full preconditioning."


def _rank_caption(history: History) -> str:
    rows = len(history.ranks)
    return (
        f"Active columns of the basis of each of {rows} preconditioned tensors, mean over its sides: how many "
        "directions its curvature needs. Grey: no basis yet."
    )


def html(run: RunFolder, history: History, drawn: list[tuple[Figure, str]]) -> str:
    """The page: figures inline, nothing loaded from anywhere."""
    from scao_hf.finetune.reporting.drawing import svg_text
    from scao_hf.finetune.reporting.page import render

    weights = run.weights if run.report else None
    return render(
        TEMPLATE,
        run=run,
        status=STATUS.get(run.status, run.status),
        tiles=list(tiles(run, history)),
        figures=[(svg_text(figure), caption) for figure, caption in drawn],
        memory=memory_table(bars) if (bars := memory_bars(run.facts)) else [],
        settings=summary.settings(run),
        loading=None if weights is None else summary.loading(str(weights), run.is_adapter),
        command=f"scao-finetune chat {run.path}" if run.is_chat else f"scao-finetune generate {run.path} -p TEXT",
        error=run.facts.get("error"),
        versions=summary.versions(run),
        machine=summary.machine(run),
        recipe_text=run.resolved.read_text(encoding="utf-8"),
    )


def tiles(run: RunFolder, history: History) -> Iterator[tuple[str, str, str]]:
    """(what, figure, how it came about): the numbers one looks for first."""
    held_out, training = history.held_out(), history.losses()
    if held_out:
        (_, first), (step, last) = held_out[0], held_out[-1]
        yield "held-out loss", f"{last:.3f}", f"from {first:.3f}" if step else "before training"
        yield "perplexity", _perplexity(last), f"from {_perplexity(first)}" if step else "before training"
    elif training:
        yield "training loss", f"{training[-1][1]:.3f}", f"from {training[0][1]:.3f}"
    if history.steps:
        last_step = history.steps[-1]
        seconds, done = last_step["elapsed_seconds"], last_step["step"]
        yield "steps", f"{done}", f"of {run.info['total_steps']}, {seconds / done:.3g} s each"
        yield "tokens", count(last_step["tokens"]), f"{count(last_step['tokens'] / max(seconds, 1e-9))} a second"
    if run.facts.get("memory"):
        share = run.facts["memory"]["optimizer"] / max(1, run.facts["memory"]["weights"])
        yield "optimizer state", byte_size(run.facts["memory"]["optimizer"]), f"{share:.0%} of the weights"


def _perplexity(loss: float) -> str:
    value = math.exp(min(loss, 700.0))
    return f"{value:.2f}" if value < 1e4 else f"{value:.1e}"
