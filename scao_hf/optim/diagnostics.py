"""What an optimizer's curvature looks like, read from its state; changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class LayerDiagnostics(NamedTuple):
    """The curvature of one parameter; its sides are averaged, its blocks too."""

    blend: float
    """How far preconditioning is switched on, 0 to 1."""
    ranks: tuple[float, ...]
    """Active columns of each side that has a basis, mean over the blocks."""
    mass_kept: float
    """Share of the trace that the active columns hold, mean over sides."""
    curvature_norm: float
    """Mean eigenvalue of the factors, in squared units of the gradient."""
    basis_drift: float
    """How far the columns turned at the last refresh, 1 − mean cos²; 0 is a basis at rest."""
    failures: int
    """Factorisations that failed and kept the last good basis."""
    name: str = ""
    numel: int = 0


def summarize(layers: Sequence[LayerDiagnostics], numel: int, state_bytes: int) -> dict[str, float]:
    """Average over layers; see `KroneckerOptimizer.diagnostics` for the keys."""
    ranks = [rank for layer in layers for rank in layer.ranks]
    blend = _mean([layer.blend for layer in layers])
    return {
        "phase": 0.0 if blend == 0 else 2.0 if blend == 1 else 1.0,
        "blend": blend,
        "rank_mean": _mean(ranks),
        "rank_max": max(ranks, default=0.0),
        "mass_kept": _mean([layer.mass_kept for layer in layers]),
        "curvature_norm": _mean([layer.curvature_norm for layer in layers]),
        "basis_drift": _mean([layer.basis_drift for layer in layers]),
        "failures": float(sum(layer.failures for layer in layers)),
        "preconditioned_fraction": sum(layer.numel for layer in layers) / numel if numel else 0.0,
        "state_bytes": float(state_bytes),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def mass_share(values: Tensor, rank: Tensor, trace: Tensor) -> float:
    """Share of a trace (...) in the first `rank` (...) of descending eigenvalues (..., k), mean over the batch."""
    held = values.cumsum(-1).gather(-1, (rank.clamp_min(1) - 1).unsqueeze(-1)).squeeze(-1) * (rank > 0)
    share = held / trace.clamp_min(1e-30)
    return float(share.clamp(0, 1).mean())
