"""Applying a curvature estimate to a gradient: rotations, low-rank corrections, roots and norms."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scao_hf.numerics.eigenbasis import Eigenbasis, tail_value


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


class PartialBasis(NamedTuple):
    """A full orthogonal map known through its first columns.

    `vectors` U (..., d, k) are orthonormal and come from `eigenbasis.orthonormalize`; `coupling` M (..., k, k) makes

        H = I − (E − U) M (E − U)ᵀ,    E the first k unit vectors,

    exactly orthogonal with H e_j = u_j for every *active* column j; inactive columns leave no trace. M = 0 is H = I.
    """

    vectors: Tensor
    coupling: Tensor


def coupling(vectors: Tensor, rank: Tensor) -> Tensor:
    """The matrix M of a `PartialBasis` whose first `rank` columns are active.

        M_aa = (I_a − U[:a, :a]ᵀ)⁻¹,  zero elsewhere

    Args:
        vectors: U (..., d, k), from `eigenbasis.orthonormalize`, which makes every leading block invertible.
        rank: a (...), int64, 0 ≤ a ≤ k.

    Returns:
        (..., k, k), new, in the dtype of `vectors`.

    Source: the compact WY form of Schreiber & Van Loan (1989), SIAM J. Sci. Stat. Comput. 10(1), with the reflectors
    recovered from the columns themselves as in Ballard et al. (2015), J. Parallel Distrib. Comput. 85.
    """
    k = vectors.shape[-1]
    active = torch.arange(k, device=vectors.device) < rank.unsqueeze(-1)
    both = active.unsqueeze(-1) & active.unsqueeze(-2)
    identity = torch.eye(k, dtype=vectors.dtype, device=vectors.device)
    top = vectors[..., :k, :]
    inverse = torch.linalg.inv_ex(torch.where(both, identity - top.mT, identity)).inverse
    return torch.where(both, inverse, torch.zeros_like(inverse))


def rotate_rows(matrix: Tensor, basis: PartialBasis) -> tuple[Tensor, Tensor]:
    """Express the rows of a matrix in a partial basis.

        Hᵀ G = G − E D + U D,    D = Mᵀ (G[:k] − Uᵀ G)

    Args:
        matrix: G (..., d, n).
        basis: of the first dimension, vectors (..., d, k).

    Returns:
        Hᵀ G (..., d, n), new, and the projection Uᵀ G (..., k, n), which tracking the basis needs as well.
    """
    projection = basis.vectors.mT @ matrix
    return _add_rows(matrix, basis.vectors, projection, basis.coupling.mT), projection


def unrotate_rows(matrix: Tensor, basis: PartialBasis) -> Tensor:
    """Bring the rows of a matrix back from a partial basis.

        H R = R − E D + U D,    D = M (R[:k] − Uᵀ R)

    Args:
        matrix: R (..., d, n).
        basis: of the first dimension, vectors (..., d, k).

    Returns:
        (..., d, n), new.
    """
    return _add_rows(matrix, basis.vectors, basis.vectors.mT @ matrix, basis.coupling)


def _add_rows(matrix: Tensor, vectors: Tensor, projection: Tensor, coupling: Tensor) -> Tensor:
    k = vectors.shape[-1]
    correction = coupling @ (matrix[..., :k, :] - projection)
    turned = _add_product(matrix, vectors, correction)
    turned[..., :k, :] -= correction
    return turned


def _add_product(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
    # One fused product for a plain batch: the sum would otherwise cost another pass over an m×n matrix.
    return torch.baddbmm(matrix, left, right) if matrix.ndim == 3 else matrix + left @ right


def rotate_columns(matrix: Tensor, basis: PartialBasis) -> tuple[Tensor, Tensor]:
    """Express the columns of a matrix in a partial basis.

        G H = G − D Eᵀ + D Uᵀ,    D = (G[:, :k] − G U) M

    Args:
        matrix: G (..., m, d).
        basis: of the last dimension, vectors (..., d, k).

    Returns:
        G H (..., m, d), new, and the projection G U (..., m, k).
    """
    projection = matrix @ basis.vectors
    return _add_columns(matrix, basis.vectors, projection, basis.coupling), projection


def unrotate_columns(matrix: Tensor, basis: PartialBasis) -> Tensor:
    """Bring the columns of a matrix back from a partial basis: R Hᵀ, (..., m, d), new, for R (..., m, d)."""
    return _add_columns(matrix, basis.vectors, matrix @ basis.vectors, basis.coupling.mT)


def _add_columns(matrix: Tensor, vectors: Tensor, projection: Tensor, coupling: Tensor) -> Tensor:
    k = vectors.shape[-1]
    correction = (matrix[..., :k] - projection) @ coupling
    turned = _add_product(matrix, correction, vectors.mT)
    turned[..., :k] -= correction
    return turned


def inverse_root(basis: Eigenbasis, exponent: float) -> Tensor:
    """Dense inverse root of a factor from its full eigenbasis.

        A^{-p} = V diag(λ^{-p}) Vᵀ

    Args:
        basis: vectors (..., d, d) and values (..., d) > 0 (damp the factor first).
        exponent: p ≥ 0.

    Returns:
        (..., d, d), new.
    """
    return (basis.vectors * basis.values.pow(-exponent).unsqueeze(-2)) @ basis.vectors.mT


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


def spike_tail_precondition(
    grad: Tensor, left: Eigenbasis, right: Eigenbasis, trace: Tensor, exponent: float = 0.25
) -> Tensor:
    """Apply inverse roots of two spike-plus-tail factors to a gradient, in all four blocks, without any m×m matrix.

        L̂ = U diag(s) Uᵀ + σ_L (I − U Uᵀ),   σ_L = (tr − Σ s) / (m − k), and likewise R̂
        L̂^{-p} G R̂^{-p} = (σ_L σ_R)^{-p} [G + U D_L A + (B + U D_L C) D_R Wᵀ]
        A = Uᵀ G,  B = G W,  C = Uᵀ G W,  D = diag((s/σ)^{-p} − 1)

    Args:
        grad: (..., m, n).
        left: vectors (..., m, k), k < m, values (..., k) > 0.
        right: vectors (..., n, l), l < n, values (..., l) > 0.
        trace: (...), tr L = tr R = E‖G‖², more than Σ s and Σ z.
        exponent: p ≥ 0; 1/4 is Shampoo's.

    Returns:
        (..., m, n), new; multiplied by c^{1 − 4p} when the gradient is multiplied by c.
    """
    sigma_left = tail_value(left.values, trace, grad.shape[-2])
    sigma_right = tail_value(right.values, trace, grad.shape[-1])
    damp_left = (left.values / sigma_left.unsqueeze(-1)).pow(-exponent) - 1
    damp_right = (right.values / sigma_right.unsqueeze(-1)).pow(-exponent) - 1
    row_part = left.vectors @ (damp_left.unsqueeze(-1) * (left.vectors.mT @ grad))
    half = grad + row_part
    column_part = ((half @ right.vectors) * damp_right.unsqueeze(-2)) @ right.vectors.mT
    gain = (sigma_left * sigma_right).pow(-exponent)
    return gain[..., None, None] * (half + column_part)


def energy_preserving_gain(
    left: Tensor, right: Tensor, trace: Tensor, shape: tuple[int, int], exponent: float = 0.25
) -> Tensor:
    """The factor that keeps the expected squared norm of a gradient under `spike_tail_precondition`.

        c = tr / √(tr L̂^{1−2p} · tr R̂^{1−2p}),    tr L̂^q = Σ s_i^q + (m − k) σ_L^q

    With it the preconditioned gradient is homogeneous of degree one in the gradient, so an Adam after it keeps its
    learning rate and its eps.

    Args:
        left: s (..., k) > 0.
        right: z (..., l) > 0.
        trace: (...), E‖G‖².
        shape: (m, n).
        exponent: p.

    Returns:
        (...), new.
    """
    power = 1 - 2 * exponent
    moments = []
    for values, dim in ((left, shape[0]), (right, shape[1])):
        tail = tail_value(values, trace, dim)
        moments.append(values.pow(power).sum(-1) + (dim - values.shape[-1]) * tail.pow(power))
    return trace / (moments[0] * moments[1]).sqrt()


def graft(direction: Tensor, magnitude: Tensor) -> Tensor:
    """Give one direction the Frobenius norm of another, matrix by matrix.

        D ‖M‖ / ‖D‖,    0 where D = 0

    Args:
        direction: D (..., m, n).
        magnitude: M (..., m, n).

    Returns:
        (..., m, n), new.

    Source: Agarwal, Anil, Hazan, Koren & Zhang (2020), arXiv:2002.11803.
    """
    wanted = torch.linalg.vector_norm(magnitude, dim=(-2, -1))
    present = torch.linalg.vector_norm(direction, dim=(-2, -1))
    scale = torch.where(present > 0, wanted / present, torch.zeros_like(present))
    return direction * scale[..., None, None]
