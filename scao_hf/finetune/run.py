"""One fine-tuning run: from a recipe to a saved adapter or model, or to measurements alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scao_hf.finetune.config import Recipe
from scao_hf.finetune.failures import answers
from scao_hf.finetune.observer import EvalMetrics, Observer, RunInfo, Silence, StepMetrics
from scao_hf.finetune.outcome import FinetuneReport, Measurement
from scao_hf.finetune.surroundings import is_first_process, no_trace, passing, surroundings

if TYPE_CHECKING:
    from scao_hf.finetune.resume import Resumption

__all__ = [
    "EvalMetrics",
    "FinetuneReport",
    "Measurement",
    "Observer",
    "RunInfo",
    "Silence",
    "StepMetrics",
    "answers",
    "finetune",
    "identify",
    "measure",
]


def finetune(
    recipe: Recipe, observer: Observer | None = None, *, overwrite: bool = False, resume: bool | Path = False
) -> FinetuneReport:
    """Fine-tune as the recipe says: evaluate, train, evaluate again, and save.

    Nothing is written before the recipe, the data and the model have been checked. From then on `run.json` in the
    output directory says how the run stands, and it ends as "finished", "failed" or "interrupted".

    Args:
        recipe: from `load_recipe`.
        observer: told of every stage, step and evaluation; silent by default.
        overwrite: replace an earlier run in `training.output_dir` instead of refusing a directory that is not empty.
        resume: go on from the last complete checkpoint of `training.output_dir` (True), or from a checkpoint's or a
            run's directory. The run continues bit for bit; settings that cannot change are refused.

    Raises:
        FinetuneError: anything the user can answer; `exit_code` says of which kind.
        Interrupted: Ctrl-C or SIGTERM, after the step in hand was finished and a checkpoint saved.
    """
    from scao_hf.finetune import settings

    settings.require_complete(recipe)
    settings.check_reporters(recipe)
    output_dir = settings.output_directory(recipe)
    resumption = _resumption(resume, output_dir, overwrite)
    observer = observer if observer is not None and is_first_process() else Silence()
    for notice in recipe.notices + (() if resumption is None else resumption.notices):
        observer.notice(notice)
    observer.stage("loading torch and transformers")
    with surroundings(output_dir), no_trace(output_dir):
        from scao_hf.finetune.kept_run import KeptRun
        from scao_hf.finetune.signals import terminating

        with terminating():
            return KeptRun(recipe, observer, output_dir, resumption).report()


def _resumption(resume: bool | Path, output_dir: Path, overwrite: bool) -> Resumption | None:
    """What is to be resumed, if anything, after a look at the output directory."""
    from scao_hf.finetune.record import check_directory, check_permission
    from scao_hf.finetune.resume import find_resumption

    found = None if resume is False else find_resumption(resume, output_dir, overwrite)
    if not is_first_process():  # a later process would find what the first has begun to write
        return found
    if found is not None and found.in_place:
        check_permission(output_dir)
    else:
        check_directory(output_dir, overwrite)
    return found


def measure(recipe: Recipe, seed: int, observer: Observer | None = None) -> Measurement:
    """Train as the recipe says, keep nothing but measurements, and note under which conditions they were taken.

    A run that diverges is measured as well: its loss is infinite.

    Args:
        recipe: from `load_recipe`; holds rows out. `training.seed` decides which, `training.output_dir` is not used.
        seed: of the adapter's start and of the order of the batches.
        observer: told of every stage, step and evaluation; silent by default.

    Raises:
        FinetuneError: as `finetune`.
        Interrupted: Ctrl-C or SIGTERM, after the step in hand; nothing is saved.
    """
    observer = Silence() if observer is None else observer
    observer.stage("loading torch and transformers")
    with passing() as folder:
        from scao_hf.finetune.measured_run import MeasuredRun

        return MeasuredRun(recipe, seed, observer, folder).measurement()


def identify(recipe: Recipe, observer: Observer | None = None) -> dict[str, Any]:
    """What tells the recipe's model and data from other ones, as plain values, after all checks that need no weights.

    Raises:
        FinetuneError: as `finetune`, for what can be seen without weights.
    """
    from scao_hf.finetune import settings

    settings.require_complete(recipe)
    observer = Silence() if observer is None else observer
    observer.stage("loading torch and transformers")
    with surroundings(settings.output_directory(recipe)):
        from scao_hf.finetune import model
        from scao_hf.finetune.inputs import load_inputs

        inputs = load_inputs(recipe, recipe.seed, observer)
        named = model.fingerprint(inputs.config, inputs.reference)
        return {"data": inputs.rows.fingerprint, "model": named, "device": str(inputs.device)}
