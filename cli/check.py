"""`scao-finetune check` and `schema`: recipes before they are run, in a terminal and in an editor."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from scao_hf.finetune.errors import FinetuneError

from .completion import complete_recipe
from .console import console_for, say, tell
from .documents import print_document
from .failures import print_failure
from .options import AsJson, Debug

RECIPE_ERROR = 2


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is to be said of one recipe."""

    name: str
    changes: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    failure: FinetuneError | None = None

    def passes(self, *, strict: bool) -> bool:
        return self.failure is None and not (strict and self.notices)


def check(
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE...", help="YAML files, or names of recipes.", autocompletion=complete_recipe),
    ],
    fix: Annotated[
        bool, typer.Option("--fix", help="Write keys that transformers has renamed under their new names.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A renamed or unread key is an error.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Check recipes without running them: every unknown key, wrong type and impossible value, each with its place.

    Examples:

      scao-finetune check mine.yaml

      scao-finetune check recipes/*.yaml --fix
    """
    verdicts = [judge(name, fix=fix) for name in recipes]
    passed = all(verdict.passes(strict=strict) for verdict in verdicts)
    if as_json:
        print_document({"status": "ok" if passed else "error", "recipes": [plain(verdict) for verdict in verdicts]})
    else:
        for verdict in verdicts:
            show(verdict, strict=strict)
    return 0 if passed else RECIPE_ERROR


def judge(name: str, *, fix: bool) -> Verdict:
    """Read a recipe, after its renamed keys have been written anew where `fix` asks for it."""
    from scao_hf.finetune.recipes import load_recipe

    changes: tuple[str, ...] = ()
    try:
        if fix:
            changes = mended(name)
        return Verdict(name=name, changes=changes, notices=load_recipe(name).notices)
    except FinetuneError as error:
        return Verdict(name=name, changes=changes, failure=error)


def mended(name: str) -> tuple[str, ...]:
    """Mend the file of a recipe in place; a recipe of the package is not a file of the user's, and stays."""
    from scao_hf.finetune.mending import mend
    from scao_hf.finetune.quiet import quiet
    from scao_hf.finetune.recipes import find_recipe, is_packaged, recipe_text, write_text

    path = find_recipe(name)
    if is_packaged(path):
        return ()
    with quiet():
        outcome = mend(recipe_text(name), str(path))
    if outcome.changes:
        write_text(path, outcome.text)
    return (*outcome.changes, *(f"{sentence}; left as it is" for sentence in outcome.left))


def show(verdict: Verdict, *, strict: bool) -> None:
    for change in verdict.changes:
        say(change)
    for notice in verdict.notices:
        say(f"{verdict.name}: {notice}")
    if verdict.failure is not None:
        print_failure(verdict.failure, console_for(sys.stderr))
    elif verdict.passes(strict=strict):
        say(f"{verdict.name}: ok")
    else:
        tell(f"{verdict.name}: old names (--fix writes the new ones)")


def plain(verdict: Verdict) -> dict[str, object]:
    failure = verdict.failure
    problems = [] if failure is None else [problem.to_dict() for problem in failure.problems]
    return {
        "recipe": verdict.name,
        "changes": verdict.changes,
        "notices": verdict.notices,
        "problems": problems,
    }


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there instead of printing it.")
    ] = None,
) -> None:
    """Print the JSON Schema of recipes, by which an editor completes and checks them.

    An editor with the YAML language server takes it from the first line of a recipe:

      # yaml-language-server: $schema=recipe.schema.json

    Examples:

      scao-finetune schema -o recipe.schema.json
    """
    from scao_hf.finetune.quiet import quiet
    from scao_hf.finetune.recipes import write_text

    with quiet():
        from scao_hf.finetune.json_schema import recipe_schema

        document = recipe_schema()
    if output is None:
        print_document(document)
    else:
        write_text(output, json.dumps(document, indent=2) + "\n")
        say(str(output))
