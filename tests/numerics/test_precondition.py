"""Rotations, corrections, roots and norms against their materialised float64 forms."""

from __future__ import annotations

import pytest
import reference
import torch
from problems import BATCHES, SHAPES, assert_close, matrices, random_factor, random_frame, random_matrix
from torch import Tensor

from scao_hf.numerics.eigenbasis import Eigenbasis, orthonormalize
from scao_hf.numerics.moments import (
    adam_direction,
    factored_adam_direction,
    update_factored_second_moment,
    update_moments,
)
from scao_hf.numerics.precondition import (
    PartialBasis,
    clip_to_norm,
    coupling,
    energy_preserving_gain,
    graft,
    inverse_root,
    low_rank_correction,
    natural_gradient_norm,
    rotate,
    rotate_columns,
    rotate_dims,
    rotate_rows,
    scaled_core,
    spike_tail_precondition,
    unrotate,
    unrotate_columns,
    unrotate_rows,
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


# ------------------------------------------------------------------------------------------------ partial bases


def partial_basis(columns: Tensor, rank: Tensor) -> PartialBasis:
    vectors = orthonormalize(columns)
    return PartialBasis(vectors, coupling(vectors, rank))


@pytest.mark.parametrize(("dim", "columns"), [(7, 3), (5, 5), (4, 1), (1, 1), (12, 6)])
def test_a_partial_basis_is_the_product_of_its_active_reflectors(dim: int, columns: int) -> None:
    for active in range(columns + 1):
        basis = partial_basis(random_matrix(dim, columns, seed=active), torch.tensor(active))
        dense = unrotate_rows(torch.eye(dim), basis)
        assert_close(dense, reference.householder_completion(basis.vectors, active), rtol=0, atol=5e-6)
        assert_close(dense[:, :active], basis.vectors[:, :active].double(), rtol=0, atol=5e-6)


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
def test_each_matrix_of_a_batch_has_its_own_rank(batch: tuple[int, ...]) -> None:
    ranks = torch.arange(int(torch.tensor(batch).prod())).remainder(4).reshape(batch)
    basis = partial_basis(random_matrix(*batch, 6, 3), ranks)
    grad = random_matrix(*batch, 6, 5, seed=1)
    rotated, projection = rotate_rows(grad, basis)
    for g, u, rank, result, inside in zip(
        matrices(grad), matrices(basis.vectors), ranks.flatten(), matrices(rotated), matrices(projection), strict=True
    ):
        dense = reference.householder_completion(u, int(rank))
        assert_close(result, dense.T @ g.double(), atol=5e-6)
        assert_close(inside, u.double().T @ g.double())
    assert_close(unrotate_rows(rotated, basis), grad.double(), atol=5e-6)


@pytest.mark.parametrize("batch", BATCHES)
def test_columns_rotate_as_the_rows_of_the_transpose(batch: tuple[int, ...]) -> None:
    basis = partial_basis(random_matrix(*batch, 6, 3), torch.full(batch, 2))
    grad = random_matrix(*batch, 5, 6, seed=1)
    rotated, projection = rotate_columns(grad, basis)
    for g, u, result, inside in zip(
        matrices(grad), matrices(basis.vectors), matrices(rotated), matrices(projection), strict=True
    ):
        dense = reference.householder_completion(u, 2)
        assert_close(result, g.double() @ dense, atol=5e-6)
        assert_close(inside, g.double() @ u.double())
    assert_close(unrotate_columns(rotated, basis), grad.double(), atol=5e-6)


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("ranks", [(3, 2), (0, 2), (3, 0), (0, 0)])
def test_adam_between_two_partial_bases_is_adam_between_their_dense_maps(
    ranks: tuple[int, int], factored: bool
) -> None:
    betas, eps = (0.8, 0.95), 1e-3
    left, right = (
        partial_basis(random_matrix(dim, 3, seed=dim), torch.tensor(rank))
        for dim, rank in zip((7, 6), ranks, strict=True)
    )
    grads = [random_matrix(7, 6, seed=seed) for seed in range(5)]
    exp_avg, exp_avg_sq, row, column = torch.zeros(7, 6), torch.zeros(7, 6), torch.zeros(7), torch.zeros(6)
    for grad in grads:
        rotated = rotate_columns(rotate_rows(grad, left)[0], right)[0]
        update_moments(exp_avg, exp_avg_sq, rotated, betas)
        update_factored_second_moment(row, column, rotated, betas[1])
    if factored:
        direction = factored_adam_direction(exp_avg, row, column, betas, eps, len(grads))
    else:
        direction = adam_direction(exp_avg, exp_avg_sq, betas, eps, len(grads))
    sides = [(basis.vectors, rank) for basis, rank in zip((left, right), ranks, strict=True)]
    expected = reference.partial_eigenbasis_adam(grads, *sides, betas=betas, eps=eps, factored=factored)
    assert_close(unrotate_rows(unrotate_columns(direction, right), left), expected, atol=5e-6)


def test_rank_zero_is_the_identity_bit_for_bit() -> None:
    basis = partial_basis(random_matrix(6, 3), torch.tensor(0))
    grad = random_matrix(6, 6, seed=1)
    assert torch.equal(rotate_rows(grad, basis)[0], grad)
    assert torch.equal(rotate_columns(grad, basis)[0], grad)


def test_inactive_columns_leave_no_trace() -> None:
    basis = partial_basis(random_matrix(6, 4), torch.tensor(2))
    other = basis.vectors.clone()
    other[:, 2:] = torch.nan
    changed = PartialBasis(basis.vectors.clone(), coupling(other, torch.tensor(2)))
    assert torch.equal(changed.coupling, basis.coupling)
    short = PartialBasis(basis.vectors[:, :2], coupling(basis.vectors[:, :2], torch.tensor(2)))
    grad = random_matrix(6, 5, seed=1)
    assert_close(rotate_rows(grad, basis)[0], rotate_rows(grad, short)[0].double())


@pytest.mark.parametrize(
    "columns",
    [
        torch.zeros(6, 3),
        torch.eye(6)[:, :3],
        -torch.eye(6)[:, :3],
        torch.eye(6)[:, [1, 0, 2]],
        torch.eye(6)[:, 3:],
        torch.eye(6)[:, :3] + 1e-4,
        torch.ones(6, 3),
        torch.eye(3),
    ],
    ids=["zero", "unit", "negative unit", "exchanged", "last", "nearly unit", "rank one", "square"],
)
def test_the_map_is_orthogonal_for_degenerate_columns(columns: Tensor) -> None:
    dim, k = columns.shape
    for active in range(k + 1):
        basis = partial_basis(columns, torch.tensor(active))
        dense = unrotate_rows(torch.eye(dim), basis).double()
        torch.testing.assert_close(dense.T @ dense, reference.identity(dim), rtol=0, atol=5e-6)
        assert_close(dense[:, :active], basis.vectors[:, :active].double(), rtol=0, atol=5e-6)


def test_rotations_keep_the_norm_of_a_large_random_matrix() -> None:
    basis = partial_basis(random_matrix(200, 64), torch.tensor(64))
    grad = random_matrix(200, 30, seed=1)
    assert float(rotate_rows(grad, basis)[0].norm()) == pytest.approx(float(grad.norm()), rel=1e-5)


def test_the_inputs_of_a_rotation_are_left_alone() -> None:
    basis = partial_basis(random_matrix(6, 3), torch.tensor(3))
    grad = random_matrix(6, 6, seed=1)
    kept = grad.clone()
    for turn in (rotate_rows, rotate_columns, unrotate_rows, unrotate_columns):
        turn(grad, basis)
        assert torch.equal(grad, kept)


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


# ------------------------------------------------------------------------------------------------ roots and tails


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("batch", BATCHES)
def test_the_inverse_root_is_the_matrix_power(batch: tuple[int, ...], exponent: float) -> None:
    factor = random_factor(*batch, dim=5)
    values, vectors = torch.linalg.eigh(factor)
    root = inverse_root(Eigenbasis(vectors, values), exponent)
    for matrix, result in zip(matrices(factor), matrices(root), strict=True):
        # The smallest eigenvalue, 0.1 of the largest's 2, is known to 20 roundings; the root divides by it.
        assert_close(result, reference.matrix_power(matrix, -exponent), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("exponent", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (8, 6)])
@pytest.mark.parametrize("batch", BATCHES)
def test_spike_and_tail_are_applied_in_all_four_blocks(
    batch: tuple[int, ...], shape: tuple[int, int], exponent: float
) -> None:
    grad, left, right = problem(batch, shape)
    trace = torch.maximum(left.values.sum(-1), right.values.sum(-1)) * 1.3
    applied = spike_tail_precondition(grad, left, right, trace, exponent)
    for single, total, result in zip(singles(grad, left, right), trace.flatten(), matrices(applied), strict=True):
        g, u, s, w, z = single
        tails = [
            reference.tail_level(float(total), values.tolist(), dim) for values, dim in ((s, shape[0]), (z, shape[1]))
        ]
        expected = reference.four_blocks(g, u, s, tails[0], w, z, tails[1], exponent)
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("exponent", [0.25, 0.5])
def test_spike_and_tail_scale_as_a_power_of_the_gradient(exponent: float) -> None:
    grad, left, right = problem((), (6, 5))
    trace = 1.3 * torch.maximum(left.values.sum(), right.values.sum())
    factor = 1e-3
    scaled_sides = [Eigenbasis(basis.vectors, basis.values * factor**2) for basis in (left, right)]
    applied = spike_tail_precondition(factor * grad, *scaled_sides, factor**2 * trace, exponent)
    expected = factor ** (1 - 4 * exponent) * spike_tail_precondition(grad, left, right, trace, exponent).double()
    assert_close(applied, expected, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("exponent", [0.25, 0.5])
@pytest.mark.parametrize("batch", BATCHES)
def test_the_gain_is_the_trace_normalisation(batch: tuple[int, ...], exponent: float) -> None:
    _, left, right = problem(batch, (6, 5))
    trace = 1.3 * torch.maximum(left.values.sum(-1), right.values.sum(-1))
    gains = energy_preserving_gain(left.values, right.values, trace, (6, 5), exponent)
    assert gains.shape == batch
    for s, z, total, gain in zip(
        matrices(left.values, 1), matrices(right.values, 1), trace.flatten(), gains.flatten(), strict=True
    ):
        tails = [reference.tail_level(float(total), values.tolist(), dim) for values, dim in ((s, 6), (z, 5))]
        expected = reference.trace_normalisation(float(total), s, tails[0], 6, z, tails[1], 5, exponent)
        assert float(gain) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("exponent", [0.25, 0.5])
def test_the_gain_keeps_the_energy_of_gradients_with_that_covariance(exponent: float) -> None:
    _, left, right = problem((), (6, 5), seed=3)
    trace = 1.3 * torch.maximum(left.values.sum(), right.values.sum())
    roots = []
    for basis, dim in ((left, 6), (right, 5)):
        tail = reference.tail_level(float(trace), basis.values.tolist(), dim)
        roots.append(reference.matrix_power(reference.spike_plus_tail(basis.vectors, basis.values, tail), 0.5))
    white = random_matrix(4000, 6, 5, dtype=torch.float64)
    grads = roots[0] @ white @ roots[1] / float(trace) ** 0.5
    sides = [Eigenbasis(basis.vectors.double(), basis.values.double()) for basis in (left, right)]
    gain = energy_preserving_gain(sides[0].values, sides[1].values, trace.double(), (6, 5), exponent)
    energy = (gain * spike_tail_precondition(grads, *sides, trace.double(), exponent)).square().sum((-2, -1))
    # Four standard errors of the mean over the 4000 draws.
    assert abs(float(energy.mean()) - float(trace)) < 4 * float(energy.std()) / 4000**0.5


@pytest.mark.parametrize("batch", BATCHES)
def test_grafting_keeps_the_direction_and_takes_the_norm(batch: tuple[int, ...]) -> None:
    direction, magnitude = random_matrix(*batch, 3, 4, seed=1), 5 * random_matrix(*batch, 3, 4, seed=2)
    for d, m, result in zip(
        matrices(direction), matrices(magnitude), matrices(graft(direction, magnitude)), strict=True
    ):
        assert_close(result, reference.graft(d, m))


def test_grafting_onto_a_zero_direction_gives_zero() -> None:
    assert not graft(torch.zeros(3, 4), random_matrix(3, 4)).any()
    assert not graft(random_matrix(3, 4), torch.zeros(3, 4)).any()
