"""The claims of SCAO 0.1: what each says, what measures it, and the rule that it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from benchmarks.published import source
from benchmarks.published.arms import ARMS, SCALES, Arm
from benchmarks.published.measures import (
    Arithmetic,
    Evidence,
    Measure,
    OverSeeds,
    SpeedUp,
    Throughput,
    area_difference,
    closure,
    gap,
    gap_after,
    memory_ratio,
    perplexity,
    perplexity_difference,
)
from benchmarks.published.rules import CONTROL, PENDING, Effect, Incomparable, NoEffect, Rule, Verdict, Within
from benchmarks.tasks.models import SHAPES
from scao_hf.finetune.comparison.statistics import Estimate, steps_to


class Unit(NamedTuple):
    """How a number is written."""

    format: str
    suffix: str = ""

    def write(self, value: float) -> str:
        return f"{value:{self.format}}{self.suffix}".replace("-", "−")


PERPLEXITY, DIFFERENCE, TIMES = Unit(".2f"), Unit("+.3f"), Unit(".2f", "×")
PERCENT, POINTS, NATS = Unit("+.1f", "%"), Unit("+.1f", " points"), Unit("+.3f", " nats")

EFFECT, SPED_UP = Effect(), Effect(neutral=1.0)
LOSSLESS = NoEffect(0.005)  # perplexities are published to two decimals
OTHER_TEXT = Incomparable("other text and alphabet")
EQUAL_RATES = "the same against AdamW at SCAO's learning rate"
CURVE_STEPS = (25, 50, 100, 150, 200, 300, 400)


@dataclass(frozen=True)
class Claim:
    """One published number, or a control beside it.

    Args:
        id: unique.
        what: what the number is, in words.
        quoted: as it is published.
        published: the same as a number; None for a control.
        unit: of ours.
        measure: how ours is come by.
        rule: when it counts as reproduced; None for a control.
    """

    id: str
    what: str
    quoted: str
    published: float | None
    unit: Unit
    measure: Measure
    rule: Rule | None

    @property
    def preconditioned_from(self) -> list[int | None]:
        """First preconditioned step of its arms, as far as it is known; None for an arm that never comes to it."""
        arms = [ARMS[arm] for arm in self.measure.arms]
        steps = [arm.preconditioned_from() for arm in arms if arm.optimizer == "scao_published"]
        return list(dict.fromkeys(steps))


class Finding(NamedTuple):
    """What became of a claim; without a number while evidence is missing."""

    claim: Claim
    ours: Estimate | None
    verdict: Verdict


def judge(claim: Claim, evidence: Evidence) -> Finding:
    ours = claim.measure.measured(evidence)
    if ours is None:
        return Finding(claim, None, Verdict(PENDING))
    if claim.rule is None or claim.published is None:
        return Finding(claim, ours, Verdict(CONTROL))
    return Finding(claim, ours, claim.rule.judge(claim.published, ours))


def chosen_claims(patterns: Sequence[str]) -> list[Claim]:
    """Claims whose id fits one of some patterns, such as "A1" or "500/*"; all of them without any.

    Raises:
        ValueError: a pattern that fits none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(claim.id, pattern) for claim in CLAIMS):
            raise ValueError(f"no claim fits {pattern!r}; the claims are {', '.join(claim.id for claim in CLAIMS)}")
    return [claim for claim in CLAIMS if not patterns or any(fnmatchcase(claim.id, each) for each in patterns)]


def needed_arms(claims: Sequence[Claim]) -> list[Arm]:
    """The arms of some claims, each once, in the order in which they are to be run."""
    names = {arm for claim in claims for arm in claim.measure.arms}
    return [arm for arm in ARMS.values() if arm.name in names]


def _control(id: str, what: str, unit: Unit, measure: Measure) -> Claim:
    return Claim(id, what, "", None, unit, measure, None)


def _scao_against(base: str, scale: str, value: Callable[..., float] = gap) -> OverSeeds:
    return OverSeeds(value, (f"{scale}/scao", f"{scale}/{base}"))


