"""The commands as functions, for notebooks and programs: the same recipes, checks, errors and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scao_hf.finetune.config import Recipe
from scao_hf.finetune.observer import Observer
from scao_hf.finetune.recipes import load_recipe

if TYPE_CHECKING:
    from scao_hf.finetune.comparison.contest import Spectator
    from scao_hf.finetune.comparison.outcome import Outcome
    from scao_hf.finetune.outcome import FinetuneReport
    from scao_hf.finetune.planning.outcome import Plan


def plan(recipe: str | Recipe, *overrides: str, probe: bool = False, observer: Observer | None = None) -> Plan:
    """What a run will be, before any weight is loaded: `scao-finetune plan`.

    Args:
        recipe: a recipe's name or file, or one that was read.
        overrides: texts "section.key=value" over it.
        probe: load the weights after all, and measure two real steps.
        observer: told of every stage; silent by default.

    Raises:
        FinetuneError: all that `train` would refuse before its first step.
    """
    from scao_hf.finetune.planning.plan import plan as planned

    return planned(_read(recipe, overrides), observer, probe=probe)


def train(
    recipe: str | Recipe,
    *overrides: str,
    overwrite: bool = False,
    resume: bool | Path = False,
    observer: Observer | None = None,
) -> FinetuneReport:
    """Fine-tune, evaluate and save: `scao-finetune train`.

    Args:
        recipe: a recipe's name or file, or one that was read.
        overrides: texts "section.key=value" over it.
        overwrite: replace an earlier run in the recipe's output directory.
        resume: go on from the last complete checkpoint there, or from a checkpoint's or a run's directory.
        observer: told of every stage, step and evaluation; silent by default.

    Raises:
        FinetuneError: anything the user can answer; its `code` is that of the command.
    """
    from scao_hf.finetune.run import finetune

    return finetune(_read(recipe, overrides), observer, overwrite=overwrite, resume=resume)


def compare(
    recipe: str,
    *overrides: str,
    optimizers: Sequence[str] | None = None,
    rates: Sequence[float] | None = None,
    trials: int | None = None,
    seeds: int = 3,
    output_dir: Path | str | None = None,
    observer: Spectator | None = None,
) -> Outcome:
    """The recipe under several optimizers, with a report in the output directory: `scao-finetune compare`.

    Args:
        recipe: a recipe's name or file.
        overrides: texts "section.key=value" over it.
        optimizers: two or more, as training.optim takes them, of which differences are told of the first; None is SCAO
            and AdamW.
        rates: learning rates to begin with; None is half, once and twice the recipe's.
        trials: learning rates to try with each; None is those of `rates` and two more.
        seeds: final runs of each at its best rate.
        output_dir: where the runs and the report lie; None is the recipe's with "-compare" behind it.
        observer: told of every run; silent by default.

    Raises:
        FinetuneError: as the command.
    """
    from scao_hf.finetune.comparison.contest import OPTIMIZERS, Request, hold
    from scao_hf.finetune.comparison.report import write

    request = Request(
        recipe=recipe,
        overrides=overrides,
        optimizers=OPTIMIZERS if optimizers is None else optimizers,
        rates=rates,
        trials=trials,
        seeds=seeds,
        output_dir=None if output_dir is None else Path(output_dir),
    )
    outcome = hold(request, observer)
    write(outcome)
    return outcome


def _read(recipe: str | Recipe, overrides: Sequence[str]) -> Recipe:
    if isinstance(recipe, str):
        return load_recipe(recipe, overrides)
    if overrides:
        raise TypeError("a recipe that was read is complete: give its overrides to load_recipe")
    return recipe
