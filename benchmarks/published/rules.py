"""When a published number counts as reproduced."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from scao_hf.finetune.comparison.statistics import Estimate

REPRODUCED = "reproduced"
DIRECTION = "direction reproduced, size not"
NOT = "not reproduced"
INCOMPARABLE = "not comparable"
VERDICTS = (REPRODUCED, DIRECTION, NOT, INCOMPARABLE)
CONTROL = "control"
PENDING = "still to be measured"


class Verdict(NamedTuple):
    """One of `VERDICTS`, `CONTROL` where nothing is claimed, `PENDING` where runs are missing; and why."""

    word: str
    reason: str = ""


class Rule(Protocol):
    def judge(self, published: float, ours: Estimate) -> Verdict: ...


@dataclass(frozen=True)
class Effect:
    """A difference from `neutral`.

    Its direction is reproduced if ours has the same and our 95% interval leaves out `neutral`; its size as well if the
    published one is inside that interval, or ours differs from it by at most a share `tolerance` of it.
    """

    neutral: float = 0.0
    tolerance: float = 0.25

    def judge(self, published: float, ours: Estimate) -> Verdict:
        wanted, found = published - self.neutral, ours.mean - self.neutral
        if found == math.inf and wanted > 0:
            return Verdict(DIRECTION, "a run diverged")
        if ours.half_width is None or not abs(found) > ours.half_width:
            return Verdict(NOT, "not distinguishable from none")
        if found * wanted < 0:
            return Verdict(NOT, "the other way round")
        if abs(found - wanted) <= max(ours.half_width, self.tolerance * abs(wanted)):
            return Verdict(REPRODUCED)
        return Verdict(DIRECTION, f"{found / wanted:.2g} times the published")


@dataclass(frozen=True)
class Within:
    """A size that has no spread: reproduced if ours differs by at most a share `tolerance` of it."""

    tolerance: float

    def judge(self, published: float, ours: Estimate) -> Verdict:
        share = ours.mean / published - 1
        return Verdict(REPRODUCED) if abs(share) <= self.tolerance else Verdict(NOT, f"{share:+.0%}")


@dataclass(frozen=True)
class NoEffect:
    """That nothing changes: reproduced if mean and spread over seeds together stay below `precision`."""

    precision: float

    def judge(self, published: float, ours: Estimate) -> Verdict:
        changed = abs(ours.mean - published) + (ours.deviation or 0.0)
        return Verdict(REPRODUCED) if changed < self.precision else Verdict(NOT, "it changes")


@dataclass(frozen=True)
class Incomparable:
    """A number of which ours says nothing."""

    reason: str

    def judge(self, published: float, ours: Estimate) -> Verdict:
        return Verdict(INCOMPARABLE, self.reason)
