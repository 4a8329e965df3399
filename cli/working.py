"""What the commands over a finished run share: their argument, and a display of what is going on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from .completion import complete_run
from .invocation import Invocation
from .progress import Progress, progress_for

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Folder of a run, or its name in runs/.",
        autocompletion=complete_run,
        show_default=False,
    ),
]
Tokens = Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, metavar="N", help="Longest answer in tokens.")]
Temperature = Annotated[
    float, typer.Option("--temperature", "-t", min=0.0, metavar="T", help="0 takes the likeliest token each time.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of what is drawn.")]


@contextmanager
def working(invocation: Invocation, *, quiet: bool) -> Iterator[Progress]:
    """A display of stages on standard error, in which the libraries keep silent."""
    with progress_for(invocation, quiet=quiet) as progress:
        progress.stage("loading torch and transformers")
        from scao_hf.finetune.quiet import quiet as silence

        with silence():
            yield progress
