"""What `train` and `demo` share: read a recipe, run it with progress, and print what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scao_hf.finetune.errors import Interrupted

from .console import tell
from .documents import print_document
from .invocation import PROGRAM, Invocation, process_number
from .progress import progress_for
from .render import print_report

if TYPE_CHECKING:
    from scao_hf.finetune.outcome import FinetuneReport


def fine_tune(
    recipe: str,
    overrides: Sequence[str],
    invocation: Invocation,
    *,
    overwrite: bool,
    resume: bool | Path = False,
    as_json: bool,
    quiet: bool,
    next_steps: Callable[[FinetuneReport], Sequence[tuple[str, str]]],
) -> None:
    """Run `recipe` and print its report, as text with `next_steps` or as one JSON document.

    An interrupted run says which command goes on with it.
    """
    speaks = process_number() == 0
    with progress_for(invocation, quiet=quiet or not speaks) as progress:
        progress.stage("loading torch and transformers")
        from scao_hf.finetune.recipes import load_recipe
        from scao_hf.finetune.run import finetune

        try:
            report = finetune(load_recipe(recipe, overrides), progress, overwrite=overwrite, resume=resume)
        except Interrupted as stopped:
            if stopped.checkpoint is not None:
                stopped.hint = f"to go on: {shlex.join([PROGRAM, 'train', recipe, *overrides, '--resume'])}"
            raise
        if not speaks:
            return
        progress.stage("drawing the report")
        page = draw(report)
    if as_json:
        print_document({"status": "ok", **report.to_dict(), "report": page})
    else:
        print_report(report, next_steps(report), page)


def draw(report: FinetuneReport) -> Path | None:
    """The page of a run that is over; None where it could not be drawn, which is told and costs the run nothing."""
    from scao_hf.finetune.results import report as reports

    try:
        return reports.draw(report.output_dir)
    # A run of hours is not lost to a figure, whatever went wrong in it.
    except Exception as error:
        tell(f"the report was not drawn: {type(error).__name__}: {error}")
        tell(f"the run is saved; try again: scao-finetune report {report.output_dir} --debug")
        return None