def _perplexities(scale: str, adamw: float, scao: float, published: float, quoted: str) -> Iterator[Claim]:
    for name, title, value in (("adamw", "AdamW", adamw), ("scao", "SCAO", scao)):
        alone = OverSeeds(perplexity, (f"{scale}/{name}",))
        yield Claim(f"{scale}/{name}", f"{title}'s perplexity", f"{value:.2f}", value, PERPLEXITY, alone, OTHER_TEXT)
    between = _scao_against("adamw", scale)
    yield Claim(f"{scale}/gap", "SCAO's perplexity over AdamW's", quoted, published, PERCENT, between, EFFECT)
    yield _control(f"{scale}/gap-equal-rates", EQUAL_RATES, PERCENT, _scao_against("adamw-1.17", scale))


def _throughput(scale: str, published: float) -> Claim:
    what, quoted = "SCAO's tokens a second over AdamW's", PERCENT.write(published)
    return Claim(f"{scale}/throughput", what, quoted, published, PERCENT, Throughput(scale), EFFECT)


def _memory(scale: str, published: float, quoted: str) -> Claim:
    what = "SCAO's memory over AdamW's: parameters, gradients and state"
    ratio = _scao_against("adamw", scale, memory_ratio)
    return Claim(f"{scale}/memory", what, quoted, published, TIMES, ratio, Within(0.1))


def _five_hundred_steps() -> Iterator[Claim]:
    yield from _perplexities("500", 11.85, 12.03, 1.5, "+1.5%")
    what, area = "SCAO's mean training loss less AdamW's", _scao_against("adamw", "500", area_difference)
    yield Claim("500/area", what, "2.854 − 2.873 = −0.019 nats", 2.854 - 2.873, NATS, area, EFFECT)
    at_equal_rates = _scao_against("adamw-1.17", "500", area_difference)
    yield _control("500/area-equal-rates", EQUAL_RATES, NATS, at_equal_rates)
    yield _throughput("500", 54.0)
    yield _memory("500", 2.2, "2.2× (0.012 GB, 0.026 GB)")


def _two_hundred_steps() -> Iterator[Claim]:
    yield from _perplexities("200", 14.60, 15.10, 3.4, "+3.4% (+4.1% by 15.19 of the ablations and the raw file)")
    yield _throughput("200", 16.0)
    arms = ("200/scao", "200/adamw", "500/scao", "500/adamw")
    what = "by how much the gap is narrower after 500 steps"
    yield Claim("closure", what, "3.4% − 1.5% = 1.9 points", 3.4 - 1.5, POINTS, OverSeeds(closure, arms), EFFECT)


def _fifty_steps(
    scale: str, perplexities: tuple[float, float], published: float, throughput: float, memory: tuple[float, float]
) -> Iterator[Claim]:
    yield from _perplexities(scale, *perplexities, published, PERCENT.write(published))
    # The released code preconditions from its 21st step on.
    early = next(point for point in source.CURVES[scale] if point.step == 20).gap
    what, then = (
        "the same after 20 steps, its last without preconditioning",
        _scao_against("adamw", scale, gap_after(20)),
    )
    yield Claim(f"{scale}/gap-at-20", what, f"{PERCENT.write(early)} (raw file)", early, PERCENT, then, EFFECT)
    yield _throughput(scale, throughput)
    adamw, scao = memory
    yield _memory(scale, scao / adamw, f"{scao / adamw:.2f}× ({adamw} GB, {scao} GB)")


def _five_steps() -> Iterator[Claim]:
    yield from _perplexities("125m", 63.03, 46.75, -25.8, "−25.8%")
    what, added = "perplexity that int8 factors add", OverSeeds(perplexity_difference, ("int8/125m", "125m/scao"))
    yield Claim("int8/125m", what, "0 (46.75, 46.75)", 0.0, DIFFERENCE, added, LOSSLESS)


def _convergence() -> Iterator[Claim]:
    for point in source.CURVES["500"]:
        if point.step in CURVE_STEPS:
            what, there = f"SCAO's perplexity over AdamW's after {point.step} steps", gap_after(point.step)
            quoted = f"{PERCENT.write(point.gap)} ({point.adamw:.2f}, {point.scao:.2f})"
            measure = _scao_against("adamw", "500", there)
            yield Claim(f"curve/{point.step}", what, quoted, point.gap, PERCENT, measure, EFFECT)
            if point.step <= 150:
                at_equal_rates = _scao_against("adamw-1.17", "500", there)
                yield _control(f"curve/{point.step}-equal-rates", EQUAL_RATES, PERCENT, at_equal_rates)


