"""`scao-finetune push`."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import say, tell
from .documents import print_document
from .options import AsJson, Debug, Quiet
from .progress import progress_for
from .working import RunName


def push(
    context: typer.Context,
    run: RunName,
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="name/repository on the hub; made if it is not there.")
    ],
    private: Annotated[bool, typer.Option("--private", help="A repository that is made is yours alone.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Upload the adapter or model of a run to the Hugging Face hub, with a card that says how it was made.

    Example:

      scao-finetune push runs/lora-sft your-name/support-lora --private
    """
    from scao_hf.finetune.results.folder import open_run
    from scao_hf.finetune.results.publishing import push as upload

    folder = open_run(run)
    with progress_for(context.obj, quiet=quiet) as progress:
        progress.stage(f"uploading {folder.weights}")
        pushed = upload(folder, repository, private=private)
    if as_json:
        print_document({"status": "ok", **pushed.to_dict()})
        return
    say(pushed.url)
    for notice in pushed.notices:
        tell(f"note: {notice}")
