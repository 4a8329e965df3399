"""Eigenbases of symmetric factors: exact, and by orthogonal iteration; spectral rank and drift of a basis."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scao_hf.numerics.kronecker import finite_matrices

JITTERS = (0.0, 1e-6, 1e-4)
"""Multiples of the mean eigenvalue added to a factor, in turn, when its decomposition fails."""


class Eigenbasis(NamedTuple):
    """Leading eigenpairs: orthonormal columns `vectors` (..., d, k) and `values` (..., k), descending."""

    vectors: Tensor
    values: Tensor


def eigh_descending(factor: Tensor, fallback: Eigenbasis | None = None) -> tuple[Eigenbasis, Tensor]:
    """Decompose symmetric matrices, largest eigenvalue first, and never fail silently or fatally.

        A = V diag(λ) Vᵀ

    A solver that does not converge is tried again with growing jitter, then in float64. A matrix that holds a NaN or an
    Inf, or whose decomposition does, or that no attempt could decompose, keeps its `fallback` and is reported.

    Args:
        factor: (..., d, d), floating; the lower triangle counts.
        fallback: the last good basis, vectors (..., d, d) and values (..., d); the unit vectors and zeros if None.

    Returns:
        The basis, contiguous, in the dtype of `factor`, and (...) bool: which matrices kept their fallback.
    """
    if fallback is None:
        fallback = _unit_basis(factor)
    finite = finite_matrices(factor)
    basis, solved = _eigh_with_escalation(torch.where(finite[..., None, None], factor, torch.zeros_like(factor)))
    good = finite & solved & finite_matrices(basis.vectors) & torch.isfinite(basis.values).all(-1)
    vectors = torch.where(good[..., None, None], basis.vectors, fallback.vectors)
    values = torch.where(good[..., None], basis.values, fallback.values)
    return Eigenbasis(vectors.contiguous(), values.contiguous()), ~good


def _unit_basis(factor: Tensor) -> Eigenbasis:
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    return Eigenbasis(identity, torch.zeros_like(factor[..., 0]))


def _eigh_with_escalation(factor: Tensor) -> tuple[Eigenbasis, Tensor]:
    """Decompose all at once or, where the solver refuses, one by one: a stubborn matrix costs the others nothing."""
    # eigh has no bfloat16 kernel, and float32 keeps the basis orthonormal to about 1e-6.
    together = _attempt(factor, torch.promote_types(factor.dtype, torch.float32))
    if together is not None:
        return together, torch.ones_like(factor[..., 0, 0], dtype=torch.bool)
    singles = factor.reshape(-1, *factor.shape[-2:])
    answers = [_escalate(matrix) for matrix in singles]
    solved = torch.tensor([answer is not None for answer in answers], device=factor.device)
    bases = [answer or _unit_basis(matrix) for answer, matrix in zip(answers, singles, strict=True)]
    vectors = torch.stack([basis.vectors for basis in bases]).reshape(factor.shape)
    values = torch.stack([basis.values for basis in bases]).reshape(factor.shape[:-1])
    return Eigenbasis(vectors, values), solved.reshape(factor.shape[:-2])


def _escalate(matrix: Tensor) -> Eigenbasis | None:
    for dtype in (torch.promote_types(matrix.dtype, torch.float32), torch.float64):
        for jitter in JITTERS:
            basis = _attempt(matrix, dtype, jitter)
            if basis is not None:
                return basis
    return None


def _attempt(factor: Tensor, dtype: torch.dtype, jitter: float = 0.0) -> Eigenbasis | None:
    if jitter:
        scale = factor.diagonal(dim1=-2, dim2=-1).abs().mean(-1)[..., None, None]
        factor = factor + jitter * scale * torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    try:
        values, vectors = torch.linalg.eigh(factor.to(dtype))
    except torch.linalg.LinAlgError:
        return None
    return Eigenbasis(vectors.flip(-1).to(factor.dtype), values.flip(-1).to(factor.dtype))


def rayleigh_quotients(factor: Tensor, vectors: Tensor) -> Tensor:
    """Eigenvalue estimates of the columns of a basis.

        diag(Uᵀ A U)

    Args:
        factor: (..., d, d).
        vectors: (..., d, k), orthonormal columns.

    Returns:
        (..., k), new.
    """
    return (vectors * (factor @ vectors)).sum(-2)


def descending_order(values: Tensor) -> Tensor:
    """Indices (..., k) that sort `values` (..., k) from large to small; ties keep their order, NaN comes last."""
    return values.nan_to_num(nan=-torch.inf).argsort(dim=-1, descending=True, stable=True)


def take_columns(matrix: Tensor, order: Tensor) -> Tensor:
    """Reorder the columns of (..., d, k) by indices (..., k)."""
    return torch.take_along_dim(matrix, order.unsqueeze(-2), dim=-1)


def orthogonal_iteration(factor: Tensor, vectors: Tensor, num_iterations: int = 1) -> tuple[Tensor, Tensor]:
    """Turn a basis towards the eigenvectors of a factor.

        U <- qr(A U), num_iterations times

    The columns should come in descending order of their Rayleigh quotients (`descending_order`), since QR keeps the
    span of every leading group of columns. Where the result is not finite the old basis stays.

    Args:
        factor: (..., d, d), symmetric.
        vectors: (..., d, k), orthonormal columns.
        num_iterations: ≥ 1.

    Returns:
        New (..., d, k), contiguous, and (...) bool: where the old basis stayed.

    Source: orthogonal iteration, Golub & Van Loan, Matrix Computations, §8.2.4; in SOAP: Vyas et al. (2024),
    arXiv:2409.11321, Algorithm 4.
    """
    turned = vectors
    for _ in range(num_iterations):
        turned = torch.linalg.qr(factor @ turned).Q
    good = finite_matrices(turned)
    return torch.where(good[..., None, None], turned, vectors).contiguous(), ~good


def spectral_rank(values: Tensor, total: Tensor, mass: float, k_min: int, k_max: int) -> Tensor:
    """Smallest rank whose eigenvalues hold a share of the whole spectrum.

        k = min { k : Σ_{i≤k} λ_i ≥ mass · total },   k_min ≤ k ≤ k_max

    Args:
        values: (..., d) eigenvalues, descending; negative ones count as zero.
        total: (...), the sum over the whole spectrum, which may be longer than `values`.
        mass: share to keep, in (0, 1].
        k_min: lower bound of the answer.
        k_max: upper bound of the answer; at most d.

    Returns:
        (...), int64; a spectrum of zeros gives k_min.
    """
    reached = values.clamp_min(0).cumsum(-1) >= (mass * total).unsqueeze(-1)
    needed = (~reached).sum(-1) + (total > 0)
    return needed.clamp(min=min(k_min, k_max), max=k_max)


def tail_value(values: Tensor, trace: Tensor, dim: int) -> Tensor:
    """Mean eigenvalue of what k tracked eigenvalues leave.

        σ = max(0, (tr A − Σ λ_i) / (d − k)),  0 if k = d

    Args:
        values: (..., k), tracked eigenvalues.
        trace: (...), tr A.
        dim: d ≥ k.

    Returns:
        (...), new.
    """
    remaining = dim - values.shape[-1]
    if remaining == 0:
        return torch.zeros_like(trace)
    return ((trace - values.sum(-1)) / remaining).clamp_min(0)


def excess_spectral_rank(values: Tensor, tail: Tensor, mass: float, k_min: int, k_max: int) -> Tensor:
    """Smallest rank that holds a share of the spectral mass above the tail.

        k = min { k : Σ_{i≤k} (λ_i − σ)₊ ≥ mass · Σ_{i≤K} (λ_i − σ)₊ },   k_min ≤ k ≤ k_max

    A flat spectrum of any size has no excess and needs k_min, whatever its scale; a share of the *raw* mass would
    call for nearly all of it.

    Args:
        values: (..., K) tracked eigenvalues, descending.
        tail: (...), σ ≥ 0 (see `tail_value`).
        mass: share to keep, in (0, 1].
        k_min: lower bound of the answer.
        k_max: upper bound of the answer; at most K.

    Returns:
        (...), int64.
    """
    excess = (values - tail.unsqueeze(-1)).clamp_min(0)
    # The last partial sum, so that the whole mass is reached exactly where the excess ends.
    return spectral_rank(excess, excess.cumsum(-1)[..., -1], mass, k_min, k_max)


def basis_drift(before: Tensor, after: Tensor, rank: Tensor | None = None) -> Tensor:
    """How far the leading columns of a basis turned.

        1 − mean_{j ≤ rank} (u_j · u'_j)²

    Args:
        before: U (..., d, k), orthonormal columns.
        after: U' (..., d, k), column by column the continuation of U.
        rank: (...), int64, columns that count; all k if None.

    Returns:
        (...), in [0, 1]; signs do not count; 0 at rank 0.
    """
    squared = (before * after).sum(-2).square()
    if rank is None:
        return (1 - squared.mean(-1)).clamp(0, 1)
    counted = torch.arange(squared.shape[-1], device=squared.device) < rank.unsqueeze(-1)
    turned = torch.where(counted, 1 - squared, torch.zeros_like(squared)).sum(-1)
    return (turned / rank.clamp_min(1)).clamp(0, 1)
