"""`scao-finetune preview`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .completion import complete_recipe
from .console import console_for, tell
from .documents import print_document
from .failures import print_failure
from .options import AsJson, Data, Debug, Model, Offline, Overrides, Quiet, given

WITHOUT_RECIPE = "lora-sft"
HOLDING_NOTHING_OUT = ["data.test_split_size=null", "training.eval_strategy=no"]
"""What a recipe of ours says about data that are looked at by themselves."""


def preview(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="A recipe's name or a YAML file; may be left out with --data.",
            autocompletion=complete_recipe,
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    model: Model = None,
    data: Data = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=0, metavar="N", help="Rows to show.")] = 3,
    rows: Annotated[
        int, typer.Option("--rows", min=0, metavar="N", help="Rows to count tokens of, drawn at random; 0 for all.")
    ] = 1000,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show each token with its id.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Show long rows whole.")] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Mark trained text with brackets, also on a terminal with colours.")
    ] = False,
    offline: Offline = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Show what a model would be trained on: rows as text, which of it the loss counts, lengths, what is cut.

    Examples:

      scao-finetune preview --data chats.jsonl -m Qwen/Qwen3-0.6B

      scao-finetune preview mine.yaml data.max_length=512 -n 5

    Only the tokenizer is loaded. Without a model, tokens are bytes. Exit code 3 if `train` would refuse the rows.
    """
    if recipe is not None and "=" in recipe and not Path(recipe).exists():
        overrides = [recipe, *(overrides or [])]
        recipe = None
    if recipe is None and data is None:
        raise typer.BadParameter("give a recipe, or data to look at: --data FILE", context)
    from .progress import progress_for

    defaults = HOLDING_NOTHING_OUT if recipe is None else []
    settings = given(overrides, model=model, data=data)
    with progress_for(context.obj, quiet=quiet) as progress:
        progress.stage("loading torch and transformers")
        from scao_hf.finetune.preview import preview as previewed
        from scao_hf.finetune.recipes import load_recipe

        read = load_recipe(recipe or WITHOUT_RECIPE, [*defaults, *settings])
        found = previewed(read, progress, samples=samples, rows=rows or None)
    problem = found.problem
    if as_json:
        print_document({"status": "ok" if problem is None else "error", **found.to_dict()})
    else:
        from .preview_text import print_preview

        print_preview(found, tokens=tokens, full=full, plain=plain)
    if problem is not None:
        print_failure(problem, console_for(sys.stderr))
        return problem.exit_code
    if not as_json and not quiet:
        options = [*(["-m", model or "MODEL"] if recipe is None or model else []), *(["-d", data] if data else [])]
        tell(
            f"\nnext: {shlex.join(['scao-finetune', 'train', recipe or WITHOUT_RECIPE, *options, *(overrides or [])])}"
        )
    return 0
