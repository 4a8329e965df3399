"""Tuning with a fixed number of trials: the learning rate first, then one coordinate at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scao_hf.finetune.comparison.runs import Setting, canonical, plain

RATE = "lr"
SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True)
class Space:
    """Where a search starts and what it may try, kept as plain JSON values: tuples become lists.

    Args:
        start: the first setting; `start["lr"]` is the middle of the first grid of learning rates.
        alternatives: for each other coordinate, the values to try beside the start's, in this order.
        rates: the first grid of learning rates; None is start/factor, start, start·factor.
        factor: ratio of neighbouring learning rates in the first grid and where it is extended.

    Raises:
        ValueError: a learning rate that is not positive, a factor of 1 or less, alternatives to what is not set.
    """

    start: Setting
    alternatives: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    rates: Sequence[float] | None = None
    factor: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.start.get(RATE, 0) < math.inf:
            raise ValueError(f"start must hold a positive {RATE!r}, got {self.start.get(RATE)!r}")
        if self.rates is not None and not (self.rates and all(0 < rate < math.inf for rate in self.rates)):
            raise ValueError(f"rates must be positive, and at least one, got {list(self.rates)}")
        if not self.factor > 1:
            raise ValueError(f"factor must exceed 1, got {self.factor}")
        if RATE in self.alternatives:
            raise ValueError(f"alternatives must not hold {RATE!r}: name learning rates in rates")
        if unknown := sorted(self.alternatives.keys() - self.start.keys()):
            raise ValueError(f"alternatives names {', '.join(unknown)}, which start does not set")
        object.__setattr__(self, "start", plain(self.start))
        object.__setattr__(self, "alternatives", plain(self.alternatives))

    @property
    def grid(self) -> list[float]:
        if self.rates is not None:
            return sorted({rounded(rate) for rate in self.rates})
        middle = float(self.start[RATE])
        return [rounded(middle / self.factor), rounded(middle), rounded(middle * self.factor)]


@dataclass(frozen=True)
class Trial:
    setting: Setting
    loss: float


def rounded(rate: float) -> float:
    """A learning rate to four significant digits, so that two ways to the same rate are one trial."""
    return float(f"{rate:.{SIGNIFICANT_DIGITS}g}")


def proposals(space: Space, trials: int, done: Sequence[Trial]) -> list[Setting]:
    """The settings to try next, given all that were tried; empty when `trials` are spent.

    In order: the first grid of learning rates; while the best of them is on the edge, the grid grows beyond it; each
    alternative of each other coordinate at the best setting so far; the neighbouring learning rates of the best
    setting; ever finer steps about it, and wider ones when there are no finer. Whatever is left of the budget is spent
    on these, so that every arm of a comparison has the same number of trials. A loss that is not finite counts as
    infinite.

    Raises:
        ValueError: fewer trials than the first grid has learning rates.
    """
    if trials < len(space.grid):
        raise ValueError(f"trials must be at least {len(space.grid)}, the first grid of learning rates, got {trials}")
    left = trials - len(done)
    if left <= 0:
        return []
    tried = {canonical(trial.setting) for trial in done}
    for batch in _stages(space, done):
        fresh = {canonical(setting): setting for setting in batch if canonical(setting) not in tried}
        if fresh:
            return list(fresh.values())[:left]
    raise AssertionError("the last stage always has another setting")


def best(done: Sequence[Trial]) -> Trial:
    """The trial with the lowest finite loss, the earlier of equals.

    Raises:
        ValueError: no trial ended with a finite loss.
    """
    finite = [trial for trial in done if math.isfinite(trial.loss)]
    if not finite:
        raise ValueError(f"none of {len(done)} trials ended with a finite loss")
    return min(finite, key=lambda trial: trial.loss)


def is_bracketed(done: Sequence[Trial]) -> bool:
    """Whether a smaller and a larger learning rate than the best were tried."""
    rates = [trial.setting[RATE] for trial in done]
    return min(rates) < best(done).setting[RATE] < max(rates)


def _stages(space: Space, done: Sequence[Trial]) -> Iterator[list[Setting]]:
    yield [{**space.start, RATE: rate} for rate in space.grid]
    yield _beyond_the_edge(space, done)
    # A coordinate is judged at the best of the trials that leave it, and those after it, at their start. Trying it does
    # not move that setting, so that all its alternatives are judged at the same one.
    for name, values in space.alternatives.items():
        base = _best_before(name, space, done)
        yield [{**base, name: value} for value in values if value != base[name]]
    found = best(done).setting if any(math.isfinite(trial.loss) for trial in done) else space.start
    for step in _steps(space.factor):
        yield [{**found, RATE: rounded(found[RATE] * ratio)} for ratio in (1 / step, step)]


def _steps(factor: float) -> Iterator[float]:
    """Ratios: `factor`, its ever smaller roots while rounding tells them from 1, then its powers."""
    finest = 1 + 10.0**-SIGNIFICANT_DIGITS
    step = factor
    while step > finest:
        yield step
        step = math.sqrt(step)
    yield from (factor**power for power in itertools.count(2))


def _beyond_the_edge(space: Space, done: Sequence[Trial]) -> list[Setting]:
    """One learning rate beyond the edge on which the best one lies, with the other coordinates of the best."""
    finite = [trial for trial in done if math.isfinite(trial.loss)]
    rates = [trial.setting[RATE] for trial in done]
    if not finite:
        return [{**space.start, RATE: rounded(min(rates) / space.factor)}]
    leader = best(done).setting
    if leader[RATE] == min(rates):
        return [{**leader, RATE: rounded(leader[RATE] / space.factor)}]
    if leader[RATE] == max(rates):
        return [{**leader, RATE: rounded(leader[RATE] * space.factor)}]
    return []


def _best_before(name: str, space: Space, done: Sequence[Trial]) -> Setting:
    """The best setting of the trials that leave the coordinate `name`, and those after it, at their start."""
    names = list(space.alternatives)
    untouched = names[names.index(name) :]
    earlier = [trial for trial in done if all(trial.setting[key] == space.start[key] for key in untouched)]
    return best(earlier).setting if any(math.isfinite(trial.loss) for trial in earlier) else space.start
