"""What is read off the runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from scao_hf.finetune.comparison.protocol import LEAST_SEEDS
from scao_hf.finetune.comparison.runs import Run
from scao_hf.finetune.comparison.statistics import Estimate, estimate, steps_to


class Evidence(NamedTuple):
    """What there is to judge by."""

    runs: Mapping[str, Mapping[int, Run]]
    """By arm and seed; an arm without runs has none by seed."""
    seeds: Sequence[int]
    step_seconds: Mapping[str, Sequence[float]]
    """By arm, of blocks of steps; block i of the two arms of a pair was timed side by side."""
    versions: Mapping[str, str]
    """By optimizer, of the code that its runs were made with."""


class Measure(Protocol):
    """Reads a number off the evidence."""

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms whose runs it needs."""

    def measured(self, evidence: Evidence) -> Estimate | None:
        """None while some of its evidence is missing."""


@dataclass(frozen=True)
class OverSeeds:
    """A number for each seed, from one run of every arm; of `LEAST_SEEDS` seeds at least."""

    value: Callable[..., float]
    arms: tuple[str, ...]

    def measured(self, evidence: Evidence) -> Estimate | None:
        by_seed = [[evidence.runs[arm].get(seed) for arm in self.arms] for seed in evidence.seeds]
        if len(by_seed) < LEAST_SEEDS or any(run is None for runs in by_seed for run in runs):
            return None
        return estimate([self.value(*runs) for runs in by_seed])


@dataclass(frozen=True)
class SpeedUp:
    """How many times sooner SCAO comes down to where AdamW is after some steps of its own; 0 where it never does.

    Args:
        step: of AdamW, a point of its curve.
        in_seconds: steps times the mean seconds of a step, in place of steps.
        arms: AdamW and SCAO.
    """

    step: int
    in_seconds: bool
    arms: tuple[str, str] = ("500/adamw", "500/scao")

    def measured(self, evidence: Evidence) -> Estimate | None:
        faster = self._faster(evidence.step_seconds)
        if faster is None:
            return None
        return OverSeeds(lambda adamw, scao: faster * self._sooner(adamw, scao), self.arms).measured(evidence)

    def _faster(self, step_seconds: Mapping[str, Sequence[float]]) -> float | None:
        """How many times faster SCAO's steps are, or count as."""
        if not self.in_seconds:
            return 1.0
        if not all(arm in step_seconds for arm in self.arms):
            return None
        adamw, scao = (statistics.fmean(step_seconds[arm]) for arm in self.arms)
        return adamw / scao

    def _sooner(self, adamw: Run, scao: Run) -> float:
        reached = steps_to(scao.curve, dict(adamw.curve)[self.step])
        return 0.0 if reached is None else self.step / reached


@dataclass(frozen=True)
class Throughput:
    """By how many percent SCAO trains on more tokens a second than AdamW, over blocks of steps timed in turn."""

    scale: str
    arms: tuple[str, ...] = ()

    def measured(self, evidence: Evidence) -> Estimate | None:
        adamw, scao = (evidence.step_seconds.get(f"{self.scale}/{name}") for name in ("adamw", "scao"))
        if not adamw or not scao:
            return None
        return estimate([100 * (theirs / ours - 1) for theirs, ours in zip(adamw, scao, strict=True)])


@dataclass(frozen=True)
class Arithmetic:
    """A number that follows from shapes and needs no run."""

    value: float
    arms: tuple[str, ...] = ()

    def measured(self, evidence: Evidence) -> Estimate:
        return Estimate(self.value, 0.0, 0.0, 1)


def perplexity(run: Run) -> float:
    return math.exp(run.loss)


def perplexity_difference(run: Run, base: Run) -> float:
    return perplexity(run) - perplexity(base)


def gap(run: Run, base: Run) -> float:
    """Percent by which one run's perplexity exceeds the other's."""
    return 100 * (math.exp(run.loss - base.loss) - 1)


def gap_after(step: int) -> Callable[[Run, Run], float]:
    """The same at a point of their curves."""

    def gap_there(run: Run, base: Run) -> float:
        return 100 * (math.exp(dict(run.curve)[step] - dict(base.curve)[step]) - 1)

    return gap_there


def closure(run: Run, base: Run, longer: Run, longer_base: Run) -> float:
    """By how many points the gap is smaller between the longer runs."""
    return gap(run, base) - gap(longer, longer_base)


def area_difference(run: Run, base: Run) -> float:
    """Of the mean training losses over all steps, nats."""
    ours, theirs = (statistics.fmean(each.measures["train_losses"]) for each in (run, base))
    return ours - theirs


def memory_ratio(run: Run, base: Run) -> float:
    """Of float32 parameters, their gradients and the optimizer's state."""
    ours, theirs = (8 * each.measures["parameters"] + each.measures["state_bytes"] for each in (run, base))
    return float(ours / theirs)
