"""`scao-finetune eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .completion import complete_run
from .console import say
from .documents import print_document
from .options import AsJson, Debug, Offline, Overrides, Quiet
from .working import working

if TYPE_CHECKING:
    from scao_hf.finetune.results.evaluation import Evaluated


def evaluate(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="Folder of a run or its name in runs/; or a model: hub id, directory, tiny-llama.",
            autocompletion=complete_run,
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Rows to evaluate on, all of them: as `train` takes it. By default those that the run held out.",
        ),
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Loss and perplexity of the model of a run, or of any model.

    Examples:

      scao-finetune eval runs/lora-sft

      scao-finetune eval runs/lora-sft --data unseen.jsonl

      scao-finetune eval Qwen/Qwen3-0.6B --data unseen.jsonl data.loss_on=all
    """
    from scao_hf.finetune.results.folder import is_run, open_run

    run = open_run(target) if is_run(target) else None
    if run is None and data is None:
        raise typer.BadParameter(f"{target} is not a run, so give the data to evaluate on", param_hint="'--data'")
    with working(context.obj, quiet=quiet) as progress:
        from scao_hf.finetune.results.evaluation import evaluate_model, evaluate_run

        if run is not None:
            result = evaluate_run(run, data, overrides or [], progress.stage)
        else:
            result = evaluate_model(target, data or "", overrides or [], progress.stage)
    if as_json:
        print_document({"status": "ok", **result.to_dict()})
    else:
        print_result(result)


def print_result(result: Evaluated) -> None:
    from scao_hf.finetune.units import counted

    from . import figures
    from .render import columns, loss_tokens, result_width

    rows = [
        ("loss", f"{result.loss:.4f} (nats per token, on {loss_tokens(result.loss_on)})"),
        ("perplexity", figures.perplexity(result.perplexity)),
        ("data", f"{result.data}: {counted(result.rows, 'row')}, {figures.count(result.tokens)} tokens counted"),
        ("took", figures.duration(result.seconds)),
    ]
    if result.recorded_loss is not None:
        rows.insert(1, ("at the end of the run", f"{result.recorded_loss:.4f}"))
    say(result.model, style="bold")
    say(columns(rows, result_width(), indent=2))
