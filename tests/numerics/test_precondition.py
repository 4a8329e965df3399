"""Rotations, corrections and norms against their materialised float64 forms."""

from __future__ import annotations

import pytest
import reference
import torch
from problems import BATCHES, SHAPES, assert_close, matrices, random_factor, random_frame, random_matrix
from torch import Tensor

from scao_hf.numerics.eigenbasis import Eigenbasis
from scao_hf.numerics.precondition import (
    clip_to_norm,
    low_rank_correction,
    natural_gradient_norm,
    rotate,
    rotate_dims,
    scaled_core,
    unrotate,
)

# ------------------------------------------------------------------------------------------------ rotations


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_rotating_is_two_products_and_unrotating_undoes_it(batch: tuple[int, ...], shape: tuple[int, int]) -> None:
    grad = random_matrix(*batch, *shape)
    left = random_frame(*batch, dim=shape[0], rank=shape[0], seed=1)
    right = random_frame(*batch, dim=shape[1], rank=shape[1], seed=2)
    core = rotate(grad, left, right)
    for result, g, u, w in zip(matrices(core), matrices(grad), matrices(left), matrices(right), strict=True):
        assert_close(result, reference.rotate(g.double(), u.double(), w.double()))
    assert_close(unrotate(core, left, right), grad.double())


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 3, 4), (3, 2, 2, 3)])
def test_rotating_dimensions_contracts_each_with_its_own_basis(shape: tuple[int, ...]) -> None:
    tensor = random_matrix(2, *shape)
    bases = {dim: random_frame(2, dim=size, rank=size, seed=dim) for dim, size in enumerate(shape) if dim != 1}
    rotated = rotate_dims(tensor, bases)
    expected = tensor.double()
    for dim, basis in bases.items():
        expected = torch.stack(
            [
                torch.tensordot(basis[row].double().T, expected[row].movedim(dim, 0), dims=1).movedim(0, dim)
                for row in range(2)
            ]
        )
    assert_close(rotated, expected)
    assert_close(rotate_dims(rotated, bases, back=True), tensor.double())


def test_without_bases_a_tensor_stays_as_it_is() -> None:
    tensor = random_matrix(2, 3, 4)
    assert torch.equal(rotate_dims(tensor, {}), tensor)


# ------------------------------------------------------------------------------------------------ published correction


def problem(batch: tuple[int, ...], shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, Eigenbasis, Eigenbasis]:
    """A gradient and, per side, about half of the eigenpairs of a random factor."""
    sides = []
    for offset, dim in enumerate(shape):
        rank = (dim + 1) // 2
        vectors = random_frame(*batch, dim=dim, rank=rank, seed=seed + offset)
        values = random_matrix(*batch, rank, seed=seed + offset + 10).square() + 0.1
        sides.append(Eigenbasis(vectors, values.sort(-1, descending=True).values))
    return random_matrix(*batch, *shape, seed=seed), sides[0], sides[1]


def singles(grad: Tensor, left: Eigenbasis, right: Eigenbasis) -> list[tuple[Tensor, ...]]:
    columns = [matrices(grad)]
    for basis in (left, right):
        columns += [matrices(basis.vectors), matrices(basis.values, 1)]
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_the_published_correction_matches_the_dense_formula(batch: tuple[int, ...], shape: tuple[int, int]) -> None:
    grad, left, right = problem(batch, shape)
    corrected = low_rank_correction(grad, left, right)
    norms = natural_gradient_norm(scaled_core(grad, left, right)[1])
    assert norms.shape == batch
    for single, result, norm in zip(singles(grad, left, right), matrices(corrected), norms.flatten(), strict=True):
        assert_close(result, reference.low_rank_correction(*single))
        assert float(norm) == pytest.approx(reference.natural_gradient_norm(*single), rel=1e-5)


def test_with_unit_eigenvalues_the_correction_is_nothing() -> None:
    grad, left, right = problem((), (5, 4))
    ones = [Eigenbasis(basis.vectors, torch.ones_like(basis.values)) for basis in (left, right)]
    assert_close(low_rank_correction(grad, *ones), grad.double())


def test_inactive_columns_of_the_published_basis_correct_nothing() -> None:
    grad, left, right = problem((), (5, 4))
    padded = [
        Eigenbasis(torch.cat([b.vectors, torch.zeros(len(b.vectors), 2)], 1), torch.cat([b.values, torch.zeros(2)]))
        for b in (left, right)
    ]
    assert_close(low_rank_correction(grad, *padded), low_rank_correction(grad, left, right).double())
    assert torch.isfinite(scaled_core(grad, *padded)[1]).all()


def test_at_full_rank_the_correction_is_shampoo() -> None:
    grad = random_matrix(4, 6)
    left, right = random_factor(dim=4, seed=1), random_factor(dim=6, seed=2)
    sides = []
    for factor in (left, right):
        values, vectors = reference.eigh_descending(factor)
        sides.append(Eigenbasis(vectors.float(), values.float()))
    expected = reference.matrix_power(left, -0.25) @ grad.double() @ reference.matrix_power(right, -0.25)
    assert_close(low_rank_correction(grad, *sides), expected)


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_scales_only_what_is_longer_than_the_limit(limit: float) -> None:
    matrix = torch.stack([random_matrix(3, 4), torch.zeros(3, 4)])
    norm = torch.linalg.matrix_norm(matrix)
    clipped = clip_to_norm(matrix, norm, limit)
    assert_close(clipped[0], min(1.0, limit / float(norm[0])) * matrix[0].double())
    assert not clipped[1].any()
