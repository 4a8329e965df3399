"""`scao-finetune demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Debug, Overrides, Overwrite, Quiet, given, go_offline

RECIPE = "demo"


def demo(
    context: typer.Context,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder of the run; by default runs/demo, replaced each time.", rich_help_panel="Output"
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fine-tune the tiny model inside this package, offline and on any CPU, in about a minute.

    LoRA and SCAO, on dialogue by Shakespeare: held-out loss and a sample before and after.
    """
    from .fine_tuning import fine_tune
    from .render import next_after_demo

    go_offline()
    settings = given(overrides, output_dir=out)
    fine_tune(
        RECIPE,
        settings,
        context.obj,
        overwrite=overwrite or not names_folder(settings),
        as_json=as_json,
        quiet=quiet,
        next_steps=next_after_demo,
    )


def names_folder(overrides: list[str]) -> bool:
    """Whether the run goes to a folder of the user's choice, where only the user may say that it is replaced."""
    return any(override.partition("=")[0].rpartition(".")[2] == "output_dir" for override in overrides)
