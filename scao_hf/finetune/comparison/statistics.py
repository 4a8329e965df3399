"""What may be concluded from a few runs: spreads, paired differences, time to a target."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t, 97.5% quantile, by degrees of freedom 1, 2, …, 30.
# fmt: off
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its spread."""

    mean: float
    deviation: float | None
    """Sample standard deviation over seeds; None for a single one."""
    half_width: float | None
    """Half of the 95% interval of the mean, by Student's t; None for a single value."""
    count: int

    @property
    def covers_zero(self) -> bool:
        """Whether the 95% interval covers zero; a single value decides nothing."""
        return self.half_width is None or not abs(self.mean) > self.half_width

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.deviation is None else f"{self.mean:.3f} ± {self.deviation:.3f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, sample standard deviation and 95% t interval of at least one value.

    Infinite values, of runs that diverged, make the mean infinite, or NaN where their signs differ, and the interval
    unbounded.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("an estimate needs at least one value")
    count = len(values)
    if not all(math.isfinite(value) for value in values):
        return Estimate(sum(values), None if count == 1 else math.inf, None if count == 1 else math.inf, count)
    mean = statistics.fmean(values)
    if count == 1:
        return Estimate(mean, None, None, 1)
    deviation = statistics.stdev(values)
    return Estimate(mean, deviation, t_quantile(count - 1) * deviation / math.sqrt(count), count)


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Estimate of ours − theirs over seeds, paired: entry i of both is the same seed.

    Raises:
        ValueError: different numbers of values.
    """
    return estimate([a - b for a, b in zip(ours, theirs, strict=True)])


def verdict(difference: Estimate, ours: str, theirs: str) -> str:
    """One sentence about losses: who is lower, or that the runs do not tell."""
    if difference.half_width is None:
        return f"one seed decides nothing: {ours} − {theirs} = {difference.mean:+.3f}"
    interval = f"{difference.mean:+.3f} ± {difference.half_width:.3f} (95%, {difference.count} seeds)"
    if difference.covers_zero:
        return f"not distinguishable: {ours} − {theirs} = {interval}"
    lower, higher = (ours, theirs) if difference.mean < 0 else (theirs, ours)
    return f"{lower} is lower than {higher}: {ours} − {theirs} = {interval}"


def t_quantile(freedom: int) -> float:
    """97.5% quantile of Student's t with `freedom` ≥ 1 degrees; beyond 30 that of 30, at most 4.2% too large."""
    return _T_975[min(freedom, len(_T_975)) - 1]


def steps_to(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """Step at which a curve of (step, loss) first comes down to `target`, linear between its points; None if never.

    After a point that is not finite there is nothing to interpolate: the step is that of the point which comes down.
    """
    previous: tuple[int, float] | None = None
    for step, loss in curve:
        if loss <= target:
            if previous is None or not math.isfinite(previous[1]):
                return float(step)
            before, higher = previous
            return before + (step - before) * (higher - target) / (higher - loss)
        previous = step, loss
    return None
