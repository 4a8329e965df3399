"""`scao-finetune generate`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from .console import say
from .documents import print_document
from .options import AsJson, Debug, Quiet
from .working import RunName, Seed, Temperature, Tokens, working

if TYPE_CHECKING:
    from scao_hf.finetune.results.folder import RunFolder
    from scao_hf.finetune.results.generation import Reply


def generate(
    context: typer.Context,
    run: RunName,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            help="What to answer, or to continue; more than once for several. By default the run's own sample.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the model as it was before training as well.")] = False,
    tokens: Tokens = 256,
    temperature: Temperature = 0.7,
    seed: Seed = 42,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Let the model of a run answer prompts, beside its base if you like.

    A run that was trained on conversations takes a prompt as a user's turn, any other one continues it.

    Examples:

      scao-finetune generate runs/lora-sft -p "What is a Kronecker product?"

      scao-finetune generate runs/lora-sft -p "Explain it to a child." --base -t 0
    """
    from scao_hf.finetune.results.folder import open_run

    folder = open_run(run)
    asked = prompts or [own_prompt(folder)]
    with working(context.obj, quiet=quiet) as progress:
        from scao_hf.finetune.results.generation import Drawing
        from scao_hf.finetune.results.generation import generate as answer

        drawing = Drawing(tokens=tokens, temperature=temperature, seed=seed)
        replies = answer(folder, asked, drawing, base=base, stage=progress.stage)
    if as_json:
        print_document({"status": "ok", "replies": [dataclasses.asdict(reply) for reply in replies]})
    else:
        print_replies(replies)


def own_prompt(run: RunFolder) -> str:
    """The prompt of the run's own sample."""
    prompt = run.report.get("sample_prompt")
    if prompt is None:
        raise typer.BadParameter("this run drew no sample whose prompt could be taken", param_hint="'--prompt'")
    return str(prompt)


def print_replies(replies: list[Reply]) -> None:
    from .render import columns, printable, result_width

    for number, reply in enumerate(replies):
        told = [("prompt", reply.prompt), ("before", reply.base), ("after", reply.text)]
        if reply.base is None and len(replies) == 1:
            say(printable(reply.text))
            return
        rows = [(name, printable(text or "(nothing)")) for name, text in told if text is not None]
        say(("\n" if number else "") + columns(rows, result_width()))
