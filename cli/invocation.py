"""What the error handler and the commands share about one run of the program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROGRAM = "scao-finetune"


@dataclass
class Invocation:
    """Reaches every command as `context.obj`."""

    json: bool
    debug: bool
    run_directory: Path | None = None
    """Set once a run has a folder, so that a traceback lands beside the run."""
