"""The plan of a run: everything but the weights is read and checked, the model is only shapes."""

from __future__ import annotations

from dataclasses import replace

from scao_hf.finetune import settings
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.observer import Observer, Silence
from scao_hf.finetune.planning.outcome import Plan
from scao_hf.finetune.surroundings import no_trace, surroundings


def plan(recipe: Recipe, observer: Observer | None = None, *, probe: bool = False) -> Plan:
    """What a run of the recipe would be, checked as a run is, without its weights; nothing is written.

    Args:
        recipe: from `load_recipe`.
        observer: told of every stage; silent by default.
        probe: load the weights after all, and measure real steps.

    Raises:
        FinetuneError: as `finetune`, for everything that it would refuse before its first step.
    """
    settings.require_complete(recipe)
    settings.check_reporters(recipe)
    observer = Silence() if observer is None else observer
    observer.stage("loading torch and transformers")
    output_dir = settings.output_directory(recipe)
    with surroundings(output_dir), no_trace(output_dir):
        from scao_hf.finetune.planning.planned_run import PlannedRun

        planned = PlannedRun(recipe, observer, output_dir).plan()
    if not probe:
        return planned
    from scao_hf.finetune.planning.probe import probe_run

    return replace(planned, probe=probe_run(recipe, observer, planned))
