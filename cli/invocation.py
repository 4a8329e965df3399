"""What the error handler and the commands share about one run of the program."""

from __future__ import annotations

import os
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
    arguments: tuple[str, ...] = ()
    """The command line without the program's name."""


def process_number() -> int:
    """Which of several processes of one training this is, as torchrun, accelerate and `--gpus` tell it; 0 speaks."""
    return int(os.environ.get("RANK", "0"))
