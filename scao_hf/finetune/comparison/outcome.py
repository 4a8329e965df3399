"""What is concluded from the runs of a comparison."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scao_hf.finetune.comparison.assertion import Assertion
from scao_hf.finetune.comparison.curves import mean_curve
from scao_hf.finetune.comparison.protocol import Comparison, Entry
from scao_hf.finetune.comparison.runs import Run
from scao_hf.finetune.comparison.statistics import Estimate, estimate, paired_difference, steps_to, verdict
from scao_hf.finetune.comparison.study import Plan
from scao_hf.finetune.comparison.tuning import RATE

if TYPE_CHECKING:
    from scao_hf.finetune.config import Recipe


class Target(NamedTuple):
    """A loss to be reached, and where it comes from."""

    loss: float | None
    """None where there is none."""
    source: str


def target_of(comparison: Comparison, given: float | None) -> Target:
    """The loss that was given, else the mean final loss of AdamW, else the highest mean final loss that is finite."""
    if given is not None:
        return Target(given, "--target-loss")
    means = {name: statistics.fmean(entry.losses) for name, entry in comparison.entries.items()}
    finite = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    if not finite:
        return Target(None, "no optimizer ended with a finite loss")
    baseline = next((name for name in finite if name.startswith("adamw")), None) or max(finite, key=finite.__getitem__)
    return Target(finite[baseline], f"mean final loss of {baseline}")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What one optimizer came to on its final runs."""

    optimizer: str
    learning_rate: float
    loss: Estimate
    steps_to_target: float | None
    """Where the mean curve of all seeds first comes down to the target; None if it never does."""
    step_seconds: float
    """Mean over the final runs, evaluation left out."""
    state_bytes: int
    diverged: int
    """Final runs that diverged."""

    @property
    def seconds_to_target(self) -> float | None:
        return None if self.steps_to_target is None else self.steps_to_target * self.step_seconds

    @property
    def measures(self) -> dict[str, float | None]:
        """What an assertion may speak of."""
        return {
            "eval_loss": self.loss.mean,
            "steps_to_target": self.steps_to_target,
            "seconds_to_target": self.seconds_to_target,
            "step_seconds": self.step_seconds,
            "state_bytes": self.state_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of final losses, paired by seed: the first optimizer's minus another one's."""

    ours: str
    theirs: str
    estimate: Estimate
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Checked:
    """An assertion and what became of it."""

    text: str
    holds: bool
    figures: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A comparison with all that is concluded from it."""

    recipes: Mapping[str, Recipe]
    """By optimizer; they differ in its name and its own options."""
    command: str
    """What a person types for this comparison."""
    output_dir: Path
    plan: Plan
    comparison: Comparison
    target: Target
    assertions: Sequence[Assertion]
    facts: Mapping[str, Any]
    """What the first final run was: model, data, steps, ..."""
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]

    @property
    def recipe(self) -> Recipe:
        """Of the first optimizer."""
        return next(iter(self.recipes.values()))

    @cached_property
    def standings(self) -> list[Standing]:
        return [_standing(entry, self.target.loss) for entry in self.comparison.entries.values()]

    @cached_property
    def differences(self) -> list[Difference]:
        first, *others = self.comparison.entries.values()
        return [_difference(first, other) for other in others]

    @cached_property
    def checked(self) -> list[Checked]:
        values = {standing.optimizer: standing.measures for standing in self.standings}
        return [
            Checked(text=each.text, holds=each.holds(values), figures=each.figures(values)) for each in self.assertions
        ]

    def _repr_html_(self) -> str:
        """The table of the report with its verdicts, for notebooks."""
        from scao_hf.finetune.comparison.report import COLUMNS, remarks, table, target_text
        from scao_hf.finetune.tables import html_table

        verdicts = [*(each.sentence for each in self.differences), target_text(self), *remarks(self)]
        return html_table(table(self), [" ".join(name.split()) for name in COLUMNS], "; ".join(verdicts))

    @property
    def runs(self) -> Iterator[tuple[str, Run]]:
        """("tuning" or "final", run) of all runs, optimizer by optimizer."""
        for entry in self.comparison.entries.values():
            yield from (("tuning", run) for run in entry.trials)
            yield from (("final", run) for run in entry.finals)


def _standing(entry: Entry, target: float | None) -> Standing:
    diverged = len(_diverged_seeds(entry))
    curve = mean_curve([run.curve for run in entry.finals])
    return Standing(
        optimizer=entry.name,
        learning_rate=entry.chosen[RATE],
        loss=estimate(entry.losses),
        steps_to_target=None if target is None or diverged else steps_to(curve, target),
        step_seconds=statistics.fmean(run.step_seconds or 0.0 for run in entry.finals),
        state_bytes=max(run.measures["state_bytes"] for run in entry.finals),
        diverged=diverged,
    )


def _difference(ours: Entry, theirs: Entry) -> Difference:
    difference = paired_difference(ours.losses, theirs.losses)
    sentence = verdict(difference, ours.name, theirs.name)
    if not math.isfinite(difference.mean):
        told = " and ".join(map(_divergence, filter(_diverged_seeds, (ours, theirs))))
        sentence = f"no difference can be told: {told}"
    return Difference(ours=ours.name, theirs=theirs.name, estimate=difference, sentence=sentence)


def _diverged_seeds(entry: Entry) -> list[int]:
    return [run.seed for run in entry.finals if not math.isfinite(run.loss)]


def _divergence(entry: Entry) -> str:
    seeds = _diverged_seeds(entry)
    return f"{entry.name} diverged with seed {', '.join(map(str, seeds))}"
