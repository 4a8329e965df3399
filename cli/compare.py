"""`scao-finetune compare`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .documents import print_document
from .options import AsJson, Data, Debug, MaxSteps, Model, Offline, Overrides, Quiet, RecipeName, given

PROTOCOL = "Protocol"


def learning_rates(text: str | None) -> list[float] | None:
    """The numbers of "1e-4,2e-4,4e-4"."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        message = f"{text!r} is not numbers between commas, such as 1e-4,2e-4,4e-4"
        raise typer.BadParameter(message, param_hint="'--lrs'") from error


def typed(context: typer.Context) -> str:
    """This call as one would type it, without what only changes how it is shown."""
    words = context.command_path.split()
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name in ("as_json", "quiet", "debug") or value in (None, False):
            continue
        name = [] if parameter.param_type_name == "argument" else [max(parameter.opts, key=len)]
        values = value if isinstance(value, list | tuple) else [value]
        words += name if value is True else [word for each in values for word in (*name, str(each))]
    return shlex.join(words)


def compare(
    context: typer.Context,
    recipe: RecipeName,
    overrides: Overrides = None,
    optimizers: Annotated[
        list[str] | None,
        typer.Option(
            "--optim",
            metavar="NAME",
            help="An optimizer, as training.optim takes it; twice or more, the first against the others. "
            "By default scao and adamw_torch.",
            show_default=False,
        ),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            "--lrs",
            metavar="A,B,C",
            help="Learning rates to begin with; by default half, once and twice the recipe's.",
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            min=1,
            metavar="N",
            help="Learning rates to try with each optimizer; by default those of --lrs and two more.",
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", min=1, metavar="N", help="Final runs of each at its best rate.", rich_help_panel=PROTOCOL
        ),
    ] = 3,
    target_loss: Annotated[
        float | None,
        typer.Option(
            "--target-loss",
            metavar="X",
            help="Held-out loss to time; by default where AdamW ends, or else the worst.",
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    assertions: Annotated[
        list[str] | None,
        typer.Option(
            "--assert",
            metavar="EXPR",
            help="Exit with 8 unless this holds; of NAME.eval_loss, steps_to_target, seconds_to_target, step_seconds, "
            "state_bytes.",
            show_default=False,
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    model: Model = None,
    data: Data = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Folder of runs and report; by default the recipe's with -compare."),
    ] = None,
    max_steps: MaxSteps = None,
    offline: Offline = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Compare optimizers on a recipe and your data: the same chance for each, several seeds, a report.

    Every optimizer gets the same number of learning rates to try, with a seed that the final runs do not use; then its
    best rate runs with each of the other seeds. All runs see the same batches and held-out rows, which is checked, so
    the recipe must hold rows out. Metrics are kept, adapters and models are not. After a Ctrl-C, the same command goes
    on where it was.

    Examples:

      scao-finetune compare compare-adamw-scao

      scao-finetune compare lora-sft -m Qwen/Qwen3-0.6B -d data.jsonl

      scao-finetune compare mine.yaml --optim scao --optim soap --assert "scao.eval_loss <= 1.01 * soap.eval_loss"
    """
    from scao_hf.finetune.comparison.contest import OPTIMIZERS, Request, hold

    from .compare_progress import CompareProgress
    from .compare_result import print_outcome, print_unmet, unmet

    settings = given(overrides, model=model, data=data, max_steps=max_steps)
    request = Request(
        recipe=recipe,
        overrides=settings,
        optimizers=optimizers or OPTIMIZERS,
        rates=learning_rates(rates),
        trials=trials,
        seeds=seeds,
        target_loss=target_loss,
        assertions=assertions or [],
        output_dir=output_dir,
        command=typed(context),
    )
    with CompareProgress(context.obj, quiet=quiet) as progress:
        progress.stage("loading torch and transformers")
        outcome = hold(request, progress)
        progress.stage("writing the report")
        from scao_hf.finetune.comparison.report import document, write

        page = write(outcome)
    failure = unmet(outcome)
    exit_code = 0 if failure is None else failure.exit_code
    if as_json:
        status = "ok" if failure is None else "assertion-failed"
        print_document({"status": status, "exit_code": exit_code, "report": page, **document(outcome)})
    else:
        print_outcome(outcome, page)
    if failure is not None:
        print_unmet(failure)
    return exit_code
