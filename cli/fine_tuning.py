"""What `train` and `demo` share: read a recipe, run it with progress, and print what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .documents import print_document
from .invocation import Invocation
from .progress import progress_for
from .render import print_report

if TYPE_CHECKING:
    from scao_hf.finetune.run import FinetuneReport


def fine_tune(
    recipe: str,
    overrides: Sequence[str],
    invocation: Invocation,
    *,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    next_steps: Callable[[FinetuneReport], Sequence[tuple[str, str]]],
) -> None:
    """Run `recipe` and print its report, as text with `next_steps` or as one JSON document."""
    with progress_for(invocation, quiet=quiet) as progress:
        progress.stage("loading torch and transformers")
        from scao_hf.finetune.recipes import load_recipe
        from scao_hf.finetune.run import finetune

        report = finetune(load_recipe(recipe, overrides), progress, overwrite=overwrite)
    if as_json:
        print_document({"status": "ok", **report.to_dict()})
    else:
        print_report(report, next_steps(report))
