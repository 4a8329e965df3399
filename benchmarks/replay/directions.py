"""Which way optimizers would go: the real classes on recorded gradients, against the polar factor and others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.memory import state_bytes
from benchmarks.muon import Muon
from benchmarks.replay.defaults import BETAS, PERIOD
from benchmarks.replay.record import Layer
from scao_hf import SCAO, SOAP, PublishedSCAO

RATE = 2.0**-20
"""Learning rate of every replayed step: too small for any bound in units of the weights, and exact in floats."""
RHO = BETAS[1]
"""Of every curvature average, so that directions differ by rule and not by memory."""
BLOCK_ROWS = (1, 8, 16, 32, 64)
EVERY_COLUMN = 1 << 16
QUANTILES = (0.1, 0.5, 0.9)
POLAR, SOAP_EXACT, SHAMPOO = "polar factor, dense float64", "SOAP, refreshed every step", "Shampoo, dense float64"
ADAMW = "AdamW"
REFERENCES = (POLAR, SOAP_EXACT, SHAMPOO, ADAMW)
DEFAULT = "default"

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Candidate:
    """An optimizer whose direction is read.

    Args:
        name: as tables call it.
        build: from parameter groups; with the learning rate `RATE` and no weight decay.
        period: steps between its refreshes; None if it has none.
        rank: directions that SCAO tracks.
        block_rows: rows of its blocks.
    """

    name: str
    build: Callable[[Groups], torch.optim.Optimizer]
    period: int | None = None
    rank: str = ""
    block_rows: str = ""


class PolarFactor(torch.optim.Optimizer):
    """The look-ahead momentum with all its singular values made one, in float64: a judge, too slow to train with.

        M <- β₁ M + (1 − β₁) G        A Σ Bᵀ = β₁ M + (1 − β₁) G        p <- p − lr · A Bᵀ

    What Muon approaches by iteration, and SCAO in its subspace by a triangular factor.
    """

    def __init__(self, params: Any, lr: float, beta: float) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        assert closure is None, "recorded gradients have no closure"
        for group in self.param_groups:
            for parameter in group["params"]:
                self._step(parameter, group)

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        grad = parameter.grad.double()
        momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(grad))
        momentum.lerp_(grad, 1 - group["beta"])
        left, _, right = torch.linalg.svd(torch.lerp(grad, momentum, group["beta"]), full_matrices=False)
        parameter.add_((left @ right).to(parameter.dtype), alpha=-group["lr"])


class DenseShampoo(torch.optim.Optimizer):
    """Shampoo on averaged factors, in float64, its roots taken anew every step: a judge, far too slow to train with.

        M <- β₁ M + (1 − β₁) G        L <- ρ L + (1 − ρ) G Gᵀ        R <- ρ R + (1 − ρ) Gᵀ G
        p <- p − lr · L^{-1/4} M R^{-1/4},   or M R^{-1/2} for a group whose `sides` is "right", L^{-1/2} M for "left"

    Averages are corrected for their start at zero and damped by 1e-6 of their mean eigenvalue.

    Source: Gupta, Koren & Singer (2018), arXiv:1802.09568, with averages in place of sums, and momentum.
    """

    def __init__(self, params: Any, lr: float, beta: float, rho: float) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "rho": rho})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        assert closure is None, "recorded gradients have no closure"
        for group in self.param_groups:
            for parameter in group["params"]:
                self._step(parameter, group)

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state, grad = self.state[parameter], parameter.grad.double()
        if not state:
            state.update(step=0, momentum=torch.zeros_like(grad))
            state.update({side: torch.zeros(d, d, dtype=grad.dtype) for side, d in _preconditioned(grad, group)})
        state["step"] += 1
        state["momentum"].lerp_(grad, 1 - group["beta"])
        direction = state["momentum"] / (1 - group["beta"] ** state["step"])
        sides = [side for side, _ in _preconditioned(grad, group)]
        for side in sides:
            state[side].lerp_(grad @ grad.mT if side == "left" else grad.mT @ grad, 1 - group["rho"])
            factor = state[side] / (1 - group["rho"] ** state["step"])
            root = _root(factor, -1 / (2 * len(sides)))
            direction = root @ direction if side == "left" else direction @ root
        parameter.add_(direction.to(parameter.dtype), alpha=-group["lr"])


def _preconditioned(grad: Tensor, group: dict[str, Any]) -> list[tuple[str, int]]:
    dims = dict(zip(("left", "right"), grad.shape, strict=True))
    chosen = group.get("sides", "auto")
    return [(side, dim) for side, dim in dims.items() if chosen in ("auto", "both", side)]


def _root(factor: Tensor, exponent: float) -> Tensor:
    """A power of a damped factor."""
    damped = factor + 1e-6 * factor.diagonal().mean() * torch.eye(len(factor), dtype=factor.dtype)
    values, vectors = torch.linalg.eigh(damped)
    return (vectors * values**exponent) @ vectors.mT


def candidates(ranks: Sequence[int], periods: Sequence[int] = (PERIOD,)) -> list[Candidate]:
    """The references, the other optimizers, and SCAO: as it comes by period, by rank, and by rows of a block."""
    common: dict[str, Any] = {"lr": RATE, "betas": BETAS, "weight_decay": 0.0}
    published: dict[str, Any] = {"warmup_steps": 10, "blend_steps": 0, "precond_freq": PERIOD, "rho": RHO, "k_max": 64}

    def scao(**own: Any) -> Callable[[Groups], torch.optim.Optimizer]:
        # Without the bound by the weights, since none are replayed.
        return lambda groups: SCAO(groups, **common, tau=None, **own)

    def soap(period: int) -> Callable[[Groups], torch.optim.Optimizer]:
        return lambda groups: SOAP(groups, **common, shampoo_beta=RHO, precondition_frequency=period)

    return [
        Candidate(POLAR, lambda groups: PolarFactor(groups, RATE, BETAS[0])),
        Candidate(SOAP_EXACT, soap(1), 1),
        Candidate(SHAMPOO, lambda groups: DenseShampoo(groups, RATE, BETAS[0], RHO), 1),
        Candidate(ADAMW, lambda groups: torch.optim.AdamW(groups, **common, fused=True)),
        Candidate("SOAP", soap(PERIOD), PERIOD),
        Candidate("Muon", lambda groups: Muon(groups, **common)),
        Candidate("NorMuon-like", lambda groups: Muon(groups, **common, normalise_rows=True)),
        Candidate("SCAO as published", lambda groups: PublishedSCAO(groups, **common, **published), PERIOD),
        *(Candidate("SCAO", scao(precond_freq=period), period, DEFAULT, DEFAULT) for period in periods),
        *(
            Candidate("SCAO", scao(k_exact=0, k_max=rank), PERIOD, name, DEFAULT)
            for rank, name in ((*((rank, str(rank)) for rank in ranks), (EVERY_COLUMN, "full")))
        ),
        *(Candidate("SCAO", scao(block_rows=rows), PERIOD, DEFAULT, str(rows)) for rows in BLOCK_ROWS),
    ]


class Measures(NamedTuple):
    """One direction D (m, n).

    Cosines with the references; `rms` of its entries at a learning rate of 1. Of its singular values σ:
    `effective_rank` is exp(entropy of σ²/Σσ²) over min(m, n), and `sigma_10`, `sigma_50` and `sigma_90` are quantiles
    of σ over the largest.
    """

    cosine_polar: float
    cosine_soap: float
    cosine_shampoo: float
    cosine_adamw: float
    rms: float
    effective_rank: float
    sigma_10: float
    sigma_50: float
    sigma_90: float


class Cost(NamedTuple):
    """Of one matrix, one step at a time: median milliseconds of all steps and of those that refresh; bytes."""

    step_ms: float
    refresh_ms: float | None
    state_bytes: float


class DirectionRow(NamedTuple):
    """One optimizer on one layer, or the mean over several."""

    layer: str
    optimizer: str
    rank: str
    block_rows: str
    period: int | None
    measures: Measures
    cost: Cost


class Replayed:
    """A parameter at zero that an optimizer is made to step from, over and over."""

    def __init__(self, candidate: Candidate, shape: torch.Size, treatment: dict[str, str]) -> None:
        self.candidate = candidate
        self.parameter = nn.Parameter(torch.zeros(shape))
        self.optimizer = candidate.build([{"params": [self.parameter], **treatment}])
        self.seconds: list[float] = []

    def direction(self, grad: Tensor) -> Tensor:
        """What the optimizer would subtract at a learning rate of 1; (m, n), new."""
        with torch.no_grad():
            self.parameter.zero_()
        self.parameter.grad = grad
        # The time of this process, which another process on the machine cannot lengthen.
        started = time.process_time()
        self.optimizer.step()
        self.seconds.append(time.process_time() - started)
        return self.parameter.detach() / -RATE

    def cost(self, burn_in: int) -> Cost:
        """Over the steps after the first `burn_in`."""
        timed = list(enumerate(self.seconds, 1))[burn_in:]
        period = self.candidate.period
        refreshes = [seconds for step, seconds in timed if period and step % period == 0]
        return Cost(
            1e3 * statistics.median(seconds for _, seconds in timed),
            1e3 * statistics.median(refreshes) if refreshes else None,
            state_bytes(self.optimizer),
        )


def direction_rows(layer: Layer, among: Sequence[Candidate], burn_in: int) -> Iterator[DirectionRow]:
    """Replay one layer through all candidates; means over the steps after the first `burn_in`.

    Args:
        layer: with its gradients.
        among: candidates, all `REFERENCES` included.
        burn_in: steps, fewer than there are gradients.

    Raises:
        ValueError: nothing would be left after `burn_in`.
    """
    if burn_in >= len(layer.gradients):
        raise ValueError(f"burn_in must be below the {len(layer.gradients)} recorded steps, got {burn_in}")
    all_replayed = [Replayed(each, layer.gradients.shape[1:], dict(layer.treatment)) for each in among]
    named = {each.candidate.name: position for position, each in enumerate(all_replayed)}
    measured: list[list[Measures]] = [[] for _ in all_replayed]
    for step, grad in enumerate(layer.gradients, 1):
        directions = [each.direction(grad) for each in all_replayed]
        if step <= burn_in:
            continue
        references = [directions[named[name]] for name in REFERENCES]
        for found, direction in zip(measured, directions, strict=True):
            found.append(measure(direction, references))
    for each, found in zip(all_replayed, measured, strict=True):
        mean = Measures(*(statistics.fmean(column) for column in zip(*found, strict=True)))
        candidate = each.candidate
        described = (candidate.name, candidate.rank, candidate.block_rows, candidate.period)
        yield DirectionRow(layer.name, *described, mean, each.cost(burn_in))


def measure(direction: Tensor, references: Sequence[Tensor]) -> Measures:
    """Judge one direction (m, n).

    Args:
        direction: not zero.
        references: the directions of `REFERENCES`, in that order.
    """
    polar, soap, shampoo, adamw = (
        float(F.cosine_similarity(direction.flatten(), each.flatten(), dim=0)) for each in references
    )
    sigma = singular_values(direction)
    weights = sigma.square() / sigma.square().sum()
    low, middle, high = (sigma.quantile(torch.tensor(QUANTILES, dtype=sigma.dtype)) / sigma.max()).tolist()
    return Measures(
        cosine_polar=polar,
        cosine_soap=soap,
        cosine_shampoo=shampoo,
        cosine_adamw=adamw,
        rms=float(direction.square().mean().sqrt()),
        effective_rank=float(torch.special.entr(weights).sum().exp()) / len(sigma),
        sigma_10=low,
        sigma_50=middle,
        sigma_90=high,
    )


def singular_values(matrix: Tensor) -> Tensor:
    """(min(m, n),), float64, ascending, by way of the smaller Gram matrix: exact to about 1e-8 of the largest."""
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().mT
    return torch.linalg.eigvalsh(wide @ wide.mT).clamp_min(0).sqrt()


def averaged(rows: Sequence[DirectionRow]) -> list[DirectionRow]:
    """The mean of each optimizer over the layers of these rows."""
    together: dict[tuple[str, str, str, int | None], list[DirectionRow]] = {}
    for row in rows:
        together.setdefault((row.optimizer, row.rank, row.block_rows, row.period), []).append(row)
    return [
        DirectionRow(
            "mean",
            *key,
            Measures(*(statistics.fmean(column) for column in zip(*(row.measures for row in members), strict=True))),
            _mean_cost([row.cost for row in members]),
        )
        for key, members in together.items()
    ]


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    refreshes = [cost.refresh_ms for cost in costs if cost.refresh_ms is not None]
    return Cost(
        statistics.fmean(cost.step_ms for cost in costs),
        statistics.fmean(refreshes) if refreshes else None,
        statistics.fmean(cost.state_bytes for cost in costs),
    )
