"""Let kept runs stand for changed code, where making one of them again shows that the change changes no number.

A run is kept under a digest of the code of its optimizer and of all that imports. Code that moved, or that another
optimizer needed, changes the digest and leaves the numbers as they are; making hundreds of runs again would prove no
more than this does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.optimizers import ADAPTERS
from benchmarks.published.runs import make_run
from benchmarks.suite import Machine
from scao_hf.finetune.comparison.runs import Run
from scao_hf.finetune.comparison.store import RunStore
from scao_hf.finetune.comparison.study import Config, Tell

CODE = ("scao_hf.", "benchmarks.")


class DifferentRunError(ValueError):
    """The code as it is does not come to what was kept."""


def recertify(machine: Machine, store: RunStore, optimizer: str, tell: Tell) -> int:
    """Make the longest kept run of an optimizer again; if it is the same bit for bit, put all under today's version.

    Args:
        machine: where the texts are.
        store: the kept runs; rewritten.
        optimizer: a key of `ADAPTERS`.
        tell: is told a line at a time.

    Returns:
        How many runs have a new version.

    Raises:
        DifferentRunError: the losses, the curve or the conditions differ.
        ValueError: there is no run of that optimizer, or one that differs in more than the digest of our code.
    """
    kept = [(config, run) for config, run in store.records() if config["optimizer"] == optimizer]
    if not kept:
        raise ValueError(f"{store.path} holds no run of {optimizer}")
    now = ADAPTERS[optimizer].version()
    for config, _ in kept:
        if _apart_from_code(config["version"]) != _apart_from_code(now):
            raise ValueError(
                f"{optimizer} was run with {config['version']}, and now is {now}: its runs must be made again"
            )
    if all(config["version"] == now for config, _ in kept):
        return 0
    config, run = max(kept, key=lambda record: _steps(*record))
    tell(f"{store.path}: {optimizer}, {_steps(config, run)} steps at seed {config['seed']}, is made again")
    _require_equal(run, make_run(machine, {**config, "version": now}))
    return store.reconfigure(lambda each: {**each, "version": now} if each["optimizer"] == optimizer else each)


def _steps(config: Config, run: Run) -> int:
    """As the task says, or where it leaves that to its default as the curve does."""
    return int(config["task"].get("steps", run.curve[-1][0]))


def _apart_from_code(version: str) -> list[str]:
    """What a version tells beside the digest of our own modules: torch, packages, fixed options."""
    return [part for part in version.split(", ") if not part.startswith(CODE)]


def _require_equal(kept: Run, made: Run) -> None:
    for name, (before, now) in _numbers(kept, made).items():
        if before != now:
            raise DifferentRunError(
                f"{name} was {before} and is {now}: the kept runs are not those of the code as it is"
            )


def _numbers(kept: Run, made: Run) -> Mapping[str, tuple[Any, Any]]:
    return {
        "the final loss": (kept.loss, made.loss),
        "the curve": (list(map(tuple, kept.curve)), list(map(tuple, made.curve))),
        "the training losses": (kept.measures["train_losses"], made.measures["train_losses"]),
        "the conditions": (kept.conditions, made.conditions),
    }