def _time_to_target() -> Iterator[Claim]:
    curve = source.CURVES["500"]
    for target in source.TARGETS:
        step, where = target.adamw_step, f"{target.perplexity:.2f}"
        what = f"how much sooner in seconds SCAO is where AdamW is after {step} steps"
        quoted, in_seconds = f"{target.speed_up:.2f}× to {where}", SpeedUp(step, in_seconds=True)
        yield Claim(f"target/{where}", what, quoted, target.speed_up, TIMES, in_seconds, SPED_UP)
        adamw = next(point.adamw for point in curve if point.step == step)
        reached = steps_to([(point.step, point.scao) for point in curve], adamw)
        published = step / reached if reached else 0.0
        quoted = f"{TIMES.write(published) if reached else 'never'} (raw file)"
        in_steps = SpeedUp(step, in_seconds=False)
        yield Claim(f"target/{where}-in-steps", "the same in steps", quoted, published, TIMES, in_steps, SPED_UP)


def _ablations() -> Iterator[Claim]:
    for name, row in source.ABLATIONS.items():
        published = 100 * row.added / source.FULL_SYSTEM_PERPLEXITY
        quoted = f"{PERCENT.write(published)} ({row.quoted}, {row.added:+g})"
        added = OverSeeds(gap, (f"ablation/{name}", "200/scao"))
        yield Claim(name, f"perplexity added: {row.what}", quoted, published, PERCENT, added, EFFECT)


def _int8_and_memory() -> Iterator[Claim]:
    shape = SHAPES["published-125m"]
    full_rank = source.k_max(shape.width)

    def saving(rank: int) -> Arithmetic:
        return Arithmetic(100 * (source.scao_bytes(shape, rank, int8=True) / source.scao_bytes(shape, rank) - 1))

    added = OverSeeds(perplexity_difference, ("int8/200", "200/scao"))
    yield Claim("int8/200", "perplexity that int8 factors add, 1M, 200 steps", "0", 0.0, DIFFERENCE, added, LOSSLESS)
    what, quoted = "memory that they save, 125M, 5 steps, by arithmetic", "−36.7% (2.490 GB, 1.577 GB)"
    yield Claim("int8/memory", what, quoted, -36.7, PERCENT, saving(rank=4), Within(0.01))
    what = f"the same once {full_rank} eigenvectors a side are held"
    yield _control("int8/memory-later", what, PERCENT, saving(full_rank))
    what = "dense factors over what SCAO adds to AdamW's memory, 125M, by arithmetic"
    reduction = source.factor_bytes(shape) / (source.scao_bytes(shape, rank=4) - source.adamw_bytes(shape))
    yield Claim("memory/reduction", what, "16× to 32×", 16.0, TIMES, Arithmetic(reduction), SPED_UP)


def _other_readings() -> Iterator[Claim]:
    for group, reading in (("package", "the authors' package"), ("text", "the README's text and recommended options")):
        for arm in ARMS.values():
            if arm.group == group:
                what, between = f"`{arm.scale}/gap` with {reading}", OverSeeds(gap, (arm.name, f"{arm.scale}/adamw"))
                yield _control(arm.name, what, PERCENT, between)


def _count(scale: str) -> str:
    return f"{source.parameters(SHAPES[SCALES[scale]['size']]):,} parameters"


SECTIONS: dict[str, tuple[Claim, ...]] = {
    f"1M, 500 steps ({_count('500')})": tuple(_five_hundred_steps()),
    "1M, 200 steps": tuple(_two_hundred_steps()),
    f"5M, 50 steps ({_count('5m')})": tuple(_fifty_steps("5m", (26.49, 23.94), -9.6, 3.0, (0.041, 0.081))),
    f"10M, 50 steps ({_count('10m')})": tuple(_fifty_steps("10m", (19.01, 18.09), -4.8, -5.7, (0.072, 0.143))),
    f"125M, 5 steps ({_count('125m')})": tuple(_five_steps()),
    "Convergence, 1M, 500 steps": tuple(_convergence()),
    "Time to target, 1M, 500 steps": tuple(_time_to_target()),
    "Ablations, 1M, 200 steps": tuple(_ablations()),
    "Int8 factors and memory": tuple(_int8_and_memory()),
    "Other readings of SCAO 0.1": tuple(_other_readings()),
}
CLAIMS: tuple[Claim, ...] = tuple(claim for claims in SECTIONS.values() for claim in claims)
