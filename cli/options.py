"""Options that more than one command takes, and what they do to a recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .completion import complete_recipe

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe's name (see `recipes list`) or a YAML file.",
        autocompletion=complete_recipe,
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Recipe keys to set: section.key=value, or key=value where one section alone has it. "
        "The value is YAML; null resets the key.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Hub id, directory, or tiny-llama, which comes along.")
]
Data = Annotated[
    str | None,
    typer.Option("--data", "-d", help="Hub id, .jsonl, .json, .csv, .parquet or .txt file, or a directory of such."),
]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", min=1, metavar="N", help="Stop after so many steps.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.", rich_help_panel="Output")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel="Output")]
Debug = Annotated[
    bool, typer.Option("--debug", help="Print the traceback of an unexpected error.", rich_help_panel="Output")
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")]

OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def go_offline() -> None:
    """Keep the Hub's libraries off the network; they read these switches when they are imported."""
    for switch in OFFLINE_SWITCHES:
        os.environ[switch] = "1"


def _offline(wanted: bool) -> bool:
    if wanted:
        go_offline()
    return wanted


Offline = Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.", callback=_offline)]


def given(
    overrides: Sequence[str] | None,
    *,
    model: str | None = None,
    data: str | None = None,
    output_dir: Path | None = None,
    max_steps: int | None = None,
    seed: int | None = None,
) -> list[str]:
    """The options that were given, then the overrides, as `KEY=VALUE`; of two with one key the last counts."""
    options = {
        "model.model_name_or_path": model,
        "data.path": data,
        "training.output_dir": output_dir,
        "training.max_steps": max_steps,
        "training.seed": seed,
    }
    told = [f"{key}={_written(value)}" for key, value in options.items() if value is not None]
    return [*told, *(overrides or ())]


def _written(value: str | int | Path) -> str:
    """Quoted, so that text stays text."""
    return json.dumps(str(value)) if isinstance(value, str | Path) else str(value)
