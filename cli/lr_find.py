"""`scao-finetune lr-find`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import say, tell
from .documents import print_document
from .options import AsJson, Data, Debug, Model, Offline, Overrides, Quiet, RecipeName, given
from .working import working

if TYPE_CHECKING:
    from scao_hf.finetune.lr_find import Found


def lr_find(
    context: typer.Context,
    recipe: RecipeName,
    overrides: Overrides = None,
    model: Model = None,
    data: Data = None,
    low: Annotated[float, typer.Option("--low", metavar="LR", help="The rate of the first step.")] = 1e-6,
    high: Annotated[float, typer.Option("--high", metavar="LR", help="The rate of the last step.")] = 1.0,
    steps: Annotated[int, typer.Option("--steps", min=20, metavar="N", help="Steps of the sweep.")] = 100,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Folder of record and figure; by default runs/lr-find-RECIPE."),
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Look for a learning rate: one short run whose rate grows with every step, until the loss leaves.

    Nothing is kept but the curve. The suggestion is where the smoothed loss falls fastest: a place to begin from, which
    `compare --lrs` can judge.

    Example:

      scao-finetune lr-find lora-sft -m Qwen/Qwen3-0.6B -d data.jsonl
    """
    if not 0 < low < high:
        raise typer.BadParameter(f"the rates must be above 0 and grow, got {low:g} to {high:g}", param_hint="'--low'")
    settings = given(overrides, model=model, data=data)
    with working(context.obj, quiet=quiet) as progress:
        from scao_hf.finetune.lr_find import Sweep, check_folder, find_rate, write
        from scao_hf.finetune.recipes import load_recipe

        loaded = load_recipe(recipe, settings)
        folder = output_dir or Path("runs", f"lr-find-{loaded.name}")
        check_folder(folder)
        found = find_rate(loaded, Sweep(low=low, high=high, steps=steps), progress)
        files = write(found, folder)
    if as_json:
        print_document({"status": "ok", **found.to_dict(), "files": files})
    else:
        print_found(
            found,
            files,
            shlex.join(["scao-finetune", "train", recipe, *command_options(model, data), *(overrides or [])]),
        )


def command_options(model: str | None, data: str | None) -> list[str]:
    """The options as they would be typed again."""
    return [word for name, value in (("-m", model), ("-d", data)) if value is not None for word in (name, value)]


def print_found(found: Found, files: list[Path], command: str) -> None:
    from .render import columns, result_width

    ended = "" if found.ended_at == found.sweep.steps else f", where the loss left after {found.ended_at} steps"
    last = found.sweep.rate(found.ended_at)
    rows = [
        ("swept", f"{found.sweep.low:.3g} to {last:.3g}{ended}"),
        ("lowest loss", f"at {found.lowest:.3g}"),
        ("suggestion", "none: the loss fell at no rate" if found.suggestion is None else f"{found.suggestion:.2g}"),
        ("files", ", ".join(map(str, files))),
    ]
    say(f"{found.info.recipe}: {found.info.optimizer} on {found.info.model}", style="bold")
    say(columns(rows, result_width(), indent=2))
    if found.suggestion is not None:
        tell(f"\nnext: {command} learning_rate={found.suggestion:.2g}")
