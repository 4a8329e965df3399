"""`scao-finetune chat`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .console import is_terminal, say, tell
from .documents import print_document
from .options import AsJson, Debug, Quiet
from .working import RunName, Seed, Temperature, Tokens, working

if TYPE_CHECKING:
    from scao_hf.finetune.results.generation import Conversation

ASK = "you> "
ANSWER = "model> "
LEAVE = ("/exit", "/quit")
FORGET = "/reset"


def chat(
    context: typer.Context,
    run: RunName,
    base: Annotated[bool, typer.Option("--base", help="Talk with the model as it was before training.")] = False,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A system message to begin with.")
    ] = None,
    tokens: Tokens = 512,
    temperature: Temperature = 0.7,
    seed: Seed = 42,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Talk with the model of a run; its answers appear as they are written.

    /reset forgets what was said, Ctrl-C breaks an answer off, /exit or Ctrl-D ends. From a pipe every line is a turn,
    and standard output has the answers alone.

    Examples:

      scao-finetune chat runs/lora-sft

      echo "What is a sketch?" | scao-finetune chat runs/lora-sft --base
    """
    from scao_hf.finetune.results.folder import open_run

    folder = open_run(run)
    with working(context.obj, quiet=quiet) as progress:
        from scao_hf.finetune.results.generation import Drawing, open_conversation

        drawing = Drawing(tokens=tokens, temperature=temperature, seed=seed)
        conversation = open_conversation(folder, drawing, base=base, system=system, stage=progress.stage)
    from scao_hf.finetune.quiet import quiet as silence

    with silence():
        talk(conversation, aloud=not as_json)
    if as_json:
        print_document({"status": "ok", "messages": conversation.turns})


def talk(conversation: Conversation, *, aloud: bool) -> None:
    """Turn by turn, until the lines end."""
    person = is_terminal(sys.stdin)
    if person and aloud:
        tell(f"{FORGET} forgets what was said; {LEAVE[0]} or Ctrl-D ends", style="dim")
    while (line := next_line(person)) is not None:
        words = line.strip()
        if words in LEAVE:
            return
        if words == FORGET:
            conversation.reset()
        elif words:
            try:
                answer(conversation, words, aloud=aloud, label=ANSWER if person else "")
            except KeyboardInterrupt:
                if not person:
                    raise
                say()  # A person who breaks an answer off goes on talking.


def next_line(person: bool) -> str | None:
    """The next line of standard input; None at its end."""
    try:
        if person:
            return input(ASK)
        line = sys.stdin.readline()
    except (EOFError, KeyboardInterrupt):
        if not person:
            raise
        say()
        return None
    return line or None


def answer(conversation: Conversation, words: str, *, aloud: bool, label: str) -> None:
    from .render import printable

    def write(text: str) -> None:
        sys.stdout.write(printable(text))
        sys.stdout.flush()

    if not aloud:
        conversation.say(words)
        return
    write(label)
    conversation.say(words, write)
    write("\n")
