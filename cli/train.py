"""`scao-finetune train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Data, Debug, MaxSteps, Model, Offline, Overrides, Overwrite, Quiet, RecipeName, given


def train(
    context: typer.Context,
    recipe: RecipeName,
    overrides: Overrides = None,
    model: Model = None,
    data: Data = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Folder of the run."),
    ] = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the run will be, as `plan` does; no weights are loaded.")
    ] = False,
    max_steps: MaxSteps = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, metavar="N", help="Seed of everything random.")] = None,
    gpus: Annotated[
        str,
        typer.Option(
            "--gpus",
            metavar="N|auto",
            help="GPUs of this machine to train on, a process for each; auto is all that are visible.",
        ),
    ] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last complete checkpoint of the run's folder.")
    ] = False,
    resume_from: Annotated[
        Path | None,
        typer.Option("--resume-from", metavar="PATH", help="Go on from this checkpoint, or from this run's last one."),
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Fine-tune a model as a recipe says, and evaluate it before and after.

    Examples:

      scao-finetune train lora-sft -m Qwen/Qwen3-0.6B -d data.jsonl

      scao-finetune train mine.yaml lora.r=8 training.learning_rate=1e-4

      scao-finetune train mine.yaml --resume

    Ctrl-C or SIGTERM finishes the step and saves a checkpoint; a second one stops at once.

    A setting comes from the recipe, then from an option such as --model, then from KEY=VALUE; the last one counts.
    """
    from .fine_tuning import fine_tune
    from .launch import launch, stays_on_cpu, wanted_processes
    from .render import next_after_training

    settings = given(overrides, model=model, data=data, output_dir=output_dir, max_steps=max_steps, seed=seed)
    if dry_run:
        from .plan import show_plan

        show_plan(recipe, settings, context.obj, probe=False, as_json=as_json, quiet=quiet)
        return 0
    processes = wanted_processes(gpus)
    if processes > 1 and not stays_on_cpu(recipe, settings):
        return launch(
            recipe, settings, context.obj, processes, overwrite=overwrite or resume or resume_from is not None
        )
    fine_tune(
        recipe,
        settings,
        context.obj,
        overwrite=overwrite,
        resume=resume if resume_from is None else resume_from,
        as_json=as_json,
        quiet=quiet,
        next_steps=next_after_training,
    )
    return 0
