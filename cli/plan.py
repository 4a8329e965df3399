"""`scao-finetune plan`, which is also `train --dry-run`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .console import glyphs_of, say, tell
from .documents import print_document
from .invocation import Invocation
from .options import AsJson, Data, Debug, MaxSteps, Model, Offline, Overrides, Quiet, RecipeName, given
from .progress import progress_for

if TYPE_CHECKING:
    from scao_hf.finetune.planning.outcome import Plan


def plan(
    context: typer.Context,
    recipe: RecipeName,
    overrides: Overrides = None,
    model: Model = None,
    data: Data = None,
    max_steps: MaxSteps = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Load the weights and measure two real steps on the longest rows.")
    ] = False,
    offline: Offline = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what a run will be: rows, tokens, steps, memory, disk, and what to look at twice; nothing is written.

    Everything is checked that `train` checks before its first step. The model's configuration and tokenizer are read,
    its weights are not, so that the plan of a large model needs neither its download nor its memory.

    Examples:

      scao-finetune plan qwen3-0.6b-lora -d chats.jsonl

      scao-finetune plan demo --probe
    """
    settings = given(overrides, model=model, data=data, max_steps=max_steps)
    show_plan(recipe, settings, context.obj, probe=probe, as_json=as_json, quiet=quiet)


def show_plan(
    recipe: str, overrides: Sequence[str], invocation: Invocation, *, probe: bool, as_json: bool, quiet: bool
) -> None:
    """Make the plan of a recipe and print it, as a table or as one JSON document."""
    with progress_for(invocation, quiet=quiet) as progress:
        progress.stage("loading torch and transformers")
        from scao_hf.finetune.planning.plan import plan as planned_run
        from scao_hf.finetune.recipes import load_recipe

        outcome = planned_run(load_recipe(recipe, overrides), progress, probe=probe)
    if as_json:
        print_document({"status": "ok", **outcome.to_dict()})
        return
    say(plan_text(outcome))
    tell(f"\nnext: {shlex.join(['scao-finetune', 'train', recipe, *overrides])}")


def plan_text(outcome: Plan) -> str:
    """The plan as a table as wide as the terminal, in its characters."""
    from scao_hf.finetune.planning.rows import rows

    from .render import columns, result_width

    text = columns(rows(outcome), result_width())
    glyphs = glyphs_of(sys.stdout)
    return text.replace("·", glyphs.dot).replace("–", "-" if glyphs.dot == "|" else "–")
