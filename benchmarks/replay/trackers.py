"""How well a basis follows the gradients: the product's power sketch against the exact eigenbasis."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.replay.record import Layer
from scao_hf.numerics.eigenbasis import (
    Eigenbasis,
    Sketch,
    eigh_descending,
    initial_sketch,
    rayleigh_quotients,
    refresh_sketch,
    update_sketch,
)
from scao_hf.optim.schedule import early_refresh_due, refresh_due

EXACT, SKETCH = "exact", "sketch"
EVERY_STEP, AT_REFRESH = "every step", "at refresh"


@dataclass(frozen=True)
class Grid:
    """What is compared.

    Args:
        ranks: columns k of the basis.
        periods: steps between refreshes.
        rhos: decays of the statistics per step.
        burn_in: steps before the first interval that is judged.
    """

    ranks: Sequence[int] = (4, 8, 16, 32, 64)
    periods: Sequence[int] = (1, 5, 10, 20)
    rhos: Sequence[float] = (0.9, 0.95, 0.98, 0.99, 0.999)
    burn_in: int = 60

    def starts(self, steps: int) -> range:
        """Steps, from 1, at which every period refreshes and after which each has a whole interval.

        Raises:
            ValueError: there are none in so few steps.
        """
        spacing = math.lcm(*self.periods)
        first = max(1, math.ceil(self.burn_in / spacing)) * spacing
        starts = range(first, steps - max(self.periods) + 1, spacing)
        if not starts:
            raise ValueError(f"window must be at least {first + max(self.periods)} for this grid, got {steps}")
        return starts


class Scores(NamedTuple):
    """Of a basis U from a refresh at step t, in use for the gradients t+1 … t+p; means over intervals.

    `mass` is tr(Uᵀ A_t U) over the most that k columns could hold, `stale_mass` the same against A_{t+p}, with A the
    exact average at the tracker's own ρ. `predictive` is ‖Uᵀ G‖² over the most that k columns could hold of that
    gradient, `share` over ‖G‖², both for gradients that U has not seen. `overlap` is ‖Uᵀ U*‖² / k with the leading
    eigenvectors U* of A_t, and `drift` is 1 − ‖Uᵀ U'‖² / k with the basis U' of the next refresh.
    """

    mass: float
    stale_mass: float
    predictive: float
    share: float
    overlap: float
    drift: float


class TrackerRow(NamedTuple):
    """One tracker on one side of one layer, or the mean over several."""

    layer: str
    side: str
    tracker: str
    statistics: str
    rank: int
    period: int
    rho: float
    scores: Scores


class Exact(NamedTuple):
    """The exact average E[G Gᵀ] (d, d) at some step, and its eigenbasis."""

    average: Tensor
    basis: Eigenbasis


Bases = Mapping[int, Tensor]
"""By step, the vectors (d, k) in use after it."""


def tracker_rows(layer: Layer, grid: Grid) -> Iterator[TrackerRow]:
    """Every tracker of the grid, on each side of a layer that gets a basis and is at least as long as the rank."""
    for side in layer.sides:
        gradients = layer.gradients if side == "left" else layer.gradients.mT.contiguous()
        yield from _side_rows(layer.name, side, gradients, grid)


def _side_rows(name: str, side: str, gradients: Tensor, grid: Grid) -> Iterator[TrackerRow]:
    starts = grid.starts(len(gradients))
    moments = {start + age for start in starts for age in (0, *grid.periods)}
    ceilings = best_masses(gradients)
    ranks = [rank for rank in grid.ranks if rank <= gradients.shape[1]]
    for rho in grid.rhos:
        exact = exact_averages(gradients, rho, moments)
        for rank in ranks:
            ceiling = ceilings[:, min(rank, ceilings.shape[1]) - 1]
            for period in grid.periods:
                for tracker, statistics, bases in _trackers(gradients, exact, rank, rho, period):
                    scores = score(bases, period, starts, exact, gradients, ceiling)
                    yield TrackerRow(name, side, tracker, statistics, rank, period, rho, scores)


def _trackers(
    gradients: Tensor, exact: Mapping[int, Exact], rank: int, rho: float, period: int
) -> Iterator[tuple[str, str, Bases]]:
    leading = {step: known.basis.vectors[:, :rank] for step, known in exact.items()}
    yield EXACT, EVERY_STEP, leading
    yield SKETCH, EVERY_STEP, sketch_bases(gradients, rank, rho, period, exact.keys())
    if period > 1:
        yield SKETCH, AT_REFRESH, sketch_bases(gradients, rank, rho, period, exact.keys(), sparse=True)


def best_masses(gradients: Tensor) -> Tensor:
    """(steps, min(m, n)): column k − 1 is the most of ‖G‖² that k columns can hold, the k largest σ² of G."""
    return torch.linalg.svdvals(gradients).square().cumsum(-1)


def exact_averages(gradients: Tensor, rho: float, moments: Collection[int]) -> dict[int, Exact]:
    """Average G Gᵀ densely and decompose it at the given steps.

        A <- ρ A + (1 − ρ) G Gᵀ

    Args:
        gradients: (steps, d, n), float32.
        rho: decay per step.
        moments: steps, from 1.
    """
    average = torch.zeros(gradients.shape[1], gradients.shape[1])
    known = {}
    for step, grad in enumerate(gradients, 1):
        average = torch.lerp(average, grad @ grad.mT, 1 - rho)
        if step in moments:
            basis, failed = eigh_descending(average)
            assert not failed, f"the average at step {step} could not be decomposed"
            known[step] = Exact(average, basis)
    return known


def sketch_bases(
    gradients: Tensor, rank: int, rho: float, period: int, moments: Collection[int], *, sparse: bool = False
) -> dict[int, Tensor]:
    """Track the column space of a stream as `SCAO` does, and keep the vectors at the given steps.

    Args:
        gradients: (steps, d, n), float32.
        rank: columns.
        rho: decay per step.
        period: steps between refreshes; those that `SCAO` makes early are made.
        moments: steps, from 1, after whose refresh, if any, the vectors are kept.
        sparse: fold in only the gradients of refresh steps, with ρ^period for the same memory in steps.
    """
    decay = rho**period if sparse else rho
    sketch = initial_sketch(gradients[0], rank, 1 - decay)
    kept = {}
    for step, grad in enumerate(gradients, 1):
        due = refresh_due(step, period) or early_refresh_due(step, period)
        if step > 1 and (due or not sparse):
            update_sketch(sketch.product, grad, sketch.vectors.mT @ grad, decay)
        if due:
            sketch = refresh_sketch(Sketch(*sketch))[0]
        if step in moments:
            kept[step] = sketch.vectors
    return kept


def score(
    bases: Bases,
    period: int,
    starts: Collection[int],
    exact: Mapping[int, Exact],
    gradients: Tensor,
    ceiling: Tensor,
) -> Scores:
    """Judge a tracker over the intervals that begin at `starts`.

    Args:
        bases: at least at every start and `period` steps later.
        period: steps an interval.
        starts: steps of the refreshes that begin them.
        exact: at the same steps.
        gradients: (steps, d, n).
        ceiling: (steps,), the most of each gradient's energy that so many columns can hold.
    """
    intervals = []
    for start in starts:
        vectors, end = bases[start], start + period
        unseen = gradients[start:end]
        held = (vectors.mT @ unseen).square().sum((-2, -1))
        intervals.append(
            Scores(
                mass=_mass(vectors, exact[start]),
                stale_mass=_mass(vectors, exact[end]),
                predictive=float((held / ceiling[start:end]).mean()),
                share=float((held / unseen.square().sum((-2, -1))).mean()),
                overlap=overlap(vectors, exact[start].basis.vectors[:, : vectors.shape[1]]),
                drift=1 - overlap(vectors, bases[end]),
            )
        )
    return mean_scores(intervals)


def _mass(vectors: Tensor, exact: Exact) -> float:
    best = exact.basis.values[: vectors.shape[1]].sum()
    return float(rayleigh_quotients(exact.average, vectors).sum() / best)


def overlap(vectors: Tensor, others: Tensor) -> float:
    """‖Uᵀ V‖² / k of two orthonormal bases (d, k): 1 for the same span, 0 for orthogonal ones."""
    return float((vectors.mT @ others).square().sum() / vectors.shape[1])


def mean_scores(scores: Sequence[Scores]) -> Scores:
    return Scores(*(sum(column) / len(column) for column in zip(*scores, strict=True)))


def averaged(rows: Sequence[TrackerRow]) -> list[TrackerRow]:
    """The mean of each tracker over the sides of these rows that hold its rank."""
    together: dict[tuple[str, str, int, int, float], list[Scores]] = {}
    for row in rows:
        key = (row.tracker, row.statistics, row.rank, row.period, row.rho)
        together.setdefault(key, []).append(row.scores)
    return [TrackerRow("mean", "all", *key, mean_scores(scores)) for key, scores in together.items()]
