"""Applying a curvature estimate to a gradient: rotations, low-rank corrections, roots and norms."""

from __future__ import annotations

import torch
from torch import Tensor

from scao_hf.numerics.eigenbasis import Eigenbasis


def rotate(grad: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Express a matrix in two bases: Uᵀ G W, (..., k, l), for G (..., m, n), U (..., m, k), W (..., n, l)."""
    return left.mT @ grad @ right


def unrotate(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Bring a matrix back from two bases: U C Wᵀ, (..., m, n), for C (..., k, l), U (..., m, k), W (..., n, l)."""
    return left @ core @ right.mT


def rotate_dims(tensor: Tensor, bases: dict[int, Tensor], *, back: bool = False) -> Tensor:
    """Rotate an N-dimensional tensor along chosen dimensions.

        T_{… a …} = Σ_i Q_{ia} T_{… i …} for every (dim, Q); with Q transposed if `back`

    Args:
        tensor: (rows, d_0, …, d_N); the first dimension is the batch.
        bases: dimension, counted from 0 after the batch, to its orthogonal basis (rows, d, d).
        back: undo the rotation instead.

    Returns:
        Same shape, new (the input itself if there are no bases).
    """
    for dim, basis in bases.items():
        moved = tensor.movedim(dim + 1, -1)
        folded = moved.reshape(tensor.shape[0], -1, basis.shape[-1])
        turned = folded @ (basis.mT if back else basis)
        tensor = turned.reshape(moved.shape).movedim(-1, dim + 1)
    return tensor


def scaled_core(grad: Tensor, left: Eigenbasis, right: Eigenbasis) -> tuple[Tensor, Tensor]:
    """The part of a gradient inside two eigenbases, before and after the published scaling.

        P = Uᵀ G W,    S_L^{-1/4} P S_R^{-1/4}

    Args:
        grad: (..., m, n).
        left: vectors U (..., m, k), values S_L (..., k).
        right: vectors W (..., n, l), values S_R (..., l). Columns whose value is 0 are inactive and give zeros.

    Returns:
        The two cores, (..., k, l), new.
    """
    core = rotate(grad, left.vectors, right.vectors)
    row_gain = _inverse_quarter_root(left.values)
    column_gain = _inverse_quarter_root(right.values)
    return core, row_gain.unsqueeze(-1) * core * column_gain.unsqueeze(-2)


def _inverse_quarter_root(values: Tensor) -> Tensor:
    return torch.where(values > 0, values.pow(-0.25), torch.zeros_like(values))


def low_rank_correction(grad: Tensor, left: Eigenbasis, right: Eigenbasis) -> Tensor:
    """The preconditioned gradient as the published SCAO defines it: identity plus a correction inside two eigenbases.

        G + U (S_L^{-1/4} P S_R^{-1/4} − P) Wᵀ,    P = Uᵀ G W

    Args:
        grad: (..., m, n).
        left: vectors (..., m, k), values (..., k).
        right: vectors (..., n, l), values (..., l). Inactive columns are zero vectors with the value 0; their
            correction is zero.

    Returns:
        (..., m, n), new.

    Source: the update published with SCAO 0.1 (README, §3). It is not invariant to the scale of the gradient and leaves
    two of the four blocks unscaled; `spike_tail_precondition` is the sound form.
    """
    core, scaled = scaled_core(grad, left, right)
    return grad + unrotate(scaled - core, left.vectors, right.vectors)


def natural_gradient_norm(scaled: Tensor) -> Tensor:
    """Length of the preconditioned part of a gradient.

        ‖S_L^{-1/4} P S_R^{-1/4}‖_F

    Args:
        scaled: (..., k, l), the second result of `scaled_core`.

    Returns:
        (...), new.
    """
    return torch.linalg.vector_norm(scaled, dim=(-2, -1))


def clip_to_norm(matrix: Tensor, norm: Tensor, limit: float) -> Tensor:
    """Scale matrices (..., m, n) by min(1, limit / norm), norm (...) ≥ 0; new."""
    return matrix * (limit / norm.clamp_min(torch.finfo(matrix.dtype).tiny)).clamp_max(1.0)[..., None, None]
