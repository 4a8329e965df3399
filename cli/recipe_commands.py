"""`scao-finetune recipes list`, `show`, `copy` and `measure`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .completion import complete_packaged_recipe
from .console import say, tell
from .documents import print_document
from .options import AsJson, Data, Debug, Model, Offline, Overrides, Quiet, given
from .progress import progress_for

if TYPE_CHECKING:
    from scao_hf.finetune.recipes import RecipeSummary

recipes = typer.Typer(help="The ready-made recipes: list, show, copy; and measure one.")

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A recipe's name.", autocompletion=complete_packaged_recipe),
]


@recipes.callback(invoke_without_command=True)
def list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_recipes()


@recipes.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List the recipes: what each trains, on what, and how."""
    from scao_hf.finetune.recipes import describe, recipe_names

    from .render import columns, result_width

    summaries = [describe(name) for name in recipe_names()]
    if as_json:
        print_document([dataclasses.asdict(summary) for summary in summaries])
        return
    say(columns([("NAME", "METHOD", "WHAT"), *map(table_row, summaries)], result_width()))
    tell("\nscao-finetune recipes show NAME prints one; scao-finetune train NAME runs it.")


def table_row(summary: RecipeSummary) -> tuple[str, str, str]:
    needed = [option for option, given in (("-m MODEL", summary.model), ("-d DATA", summary.data)) if given is None]
    told = summary.description + (f" (give {' and '.join(needed)})" if needed else "")
    return summary.name, f"{summary.method}, {summary.optimizer}", "\n".join([told, *summary.measured])


@recipes.command("show")
def show_recipe(name: Name) -> None:
    """Print a recipe as it was written."""
    from scao_hf.finetune.recipes import recipe_text

    say(recipe_text(name).rstrip("\n"))


@recipes.command("copy")
def copy_a_recipe(
    name: Name,
    destination: Annotated[
        Path | None,
        typer.Argument(metavar="DEST", help="File or folder; by default ./NAME.yaml.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")] = False,
) -> None:
    """Copy a recipe to a file of your own, to edit and train."""
    from scao_hf.finetune.recipes import copy_recipe

    written = shown(copy_recipe(name, destination, force=force))
    say(written)
    tell(f"next: scao-finetune train {written}")


@recipes.command("measure")
def measure_recipe(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A recipe's YAML file; its `measured` is written.", exists=True)
    ],
    overrides: Overrides = None,
    model: Model = None,
    data: Data = None,
    offline: Offline = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a recipe once and write into it what the run took and reached; the run itself is not kept.

    A measurement of the same device with the same settings is replaced, others stay.

    Examples:

      scao-finetune recipes measure mine.yaml
    """
    settings = given(overrides, model=model, data=data)
    with progress_for(context.obj, quiet=quiet) as progress:
        progress.stage("loading torch and transformers")
        from scao_hf.finetune.measuring import measure

        entry = measure(file, settings, progress)
    if as_json:
        print_document({"status": "ok", "recipe": file, "measured": entry})
    else:
        say(f"{file}: {', '.join(f'{key} {value}' for key, value in entry.items())}")


def shown(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
