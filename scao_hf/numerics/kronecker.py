"""Kronecker factors of a gradient's second moment: accumulate, debias, damp."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KroneckerFactors(NamedTuple):
    """Second moments of a gradient over its rows and its columns.

    `left` (..., m, m) estimates E[G Gᵀ] and `right` (..., n, n) estimates E[Gᵀ G]; float32, symmetric.
    """

    left: Tensor
    right: Tensor


def finite_matrices(grad: Tensor) -> Tensor:
    """Tell which matrices of a batch hold no NaN and no Inf.

    Args:
        grad: (..., m, n), floating.

    Returns:
        (...), bool, on the same device; nothing is read back to the host.
    """
    return torch.isfinite(grad).flatten(-2).all(-1)


def outer_product(grad: Tensor, dim: int) -> Tensor:
    """Contract a batch of tensors with themselves over every dimension but one.

        A_ij = Σ G_{… i …} G_{… j …}

    Args:
        grad: (rows, d_0, …, d_N), floating; the first dimension is the batch.
        dim: which of d_0 … d_N remains, counted from 0.

    Returns:
        (rows, d, d), new; G Gᵀ for `dim=0` and Gᵀ G for `dim=1` of a matrix.
    """
    unfolded = grad.movedim(dim + 1, 1).flatten(2) if grad.ndim > 2 else grad.unsqueeze(-1)
    return unfolded @ unfolded.mT


def accumulate(factor: Tensor, outer: Tensor, beta: float, accept: Tensor | None = None) -> None:
    """Fold one outer product into its factor, in place.

        A <- beta A + (1 - beta) G Gᵀ        where accepted and finite; A otherwise

    So a gradient with a NaN or an Inf, or one so large that its squares overflow, costs one observation and not the
    whole history.

    Args:
        factor: (..., d, d), float32; overwritten.
        outer: (..., d, d), float32.
        beta: decay per call, in [0, 1); the memory is about 1 / (1 - beta) calls.
        accept: (...), bool; matrices to leave alone where False. None accepts all that are finite.
    """
    finite = finite_matrices(outer)
    accept = finite if accept is None else accept & finite
    factor.copy_(torch.where(accept[..., None, None], torch.lerp(factor, outer, 1 - beta), factor))


def update_factors(factors: KroneckerFactors, grad: Tensor, beta: float) -> None:
    """Fold one gradient into the Kronecker factors, in place.

        L <- beta L + (1 - beta) G Gᵀ        R <- beta R + (1 - beta) Gᵀ G

    A gradient with a NaN or an Inf, or one so large that its squares overflow, is skipped, matrix by matrix.

    Args:
        factors: left (..., m, m) and right (..., n, n), float32; overwritten.
        grad: (..., m, n), floating; computed in float32.
        beta: decay per call, in [0, 1); the memory is about 1 / (1 - beta) calls.

    Source: Gupta, Koren & Singer (2018), arXiv:1802.09568, Algorithm 1, with the running sum replaced by an
    exponential moving average.
    """
    grad = grad.to(factors.left.dtype)
    left, right = grad @ grad.mT, grad.mT @ grad
    accept = finite_matrices(left) & finite_matrices(right)
    accumulate(factors.left, left, beta, accept)
    accumulate(factors.right, right, beta, accept)


def debias(average: Tensor, beta: float, num_updates: int) -> Tensor:
    """Undo the start at zero of an exponential moving average.

        A / (1 - betaᵗ)

    Args:
        average: any shape, floating.
        beta: decay per update, in [0, 1).
        num_updates: t ≥ 1, how often the average was updated.

    Returns:
        Same shape, new.

    Raises:
        ValueError: `num_updates` is below 1; nothing has been averaged yet.
    """
    if num_updates < 1:
        raise ValueError(f"num_updates counts from 1, got {num_updates}: there is nothing to debias before an update")
    return average / (1 - beta**num_updates)


def damping(factor: Tensor, floor: float = 1e-8, relative: float = 1e-4) -> Tensor:
    """Adaptive Tikhonov damping of a factor.

        ε = max(floor, relative · tr(A) / d)

    Args:
        factor: (..., d, d), floating.
        floor: absolute lower bound, in units of the factor.
        relative: share of the mean eigenvalue, dimensionless.

    Returns:
        (...), the multiple of the identity to add.
    """
    mean_eigenvalue = factor.diagonal(dim1=-2, dim2=-1).mean(-1)
    return (relative * mean_eigenvalue).clamp_min(floor)


def damp(factor: Tensor, floor: float = 1e-8, relative: float = 1e-4) -> Tensor:
    """Add the adaptive Tikhonov damping to a factor.

        A + max(floor, relative · tr(A) / d) I

    Args:
        factor: (..., d, d), floating.
        floor: see `damping`.
        relative: see `damping`.

    Returns:
        (..., d, d), new.
    """
    epsilon = damping(factor, floor, relative)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return factor + epsilon[..., None, None] * identity
