"""PublishedSCAO: the update of the SCAO 0.1 README to the letter, kept for comparison."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from scao_hf.numerics.blocks import block_shape
from scao_hf.numerics.eigenbasis import Eigenbasis, eigh_descending, spectral_rank
from scao_hf.numerics.kronecker import KroneckerFactors, damp, debias, update_factors
from scao_hf.numerics.moments import adam_direction, update_moments
from scao_hf.numerics.precondition import clip_to_norm, low_rank_correction, natural_gradient_norm, scaled_core
from scao_hf.numerics.quantize import Quantized, dequantize, quantize
from scao_hf.optim.diagnostics import LayerDiagnostics, mass_share
from scao_hf.optim.kronecker import (
    Group,
    KroneckerOptimizer,
    ReadNorms,
    Refresh,
    require_count,
    require_flag,
    require_number,
    require_pair,
)
from scao_hf.optim.schedule import blend_weight, refresh_due
from scao_hf.optim.stack import Layout, State, Storage

SIDES = ("left", "right")
INITIAL_FACTOR = 1e-4


@final
class PublishedSCAO(KroneckerOptimizer):
    """SCAO as published: a low-rank Kronecker correction of the gradient, then Adam. For comparison; train with `SCAO`.

    Phase 1 is AdamW, while statistics gather every `stats_freq` steps:

        L <- ρ L + (1 − ρ) G Gᵀ,   R <- ρ R + (1 − ρ) Gᵀ G,   both from 1e-4·I

    Every `precond_freq` steps, for each side: divide by 1 − ρᵗ, add max(1e-8, 1e-4·tr/dim)·I, decompose, keep the
    smallest k with Σ_{i≤k} λ_i ≥ (1 − epsilon_sparse) Σ λ, within [k_min, k_max]. In phase 2, t₂ counting its steps:

        P(G) = G + U_L (S_L^{-1/4} C S_R^{-1/4} − C) U_Rᵀ,   C = U_Lᵀ G U_R
        g = b P(G) + (1 − b) G,   b = min(1, t₂ / blend_steps)

    and AdamW on g, its moments shared with phase 1.

    Where the source contradicts itself, this is what was settled: phase 2 starts after `warmup_steps` steps *and*
    `min_precond_updates` statistics updates *and* a first refresh; the ramp is linear (text: "cosine"); the factors
    start at 1e-4·I and are divided by 1 − ρᵗ all the same, as published, which inflates them early on; dimensions over
    `max_precond_dim` are cut into equal blocks (text elsewhere: a diagonal fallback); `tau` bounds the norm of the
    scaled core S_L^{-1/4} C S_R^{-1/4}, and scales P(G). Vectors, scalars and matrices with a side of length 1
    take AdamW.

    Known defects, which `SCAO` repairs: the correction depends on the gradient's scale and amplifies leading directions
    where Shampoo damps them; two of the four blocks are not scaled; the factors are dense; an int8 average with
    ρ = 0.999 hardly moves.

    Memory of a matrix (m, n), or of each of its blocks, in bytes, with k = min(m, k_max) and l = min(n, k_max):

        8mn + 4(m² + n²) + 4[(m + 1)k + (n + 1)l] + 40        with int8 factors m² + n² + 8 in place of 4(m² + n²)

    Args:
        params: parameters or groups; `sides="none"` in a group is AdamW, any other value both sides, as published.
        lr: learning rate; the source recommends 1.1 to 1.2 times AdamW's.
        betas: (β₁, β₂).
        eps: outside the root.
        weight_decay: decoupled.
        warmup_steps: least number of steps of phase 1.
        min_precond_updates: statistics updates before phase 2.
        precond_freq: steps between refreshes.
        stats_freq: steps between statistics updates.
        rho: ρ, decay of the factors per statistics update.
        epsilon_sparse: share of the raw spectral mass to discard.
        k_min: least rank a side.
        k_max: largest rank a side.
        tau: bound on the natural-gradient norm; None is none.
        blend_steps: length of the ramp; 0 switches at once.
        max_precond_dim: longer sides are cut into equal blocks.
        use_int8_ema: store the factors as int8 with one scale a matrix.

    Raises:
        ValueError: a value out of range, named with what would do.
        TypeError: a value of the wrong kind; a complex or sparse parameter.

    Source: SCAO 0.1.1 README, §3 and §11. A gradient with NaN or Inf is not folded into the factors.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        warmup_steps: int = 100,
        min_precond_updates: int = 10,
        precond_freq: int = 20,
        stats_freq: int = 1,
        rho: float = 0.999,
        epsilon_sparse: float = 0.05,
        k_min: int = 8,
        k_max: int = 128,
        tau: float | None = None,
        blend_steps: int = 50,
        max_precond_dim: int = 4096,
        use_int8_ema: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": require_pair("betas", betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "min_precond_updates": min_precond_updates,
            "precond_freq": precond_freq,
            "stats_freq": stats_freq,
            "rho": rho,
            "epsilon_sparse": epsilon_sparse,
            "k_min": k_min,
            "k_max": k_max,
            "tau": tau,
            "blend_steps": blend_steps,
            "max_precond_dim": max_precond_dim,
            "use_int8_ema": use_int8_ema,
        }
        super().__init__(params, defaults)

    @staticmethod
    def recommended(num_params: int) -> dict[str, Any]:
        """The source's settings by model size (README §11): warmup_steps, precond_freq, k_max, tau and rho.

        Args:
            num_params: parameters of the model.

        Returns:
            Keyword arguments of the constructor.
        """
        for limit, settings in _RECOMMENDED:
            if num_params <= limit:
                return dict(settings)
        raise AssertionError("the last row has no limit")

    @staticmethod
    def _validate(group: Group) -> None:
        for name in ("warmup_steps", "min_precond_updates", "blend_steps"):
            require_count(name, group[name], 0)
        for name, least in (("precond_freq", 1), ("stats_freq", 1), ("k_min", 1), ("k_max", 1), ("max_precond_dim", 2)):
            require_count(name, group[name], least)
        require_number("rho", group["rho"], 0.0, 1.0, open_high=True)
        require_number("epsilon_sparse", group["epsilon_sparse"], 0.0, 1.0, open_high=True)
        require_flag("use_int8_ema", group["use_int8_ema"])
        if group["tau"] is not None:
            require_number("tau", group["tau"], 0.0)
        if group["k_min"] > group["k_max"]:
            raise ValueError(
                f"k_min must not exceed k_max, got k_min={group['k_min']}, k_max={group['k_max']}; lower k_min"
            )

    @staticmethod
    def _layout(shape: tuple[int, ...], group: Group) -> Layout:
        cut = block_shape(shape, group["max_precond_dim"])
        if len(shape) < 2 or min(cut.size) < 2 or group.get("sides") == "none":
            return Layout(shape, (0,) * len(shape))
        m, n = cut.size
        return Layout(cut.size, (min(m, group["k_max"]), min(n, group["k_max"])), cut)

    @staticmethod
    def _create(rows: int, layout: Layout, group: Group, device: torch.device) -> Storage:
        storage = {
            "exp_avg": torch.zeros(rows, *layout.row_shape, device=device),
            "exp_avg_sq": torch.zeros(rows, *layout.row_shape, device=device),
            "failures": torch.zeros(rows, dtype=torch.int64, device=device),
        }
        for side, dim, rank in zip(SIDES, layout.row_shape, layout.ranks, strict=True):
            start = INITIAL_FACTOR * torch.eye(dim, device=device).expand(rows, dim, dim)
            storage |= _stored_factor(side, start.contiguous(), group["use_int8_ema"])
            storage[f"{side}_vectors"] = torch.zeros(rows, dim, rank, device=device)
            storage[f"{side}_values"] = torch.zeros(rows, rank, device=device)
            storage[f"{side}_rank"] = torch.zeros(rows, dtype=torch.int64, device=device)
            storage[f"{side}_trace"] = torch.zeros(rows, device=device)
            storage[f"{side}_drift"] = torch.zeros(rows, device=device)
        return storage

    @staticmethod
    def _update(
        state: Storage, grads: Tensor, layout: Layout, group: Group, step: int, refresh: Refresh, read_norms: ReadNorms
    ) -> Tensor:
        if step % group["stats_freq"] == 0:
            _gather_statistics(state, grads, group["rho"])
        if _refresh_needed(step, group):
            refresh()
        blend = blend_weight(step, PublishedSCAO.adam_steps(group), group["blend_steps"])
        if blend > 0:
            grads = torch.lerp(grads, _preconditioned(state, grads, group["tau"]), blend)
        update_moments(state["exp_avg"], state["exp_avg_sq"], grads, group["betas"])
        return adam_direction(state["exp_avg"], state["exp_avg_sq"], group["betas"], group["eps"], step)

    @staticmethod
    def _refresh(state: Storage, layout: Layout, group: Group, step: int) -> None:
        for side, dim, kept in zip(SIDES, layout.row_shape, layout.ranks, strict=True):
            factor = damp(debias(_read_factor(state, side), group["rho"], step // group["stats_freq"]))
            basis, failed = eigh_descending(factor)
            trace = basis.values.clamp_min(0).sum(-1)
            mass = 1 - group["epsilon_sparse"]
            rank = spectral_rank(basis.values, trace, mass, min(group["k_min"], dim), kept)
            active = (torch.arange(kept, device=rank.device) < rank.unsqueeze(-1)).to(factor.dtype)
            vectors = basis.vectors[..., :kept] * active.unsqueeze(-2)
            cosines = (state[f"{side}_vectors"] * vectors).sum(-2)
            drift = 1 - cosines.square().sum(-1) / rank
            fresh = {
                "vectors": vectors,
                "values": basis.values[..., :kept].clamp_min(0) * active,
                "rank": rank,
                "trace": trace,
                "drift": drift,
            }
            for name, value in fresh.items():
                stored = state[f"{side}_{name}"]
                keep = failed.reshape(failed.shape + (1,) * (stored.ndim - 1))
                stored.copy_(torch.where(keep, stored, value))
            state["failures"].add_(failed)

    @staticmethod
    def adam_steps(group: Group) -> int:
        gathered = group["min_precond_updates"] * group["stats_freq"]
        return max(group["warmup_steps"], gathered - 1, _first_refresh_step(group) - 1)

    @staticmethod
    def _diagnose(state: State, layout: Layout, group: Group) -> LayerDiagnostics:
        shares = [mass_share(state[f"{s}_values"], state[f"{s}_rank"], state[f"{s}_trace"]) for s in SIDES]
        curvature = [float((state[f"{s}_trace"] / d).mean()) for s, d in zip(SIDES, layout.row_shape, strict=True)]
        return LayerDiagnostics(
            blend=blend_weight(state["step"], PublishedSCAO.adam_steps(group), group["blend_steps"]),
            ranks=tuple(float(state[f"{side}_rank"].float().mean()) for side in SIDES),
            mass_kept=sum(shares) / 2,
            curvature_norm=sum(curvature) / 2,
            basis_drift=sum(float(state[f"{side}_drift"].mean()) for side in SIDES) / 2,
            failures=int(state["failures"].sum()),
        )


_RECOMMENDED = (
    (9_999_999, {"warmup_steps": 100, "precond_freq": 10, "k_max": 64, "tau": None, "rho": 0.999}),
    (300_000_000, {"warmup_steps": 500, "precond_freq": 20, "k_max": 128, "tau": 5.0, "rho": 0.999}),
    (7_000_000_000, {"warmup_steps": 1000, "precond_freq": 50, "k_max": 256, "tau": 5.0, "rho": 0.99}),
    (float("inf"), {"warmup_steps": 2000, "precond_freq": 100, "k_max": 512, "tau": 10.0, "rho": 0.99}),
)


def _first_refresh_step(group: Group) -> int:
    frequency = group["precond_freq"]
    return frequency * -(-group["stats_freq"] // frequency)


def _refresh_needed(step: int, group: Group) -> bool:
    """Is a refresh due whose basis will be used before the next one? Those of phase 1 but the last are not."""
    due = refresh_due(step, group["precond_freq"]) and step >= _first_refresh_step(group)
    return due and step + group["precond_freq"] > PublishedSCAO.adam_steps(group) + 1


def _stored_factor(side: str, factor: Tensor, use_int8: bool) -> Storage:
    if not use_int8:
        return {f"{side}_factor": factor}
    quantized = quantize(factor.flatten(-2))
    return {f"{side}_codes": quantized.codes.view_as(factor), f"{side}_scale": quantized.scales}


def _read_factor(state: Storage, side: str) -> Tensor:
    if f"{side}_factor" in state:
        return state[f"{side}_factor"]
    codes = state[f"{side}_codes"]
    return dequantize(Quantized(codes.flatten(-2), state[f"{side}_scale"])).view_as(codes)


def _gather_statistics(state: Storage, grads: Tensor, rho: float) -> None:
    factors = KroneckerFactors(*(_read_factor(state, side) for side in SIDES))
    update_factors(factors, grads, rho)
    for side, factor in zip(SIDES, factors, strict=True):
        if f"{side}_codes" in state:
            for name, value in _stored_factor(side, factor, use_int8=True).items():
                state[name].copy_(value)


def _preconditioned(state: Storage, grads: Tensor, tau: float | None) -> Tensor:
    left, right = (Eigenbasis(state[f"{side}_vectors"], state[f"{side}_values"]) for side in SIDES)
    corrected = low_rank_correction(grads, left, right)
    if tau is None:
        return corrected
    _, scaled = scaled_core(grads, left, right)
    return clip_to_norm(corrected, natural_gradient_norm(scaled), tau)
