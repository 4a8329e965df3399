"""The Typer application: what `scao-finetune` says by itself, and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from scao_hf._version import __version__

from .chat import chat
from .check import check, schema
from .compare import compare
from .console import say
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .failures import EXIT_CODES
from .generate import generate
from .invocation import PROGRAM
from .lr_find import lr_find
from .merge import merge
from .plan import plan
from .preview import preview
from .push import push
from .recipe_commands import recipes
from .report import report
from .run_commands import runs
from .train import train

QUICK_START = f"""\
{PROGRAM} {__version__}: fine-tune language models with the SCAO optimizer

  Try it now, no GPU, no download   {PROGRAM} demo
  See the ready-made recipes        {PROGRAM} recipes list
  Train on your data                {PROGRAM} train lora-sft -m Qwen/Qwen3-0.6B -d data.jsonl
  See first what it will take       {PROGRAM} plan lora-sft -m Qwen/Qwen3-0.6B -d data.jsonl
  Change any setting                {PROGRAM} train lora-sft ... training.learning_rate=1e-4
  Write your own recipe             {PROGRAM} recipes copy lora-sft mine.yaml
  Compare optimizers on your data   {PROGRAM} compare mine.yaml --optim scao --optim adamw_torch
  Something wrong?                  {PROGRAM} doctor

Every command explains itself with --help."""

EPILOG = "Exit codes: " + " · ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())

app = typer.Typer(
    name=PROGRAM,
    help="Fine-tune language models with the SCAO optimizer.",
    epilog=EPILOG,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(preview)
app.command()(train)
app.command()(plan)
app.command()(compare)
app.command("lr-find")(lr_find)
app.add_typer(runs, name="runs")
app.command()(report)
app.command("eval")(evaluate)
app.command()(generate)
app.command()(chat)
app.command()(merge)
app.command()(push)
app.command()(check)
app.command()(schema)
app.add_typer(recipes, name="recipes")
app.command()(doctor)


def print_version(wanted: bool) -> None:
    if wanted:
        say(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def quick_start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        say(QUICK_START)
