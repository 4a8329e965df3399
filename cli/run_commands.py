"""`scao-finetune runs list`, `show` and `diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import say, tell
from .documents import print_document
from .options import AsJson
from .working import RunName

if TYPE_CHECKING:
    from scao_hf.finetune.results.folder import RunFolder
    from scao_hf.finetune.results.listing import Line

runs = typer.Typer(help="The runs that were made: list, show, diff.")

HEADINGS = ("RUN", "STATUS", "STEPS", "HELD-OUT", "OPTIMIZER", "LR", "TIME", "STARTED")


@runs.callback(invoke_without_command=True)
def list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_runs()


@runs.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look, a few folders deep.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List runs, the latest first: how each stands, and its losses."""
    from scao_hf.finetune.results.folder import find_runs
    from scao_hf.finetune.results.listing import line_of

    from .render import columns, result_width

    lines = [line_of(run) for run in find_runs(folder)]
    if as_json:
        print_document([line.to_dict() for line in lines])
        return
    if not lines:
        tell(f"no run in {folder}; `scao-finetune demo` makes one")
        return
    say(columns([HEADINGS, *map(table_row, lines)], result_width()))


def table_row(line: Line) -> tuple[str, ...]:
    from . import figures

    total = "" if line.total_steps is None else f"/{line.total_steps}"
    return (
        line.name,
        line.status,
        f"{line.step}{total}",
        figures.loss(line.eval_loss),
        line.optimizer or "-",
        "-" if line.learning_rate is None else f"{line.learning_rate:g}",
        "-" if line.seconds is None else figures.duration(line.seconds),
        (line.started or "-").replace("T", " ").removesuffix("+00:00"),
    )


@runs.command("show")
def show_run(run: RunName, as_json: AsJson = False) -> None:
    """Print a run: its settings, its results, and where its files are."""
    from scao_hf.finetune.results.folder import open_run

    from .render import columns, result_width

    folder = open_run(run)
    if as_json:
        print_document(dict(folder.facts))
        return
    say(f"{folder.path}: {folder.status}", style="bold")
    for heading, rows in blocks(folder):
        say(f"\n{heading}", style="bold")
        say(columns(rows, result_width(), indent=2))


def blocks(run: RunFolder) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headings, each with its rows."""
    from scao_hf.finetune.results import summary

    found = [("Results", results(run)), ("Settings", summary.settings(run) if run.info else [])]
    versions = ", ".join(f"{name} {version}" for name, version in summary.versions(run))
    files = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in run.path.iterdir())
    made = [("machine", summary.machine(run)), ("versions", versions), ("files", ", ".join(files))]
    return [(heading, rows) for heading, rows in [*found, ("Made", made)] if rows]


def results(run: RunFolder) -> list[tuple[str, str]]:
    """What was measured, or why it ended early."""
    from scao_hf.finetune.results.listing import line_of

    from . import figures

    line, report = line_of(run), run.report
    rows = [("steps", f"{line.step} of {line.total_steps}")]
    error = run.facts.get("error")
    if error is not None:
        rows.append(("ended by", f"{error['code']}: {error['message']}"))
    if report.get("initial_eval_loss") is not None:
        losses = (figures.loss(report["initial_eval_loss"]), figures.loss(report["final_eval_loss"]))
        perplexities = (
            figures.perplexity(report["initial_perplexity"]),
            figures.perplexity(report["final_perplexity"]),
        )
        rows.append(("held-out loss", f"{losses[0]} before, {losses[1]} after"))
        rows.append(("perplexity", f"{perplexities[0]} before, {perplexities[1]} after"))
    elif line.eval_loss is not None:
        rows.append(("held-out loss", f"{figures.loss(line.eval_loss)} at the last evaluation"))
    if line.train_loss is not None:
        rows.append(("training loss", f"{figures.loss(line.train_loss)} at the last logged step"))
    if line.seconds is not None:
        rows.append(("training took", figures.duration(line.seconds)))
    return rows


@runs.command("diff")
def diff_runs(first: RunName, second: RunName, as_json: AsJson = False) -> None:
    """Compare two runs: the settings that differ, and what came of each.

    Two single runs say little of two settings; `compare` gives each the same chance, on several seeds.
    """
    from scao_hf.finetune.results.folder import open_run
    from scao_hf.finetune.results.listing import difference

    from .render import columns, result_width

    found = difference(open_run(first), open_run(second))
    if as_json:
        print_document(found.to_dict())
        return
    names = ("", found.first.name, found.second.name)
    for heading, values in (("Settings", found.settings), ("Results", found.results)):
        rows = [(name, told(a), told(b)) for name, (a, b) in values.items() if (a, b) != (None, None)]
        say(("\n" if heading == "Results" else "") + heading, style="bold")
        say(columns([names, *rows], result_width(), indent=2) if rows else "  no difference")
    if not found.same_data:
        tell("\nthe runs read different rows, so their losses cannot be compared")


def told(value: Any) -> str:
    """A setting or a result in a cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.5g}" if isinstance(value, float) else str(value)
