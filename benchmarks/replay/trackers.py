"""How well a subspace follows the momentum: SCAO's own tracking against the exact leading eigenvectors."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.replay.defaults import DEFAULTS, tracked_rank
from benchmarks.replay.record import Layer
from scao_hf.numerics.eigenbasis import Eigenbasis, eigh_descending, rayleigh_quotients
from scao_hf.numerics.whitening import initial_subspace, turn_subspace, whiten
from scao_hf.optim.schedule import early_refresh_due, refresh_due

EXACT, TURNED = "exact", "turned"


@dataclass(frozen=True)
class Grid:
    """What is compared.

    Args:
        ranks: columns k of the subspace.
        periods: steps between refreshes.
        betas: decays β₁ of the momentum per step.
        burn_in: steps before the first interval that is judged.
    """

    ranks: Sequence[int] = (4, 8, 16, 32, 64)
    periods: Sequence[int] = (1, 5, 10, 20)
    betas: Sequence[float] = (0.8, 0.9, 0.95)
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
    """Of a subspace U from a refresh at step t, in use in the steps t+1 … t+p; means over intervals.

    Against the look-ahead momentum X of a step, the most that k columns could hold of ‖X‖² being the sum of its k
    largest eigenvalues: `mass` is ‖Uᵀ X_t‖² over that most, just after the refresh; `stale_mass` the same at t+p, just
    before the next; `used_mass` its mean over all steps in use, and `share` the mean there of ‖Uᵀ X‖² / ‖X‖².
    `overlap` is ‖Uᵀ U*‖² / k with the leading eigenvectors U* of X_t X_tᵀ, and `drift` is 1 − ‖Uᵀ U'‖² / k with the
    subspace U' of the next refresh.
    """

    mass: float
    stale_mass: float
    used_mass: float
    share: float
    overlap: float
    drift: float


class TrackerRow(NamedTuple):
    """One tracker on the short side of one layer, or the mean over several."""

    layer: str
    side: str
    tracker: str
    rank: int
    period: int
    beta: float
    scores: Scores


class Exact(NamedTuple):
    """Of every step, in float64: `gram` X Xᵀ (steps, m, m), and its eigenbasis (steps, m, m), largest first."""

    gram: Tensor
    basis: Eigenbasis


Bases = Sequence[Tensor]
"""The vectors (m, k) in use after each step."""


def tracker_rows(layer: Layer, grid: Grid) -> Iterator[TrackerRow]:
    """Every tracker of the grid on the short side of a layer that is at least as long as the rank; none for AdamW's."""
    if not tracked_rank(layer.shape, layer.treatment):
        return
    gradients = layer.short_first
    starts = grid.starts(len(gradients))
    ranks = [rank for rank in grid.ranks if rank <= gradients.shape[1]]
    for beta in grid.betas:
        aheads = lookahead(gradients, beta)
        exact = exact_spectra(aheads)
        for rank in ranks:
            leading = list(exact.basis.vectors[..., :rank])
            for period in grid.periods:
                for tracker, bases in ((EXACT, leading), (TURNED, turned_bases(aheads, rank, period))):
                    scores = score(bases, period, starts, exact)
                    yield TrackerRow(layer.name, layer.side, tracker, rank, period, beta, scores)


def lookahead(gradients: Tensor, beta: float) -> Tensor:
    """The momentum of a stream as `SCAO` sees it in each step.

        M <- β M + (1 − β) G,   X = β M + (1 − β) G

    Args:
        gradients: (steps, m, n), float32.
        beta: β₁, decay per step.

    Returns:
        (steps, m, n), new.
    """
    momentum, aheads = torch.zeros_like(gradients[0]), torch.empty_like(gradients)
    for ahead, grad in zip(aheads, gradients, strict=True):
        momentum.lerp_(grad, 1 - beta)
        torch.lerp(grad, momentum, beta, out=ahead)
    return aheads


def exact_spectra(aheads: Tensor) -> Exact:
    """X Xᵀ of every step, decomposed; `aheads` is X (steps, m, n)."""
    gram = torch.stack([ahead @ ahead.mT for ahead in aheads.double()])
    basis, failed = eigh_descending(gram)
    assert not failed.any(), f"steps that could not be decomposed: {failed.nonzero().flatten().tolist()}"
    return Exact(gram, basis)


def turned_bases(aheads: Tensor, rank: int, period: int) -> list[Tensor]:
    """Track the column space of a stream as `SCAO` does, with the damping and the blocks that are its defaults.

    Args:
        aheads: X (steps, m, n), float32, m ≤ n.
        rank: columns.
        period: steps between refreshes; those that `SCAO` makes early are made.
    """
    active = torch.tensor([rank])
    vectors, bases = initial_subspace(aheads[:1], rank), []
    for step, ahead in enumerate(aheads.split(1), 1):
        if refresh_due(step, period) or early_refresh_due(step, period):
            # A copy, since whitening overwrites its matrix.
            whitened = whiten(ahead.clone(), vectors, active, DEFAULTS["block_rows"], DEFAULTS["damping"])
            vectors, failed = turn_subspace(vectors, whitened.image)
            assert not failed, f"the subspace at step {step} is not finite"
        bases.append(vectors[0])
    return bases


def score(bases: Bases, period: int, starts: Collection[int], exact: Exact) -> Scores:
    """Judge a tracker over the intervals that begin at `starts`.

    Args:
        bases: of every step.
        period: steps an interval.
        starts: steps, from 1, of the refreshes that begin them.
        exact: of every step.
    """
    rank = bases[0].shape[1]
    most, whole = exact.basis.values[:, :rank].sum(-1), exact.basis.values.sum(-1)
    intervals = []
    for start in starts:
        # From the refresh itself to the last step in use.
        vectors, span = bases[start - 1], slice(start - 1, start + period)
        held = rayleigh_quotients(exact.gram[span], vectors.double()).sum(-1)
        masses, shares = (held / most[span]).tolist(), (held / whole[span]).tolist()
        intervals.append(
            Scores(
                mass=masses[0],
                stale_mass=masses[-1],
                used_mass=sum(masses[1:]) / period,
                share=sum(shares[1:]) / period,
                overlap=overlap(vectors, exact.basis.vectors[start - 1, :, :rank]),
                drift=1 - overlap(vectors, bases[start + period - 1]),
            )
        )
    return mean_scores(intervals)


def overlap(vectors: Tensor, others: Tensor) -> float:
    """‖Uᵀ V‖² / k of two orthonormal bases (m, k): 1 for the same span, 0 for orthogonal ones."""
    return float((vectors.double().mT @ others.double()).square().sum() / vectors.shape[1])


def mean_scores(scores: Sequence[Scores]) -> Scores:
    return Scores(*(sum(column) / len(column) for column in zip(*scores, strict=True)))


def averaged(rows: Sequence[TrackerRow]) -> list[TrackerRow]:
    """The mean of each tracker over the layers of these rows that hold its rank."""
    together: dict[tuple[str, int, int, float], list[Scores]] = {}
    for row in rows:
        together.setdefault((row.tracker, row.rank, row.period, row.beta), []).append(row.scores)
    return [TrackerRow("mean", "short", *key, mean_scores(scores)) for key, scores in together.items()]
