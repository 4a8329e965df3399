"""Whitening the rows of a matrix at low rank: exactly in a tracked subspace, block by block in what is left."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scao_hf.numerics.kronecker import finite_matrices

NOISE_FLOOR = 1e-10
"""Damping of a block, as a share of the whole matrix's mean row energy: float32 leaves about 1e-13 of it as noise."""


class Whitened(NamedTuple):
    """What `whiten` gives.

    The `matrix` W (..., m, n), the `image` T = X Zᵀ (..., m, k), the eigenvalue estimates `values` diag(Uᵀ X Xᵀ U)
    (..., k), the `trace` ‖X‖² (...), and `failed` (...) bool, where a factorisation broke down. `spare` is memory
    like W that nobody needs any more.
    """

    matrix: Tensor
    image: Tensor
    values: Tensor
    trace: Tensor
    failed: Tensor
    spare: Tensor


def inverse_cholesky(gram: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Invert the Cholesky factor of damped Gram matrices.

        C Cᵀ = A + δ I,   returns C⁻¹, lower triangular

    A matrix that has no Cholesky factor is taken for its mean diagonal, so that it is scaled and not rotated.

    Args:
        gram: A (..., k, k), symmetric, float32 or float64.
        damping: δ ≥ 0 (...).

    Returns:
        (..., k, k), new, and (...) bool: which matrices had no factor.
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    smallest = torch.finfo(gram.dtype).tiny
    lower, info = torch.linalg.cholesky_ex(gram + (damping + smallest)[..., None, None] * identity)
    inverse = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
    failed = (info != 0) | ~finite_matrices(inverse)
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(smallest).rsqrt()
    return torch.where(failed[..., None, None], scale[..., None, None] * identity, inverse), failed


def initial_subspace(matrix: Tensor, rank: int) -> Tensor:
    """Begin to track the column space of a matrix.

        U = orth(X Xᵀ X Ω),   Ω (n, rank) fixed pseudo-random

    Args:
        matrix: X (..., m, n), float32; zero or not finite gives a pseudo-random subspace, which overlaps with all.
        rank: columns to track, 1 ≤ rank ≤ m.

    Returns:
        (..., m, rank), new, orthonormal columns.

    Source: the randomized range finder with one power iteration, Halko, Martinsson & Tropp (2011), arXiv:0909.4061,
    Algorithm 4.3.
    """
    matrix = torch.where(finite_matrices(matrix)[..., None, None], matrix, torch.zeros_like(matrix))
    # A gradient of 1e-15 would vanish in the third power below; its scale carries no information about the span.
    scale = matrix.abs().amax((-2, -1), keepdim=True)
    unit = matrix / torch.where(scale > 0, scale, torch.ones_like(scale))
    generator = torch.Generator().manual_seed(0)
    # A device need not be waited for: the probes are staged before the call returns.
    probes, anything = (
        torch.randn(side, rank, generator=generator).to(matrix, non_blocking=True)
        for side in (matrix.shape[-1], matrix.shape[-2])
    )
    spanned = torch.where(scale > 0, unit @ (unit.mT @ (unit @ probes)), anything)
    return torch.linalg.qr(spanned).Q.contiguous()


def turn_subspace(vectors: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a tracked subspace by one step of orthogonal iteration.

        U' = orth(T),   T = X Zᵀ = X Xᵀ U C⁻ᵀ  (see `whiten`)

    C⁻ᵀ is upper triangular, so every leading group of columns spans what X Xᵀ U's does.

    Args:
        vectors: U (..., m, k), orthonormal.
        image: T (..., m, k).

    Returns:
        New (..., m, k), and (...) bool: where the image was not finite. There the old vectors stay, as they do where
        the image is zero.
    """
    turned = torch.linalg.qr(image).Q
    good = finite_matrices(turned)
    seen = good & (image != 0).any(-1).any(-1)
    return torch.where(seen[..., None, None], turned, vectors).contiguous(), ~good


def whiten(matrix: Tensor, vectors: Tensor, active: Tensor, block_rows: int, damping: float) -> Whitened:
    """Whiten the rows of matrices: exactly in the span of U, block by block in the rest.

        P = Uᵀ X,   C Cᵀ = P Pᵀ + δ I,   Z = C⁻¹ P          the tracked rows, orthonormal
        R = X − T Z,   T = X Zᵀ                             what they leave
        V_b = C_b⁻¹ R_b,   C_b C_bᵀ = R_b R_bᵀ + δ_b I      for each block b of at most `block_rows` rows
        W = U Z + V

    with δ = damping · tr(P Pᵀ)/k and δ_b = damping · mean diag(R_b R_bᵀ) + NOISE_FLOOR · ‖X‖²/m. Of Z only the `active`
    leading rows count in R and W. Where the tracked subspace is everything (k = m) nothing is left, W = (U C⁻¹) P, and
    T = U P Pᵀ C⁻ᵀ takes no product with a long side.

    Args:
        matrix: X (batch, m, n), m ≤ n for full row rank; float32 or float64; overwritten, and the result or its spare
            memory. A transposed view costs no copy of an m×n matrix, and gives a transposed view.
        vectors: U (batch, m, k), orthonormal columns.
        active: (batch,), int64, how many leading columns are in use.
        block_rows: rows of a block, ≥ 1.
        damping: relative Tikhonov damping, > 0.

    Returns:
        W (batch, m, n), homogeneous of degree 0 in X but for the underflow of squares, with what tracking needs.

    Source: triangular whitening in place of the polar factor: MUD, Southworth & Thomas (2026), arXiv:2603.17970; the
    tracked subspace, the deflation and the blocks are this project's.
    """
    rank, rows = vectors.shape[-1], matrix.shape[-2]
    projection = vectors.mT @ matrix
    gram = projection @ projection.mT
    values = gram.diagonal(dim1=-2, dim2=-1)
    inverse, failed = inverse_cholesky(gram, damping * values.mean(-1))
    if rank == rows:  # X = U P, and two of the products below are of small matrices
        image = vectors @ (gram @ inverse.mT)
        torch.matmul(vectors @ inverse, projection, out=matrix)
        return Whitened(matrix, image, values, values.sum(-1), failed, spare=projection)
    tracked = inverse @ projection
    image = matrix @ tracked.mT
    trace = torch.linalg.vector_norm(matrix, dim=(-2, -1)).square()
    tracked = tracked * (torch.arange(rank, device=active.device) < active.unsqueeze(-1)).unsqueeze(-1)
    rest = matrix.baddbmm_(image, tracked, alpha=-1)
    white, rest_failed = whiten_blocks(rest, block_rows, damping, NOISE_FLOOR / rows * trace)
    white.baddbmm_(vectors, tracked)
    return Whitened(white, image, values, trace, failed | rest_failed, spare=rest)


def whiten_blocks(matrix: Tensor, block_rows: int, damping: float, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Whiten every block of rows by itself.

        V_b = C_b⁻¹ R_b,   C_b C_bᵀ = R_b R_bᵀ + (damping · mean diag(R_b R_bᵀ) + floor) I

    Args:
        matrix: R (batch, m, n).
        block_rows: the m rows are cut into the least number of equal blocks of no more than this; zeros fill the last.
        damping: relative, > 0.
        floor: absolute, ≥ 0 (batch,).

    Returns:
        V (batch, m, n), new, and (batch,) bool: where a block had no Cholesky factor and was only scaled.
    """
    rows = matrix.shape[-2]
    count = math.ceil(rows / block_rows)
    size = math.ceil(rows / count)
    missing = count * size - rows
    matrix = F.pad(matrix, (0, 0, 0, missing)) if missing else matrix
    white = torch.empty_like(matrix)
    # One matrix at a time, since the blocks of several transposed ones are no batch without a copy of them all.
    blocks, targets = matrix.unflatten(-2, (count, size)), white.unflatten(-2, (count, size))
    grams = torch.stack([block @ block.mT for block in blocks])
    mean = grams.diagonal(dim1=-2, dim2=-1).mean(-1)
    inverses, failed = inverse_cholesky(grams, damping * mean + floor.unsqueeze(-1))
    for block, inverse, target in zip(blocks, inverses, targets, strict=True):
        torch.bmm(inverse, block, out=target)
    return white[..., :rows, :], failed.any(-1)


def even_columns(
    whitened: Tensor, mean_square: Tensor, beta: float, size: Tensor, spare: Tensor | None = None
) -> Tensor:
    """Divide the columns of whitened matrices by their running size, and give the result the root mean square `size`.

        v <- β v + (1 − β) mean_i n W_ij²,   D = W / √v,   size · D / rms(D)

    Args:
        whitened: W (..., m, n); overwritten by the result.
        mean_square: v (..., n), float32, from 1 at the start; overwritten.
        beta: in [0, 1).
        size: (...), ≥ 0.
        spare: a tensor like `whitened` whose contents are not needed any more; saves making one.

    Returns:
        `whitened`; zeros where it was zero.

    Source: NorMuon, Li et al. (2025), arXiv:2510.05491, with the short side's mean in place of the output's.
    """
    columns, tiny = whitened.shape[-1], torch.finfo(whitened.dtype).tiny
    squares = torch.square(whitened, out=spare)
    present = columns * squares.mean(-2)  # a norm along this dimension is ten times slower on a CPU
    mean_square.lerp_(present, 1 - beta)
    kept = mean_square.clamp_min(tiny)
    energy = (present / kept).mean(-1, keepdim=True).clamp_min(tiny)  # the mean square of √n W / √v
    # A column of zeros times an infinite gain would be NaN.
    gain = (columns / (kept * energy)).clamp_max_(torch.finfo(whitened.dtype).max).sqrt_()
    return whitened.mul_((size.unsqueeze(-1) * gain).unsqueeze(-2))
