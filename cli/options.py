"""Options that more than one command takes, and what they do to a recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

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
Offline = Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.", rich_help_panel="Output")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel="Output")]
Debug = Annotated[
    bool, typer.Option("--debug", help="Print the traceback of an unexpected error.", rich_help_panel="Output")
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")]

OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def as_override(key: str, value: str | int | Path | None) -> list[str]:
    """`key=value` for an option that was given, nothing for one that was not; quoted, so that text stays text."""
    if value is None:
        return []
    return [f"{key}={json.dumps(str(value)) if isinstance(value, str | Path) else value}"]


def joined(*groups: Iterable[str]) -> list[str]:
    return [override for group in groups for override in group]


def go_offline() -> None:
    """Keep the Hub's libraries off the network; they read these switches when they are imported."""
    for switch in OFFLINE_SWITCHES:
        os.environ[switch] = "1"
