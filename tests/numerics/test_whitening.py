"""Whitening at low rank against the float64 reference, and what must hold of it whatever the matrix."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from problems import (
    BATCHES,
    assert_close,
    assert_orthonormal,
    matrices,
    random_factor,
    random_frame,
    random_matrix,
    relative_error,
)
from torch import Tensor

from scao_hf.numerics.whitening import (
    NOISE_FLOOR,
    Whitened,
    even_columns,
    initial_subspace,
    inverse_cholesky,
    turn_subspace,
    whiten,
    whiten_blocks,
)

ONE = torch.ones(())


def whitened(matrix: Tensor, vectors: Tensor, active: int, block_rows: int = 2, damping: float = 1e-4) -> Whitened:
    """Of a matrix or of a batch of them, which stays as it is."""
    if matrix.ndim == 2:
        return Whitened(*(part[0] for part in whitened(matrix[None], vectors[None], active, block_rows, damping)))
    return whiten(matrix.clone(), vectors, torch.full(matrix.shape[:1], active), block_rows, damping)


def singular_values(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.double())


# ------------------------------------------------------------------------------------------------ triangular factors


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("batch", BATCHES)
def test_the_inverse_factor_is_that_of_the_damped_gram_matrix(batch: tuple[int, ...], dim: int) -> None:
    gram = random_factor(*batch, dim=dim)
    damping = 0.1 * random_matrix(*batch, seed=1).abs()
    inverse, failed = inverse_cholesky(gram, damping)
    assert failed.shape == batch
    assert not failed.any()
    for matrix, level, result in zip(matrices(gram), damping.flatten(), matrices(inverse), strict=True):
        lower = reference.cholesky(matrix + float(level) * reference.identity(dim))
        assert_close(result.double() @ lower, reference.identity(dim), atol=1e-5)
        assert_close(result, torch.tril(result.double()), rtol=0, atol=0)


def test_a_matrix_without_a_factor_is_taken_for_its_mean_diagonal_and_reported() -> None:
    indefinite = torch.tensor([[3.0, 7.0], [7.0, 5.0]])  # 15 − 49 < 0
    gram = torch.stack([random_factor(dim=2), indefinite, random_factor(dim=2, seed=1)])
    inverse, failed = inverse_cholesky(gram, torch.zeros(3))
    assert failed.tolist() == [False, True, False]
    assert_close(inverse[1], reference.identity(2) / 2.0)  # 1 / √((3 + 5) / 2)
    for row in (0, 2):
        assert torch.equal(inverse[row], inverse_cholesky(gram[row], torch.zeros(()))[0])


def test_a_gram_matrix_of_zeros_has_a_finite_inverse_factor() -> None:
    inverse, failed = inverse_cholesky(torch.zeros(2, 3, 3), torch.zeros(2))
    assert not failed.any()
    assert torch.isfinite(inverse).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gram_matrix_that_is_not_finite_fails_alone(value: float) -> None:
    gram = random_factor(2, dim=3)
    gram[0, 1, 1] = value
    inverse, failed = inverse_cholesky(gram, torch.zeros(2))
    assert failed.tolist() == [True, False]
    assert torch.equal(inverse[1], inverse_cholesky(gram[1], torch.zeros(()))[0])


# ------------------------------------------------------------------------------------------------ whitening

# (rows, columns), tracked, rows of a block: square and wide, whole and partial, blocks that fit and that do not.
CASES = [
    ((4, 6), 4, 2),
    ((5, 5), 5, 2),
    ((1, 7), 1, 1),
    ((6, 9), 2, 2),
    ((6, 9), 2, 3),
    ((7, 9), 3, 3),
    ((7, 7), 2, 4),
    ((5, 8), 1, 1),
    ((5, 8), 3, 100),
]


@pytest.mark.parametrize("damping", [1e-4, 0.3])
@pytest.mark.parametrize(("shape", "rank", "block_rows"), CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_whitened_matrix_is_that_of_the_reference(
    batch: int, shape: tuple[int, int], rank: int, block_rows: int, damping: float
) -> None:
    matrix = random_matrix(batch, *shape, dtype=torch.float64)
    vectors = random_frame(batch, dim=shape[0], rank=rank, seed=1, dtype=torch.float64)
    for active in range(rank + 1) if rank < shape[0] else [rank]:
        result = whitened(matrix, vectors, active, block_rows, damping)
        assert not result.failed.any()
        for x, u, w in zip(matrices(matrix), matrices(vectors), matrices(result.matrix), strict=True):
            assert_close(w, reference.whiten(x, u, active, block_rows, damping, NOISE_FLOOR), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("shape", "rank", "block_rows"), CASES)
def test_single_precision_whitens_as_double_does(shape: tuple[int, int], rank: int, block_rows: int) -> None:
    matrix, vectors = random_matrix(3, *shape), random_frame(3, dim=shape[0], rank=rank, seed=1)
    result = whitened(matrix, vectors, rank, block_rows, damping=1e-2).matrix
    assert result.dtype == torch.float32
    # Rounding of the Gram matrix, 2^-24, over the damping.
    exact = whitened(matrix.double(), vectors.double(), rank, block_rows, damping=1e-2).matrix
    assert relative_error(result, exact) < 1e-4


def test_each_matrix_of_a_batch_has_its_own_number_of_active_columns() -> None:
    matrix, vectors = random_matrix(4, 6, 9), random_frame(4, dim=6, rank=3, seed=1)
    together = whiten(matrix.clone(), vectors, torch.arange(4), 2, 1e-2).matrix
    for active in range(4):
        expected = reference.whiten(matrix[active], vectors[active], active, 2, 1e-2, NOISE_FLOOR)
        assert relative_error(together[active], expected) < 1e-4


@pytest.mark.parametrize("active", [0, 1, 3])
@pytest.mark.parametrize(("shape", "rank"), [((6, 9), 3), ((5, 7), 5)])
def test_what_tracking_needs_is_of_all_columns_active_or_not(shape: tuple[int, int], rank: int, active: int) -> None:
    matrix = random_matrix(2, *shape, dtype=torch.float64)
    vectors = random_frame(2, dim=shape[0], rank=rank, seed=1, dtype=torch.float64)
    result = whitened(matrix, vectors, active)
    for row, (x, u) in enumerate(zip(matrix, vectors, strict=True)):
        assert_close(result.image[row], x @ reference.orthogonal_rows(u.T @ x, 1e-4).T, atol=1e-9)
        assert_close(result.values[row], torch.diag(u.T @ x @ x.T @ u))
        assert_close(result.trace[row], torch.trace(x @ x.T))


@pytest.mark.parametrize("shape", [(4, 4), (4, 6), (1, 3), (30, 50)])
def test_tracked_whole_the_rows_are_orthonormal(shape: tuple[int, int]) -> None:
    matrix = random_matrix(2, *shape, dtype=torch.float64)
    vectors = random_frame(2, dim=shape[0], rank=shape[0], seed=1, dtype=torch.float64)
    assert_orthonormal(whitened(matrix, vectors, shape[0], damping=1e-14).matrix.mT, atol=1e-8)


@pytest.mark.parametrize("shape", [(4, 4), (5, 8)])
def test_in_its_singular_vectors_a_matrix_becomes_its_polar_factor(shape: tuple[int, int]) -> None:
    matrix = random_matrix(*shape, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    result = whitened(matrix, left, shape[0], damping=1e-14).matrix
    assert_close(result, left @ right, atol=1e-8)


def test_in_leading_singular_vectors_the_tracked_part_is_that_of_the_polar_factor() -> None:
    matrix = random_matrix(6, 9, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    result = whitened(matrix, left[:, :2].contiguous(), 2, damping=1e-14).matrix
    # The rest is orthogonal to the leading right singular vectors, before and after its blocks are whitened.
    assert_close(result @ right[:2].T, left[:, :2], atol=1e-8)


@pytest.mark.parametrize("scale", [2.0**-45, 2.0**45])
@pytest.mark.parametrize(("shape", "rank", "block_rows"), CASES)
def test_whitening_does_not_depend_on_the_scale(
    shape: tuple[int, int], rank: int, block_rows: int, scale: float
) -> None:
    matrix, vectors = random_matrix(2, *shape), random_frame(2, dim=shape[0], rank=rank, seed=1)
    plain, scaled = (whitened(x, vectors, rank, block_rows) for x in (matrix, scale * matrix))
    assert not scaled.failed.any()
    assert_close(scaled.matrix, plain.matrix.double())
    assert_close(scaled.values, plain.values.double() * scale**2, atol=0)


def test_whitening_does_not_depend_on_the_signs_of_the_tracked_columns() -> None:
    matrix, vectors = random_matrix(6, 9), random_frame(dim=6, rank=3, seed=1)
    flipped = vectors * torch.tensor([-1.0, 1.0, -1.0])
    for active in range(4):
        assert_close(whitened(matrix, flipped, active).matrix, whitened(matrix, vectors, active).matrix.double())


def test_whitening_leaves_the_subspace_alone() -> None:
    matrix, vectors = random_matrix(2, 6, 9), random_frame(2, dim=6, rank=3, seed=1)
    kept = vectors.clone()
    whiten(matrix, vectors, torch.full((2,), 3), 2, 1e-4)
    assert torch.equal(vectors, kept)


@pytest.mark.parametrize(("shape", "rank", "block_rows"), CASES)
def test_a_transposed_view_is_whitened_as_its_copy(shape: tuple[int, int], rank: int, block_rows: int) -> None:
    matrix, vectors = random_matrix(3, *shape), random_frame(3, dim=shape[0], rank=rank, seed=1)
    view = matrix.mT.clone(memory_format=torch.contiguous_format).mT
    assert not view.is_contiguous() or 1 in shape
    result = whiten(view, vectors, torch.full((3,), rank), block_rows, 1e-2)
    expected = whitened(matrix, vectors, rank, block_rows, 1e-2)
    for part, other in zip(result[:-1], expected[:-1], strict=True):
        assert_close(part, other.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [2, 6])
@pytest.mark.parametrize("spoilt", [0.0, float("nan"), float("inf"), 1e25])
def test_a_matrix_without_information_costs_the_others_of_its_batch_nothing(spoilt: float, rank: int) -> None:
    clean, vectors = random_matrix(3, 6, 9), random_frame(3, dim=6, rank=rank, seed=1)
    batch = clean.clone()
    batch[1] = spoilt * clean[1] if spoilt else 0.0
    result, expected = whitened(batch, vectors, rank), whitened(clean, vectors, rank)
    assert result.failed.tolist() == [False, spoilt != 0.0, False]
    for row in (0, 2):
        assert_close(result.matrix[row], expected.matrix[row].double())
    if not spoilt:
        assert not result.matrix[1].any()
        assert not result.image[1].any()
    if spoilt == 1e25:  # squares overflow, so that the scale is unknown: no step rather than one of any length
        assert not result.matrix[1].any()


@pytest.mark.parametrize("tracked", [2, 8])
@pytest.mark.parametrize("kind", ["rank one", "rank three", "repeated rows", "zero rows", "one large row"])
def test_a_deficient_matrix_is_whitened_without_a_failure(kind: str, tracked: int) -> None:
    matrix = random_matrix(8, 12)
    if kind == "rank one":
        matrix = torch.outer(random_matrix(8), random_matrix(12, seed=1))
    elif kind == "rank three":
        matrix = random_matrix(8, 3) @ random_matrix(3, 12, seed=1)
    elif kind == "repeated rows":
        matrix[1::2] = matrix[::2]
    elif kind == "zero rows":
        matrix[2:5] = 0
    else:
        matrix[0] *= 1e5
    result = whitened(matrix, initial_subspace(matrix, tracked), tracked, block_rows=3)
    assert not result.failed.any()
    assert torch.isfinite(result.matrix).all()
    # The tracked part is of at most unit norm, and so is each of the three blocks of the rest.
    assert float(singular_values(result.matrix).max()) < 1.001 * (1 if tracked == 8 else 1 + math.sqrt(3))
    assert float(singular_values(result.matrix).max()) > 0.9


# ------------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("rows", "block_rows", "sizes"), [(6, 3, [3, 3]), (7, 3, [3, 3, 1]), (5, 4, [3, 2])])
def test_every_block_of_rows_is_whitened_by_itself(batch: int, rows: int, block_rows: int, sizes: list[int]) -> None:
    matrix = random_matrix(batch, rows, 9, dtype=torch.float64)
    result, failed = whiten_blocks(matrix, block_rows, 1e-14, torch.zeros(batch, dtype=torch.float64))
    assert failed.shape == (batch,)
    assert not failed.any()
    for x, v in zip(matrices(matrix), matrices(result), strict=True):
        for block, piece in zip(v.split(sizes), x.split(sizes), strict=True):
            assert_orthonormal(block.T, atol=1e-8)
            assert_close(block @ torch.linalg.pinv(piece) @ piece, block, atol=1e-8)  # of the same row space


def test_the_floor_damps_blocks_that_are_nothing_but_noise() -> None:
    matrix = torch.cat([random_matrix(3, 9), 1e-9 * random_matrix(3, 9, seed=1)])
    (result,), _ = whiten_blocks(matrix[None], 3, 1e-4, torch.tensor([1e-10]))
    assert float(singular_values(result[:3]).min()) > 0.99
    # Singular values of 1e-9 times 2 to 5 over √1e-10.
    assert float(singular_values(result[3:]).max()) < 1e-3


def test_one_failed_block_is_reported_for_its_matrix() -> None:
    matrix = random_matrix(3, 6, 9)
    matrix[1, 4, 2] = torch.nan
    result, failed = whiten_blocks(matrix, 3, 1e-4, torch.zeros(3))
    assert failed.tolist() == [False, True, False]
    assert torch.isfinite(result[1, :3]).all()
    assert torch.isfinite(result[[0, 2]]).all()


# ------------------------------------------------------------------------------------------------ tracking


@pytest.mark.parametrize("batch", BATCHES)
def test_a_first_subspace_holds_the_whole_space_of_a_low_rank_matrix(batch: tuple[int, ...]) -> None:
    matrix = random_matrix(*batch, 8, 2, seed=1) @ random_matrix(*batch, 2, 6, seed=2)
    for x, vectors in zip(matrices(matrix), matrices(initial_subspace(matrix, 3)), strict=True):
        assert vectors.is_contiguous()
        assert_orthonormal(vectors)
        outside = x.double() - reference.projector(vectors) @ x.double()
        # The third power of the singular values comes before the orthonormalisation: rounding times their ratio cubed.
        assert float(outside.norm() / x.double().norm()) < 1e-4


def test_a_first_subspace_finds_the_directions_that_stand_out() -> None:
    spikes = random_frame(dim=12, rank=2, dtype=torch.float64)
    matrix = (30 * spikes @ random_frame(dim=20, rank=2, seed=3, dtype=torch.float64).T).float() + random_matrix(12, 20)
    top = torch.linalg.svd(matrix.double()).U[:, :2]
    assert float((reference.projector(initial_subspace(matrix, 4)) @ top - top).norm()) < 1e-2


@pytest.mark.parametrize("scale", [2.0**-80, 2.0**-27, 2.0**50, 2.0**100])
def test_a_first_subspace_does_not_depend_on_the_scale(scale: float) -> None:
    matrix = random_matrix(6, 5)
    scaled, plain = initial_subspace(scale * matrix, 3), initial_subspace(matrix, 3)
    assert_close(reference.projector(scaled), reference.projector(plain), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_matrix_without_information_starts_from_a_subspace_that_meets_every_direction(value: float) -> None:
    matrix = torch.stack([torch.full((6, 5), value), random_matrix(6, 5)])
    vectors = initial_subspace(matrix, 3)
    assert_orthonormal(vectors[0])
    # Unit vectors would never see a gradient whose first rows are zero.
    assert torch.linalg.vector_norm(vectors[0], dim=1).min() > 0.1
    assert_close(vectors[1], initial_subspace(matrix[1], 3).double())


def test_a_zero_image_leaves_the_subspace_as_it_is_and_is_no_failure() -> None:
    vectors = random_frame(2, dim=6, rank=3)
    image = torch.stack([torch.zeros(6, 3), random_matrix(6, 3)])
    turned, failed = turn_subspace(vectors, image)
    assert torch.equal(turned[0], vectors[0])
    assert not torch.equal(turned[1], vectors[1])
    assert not failed.any()


def test_a_first_subspace_is_the_same_whatever_was_drawn_before() -> None:
    matrix = random_matrix(6, 5)
    first = initial_subspace(matrix, 3)
    before = torch.get_rng_state()
    torch.rand(3)
    drawn = torch.get_rng_state()
    assert torch.equal(initial_subspace(matrix, 3), first)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not torch.equal(before, drawn)


@pytest.mark.parametrize(("shape", "rank"), [((7, 9), 3), ((5, 5), 5), ((6, 8), 1)])
def test_a_turned_subspace_spans_one_orthogonal_iteration_in_every_leading_group(
    shape: tuple[int, int], rank: int
) -> None:
    matrix = random_matrix(3, *shape, dtype=torch.float64)
    vectors = random_frame(3, dim=shape[0], rank=rank, seed=1, dtype=torch.float64)
    turned, failed = turn_subspace(vectors, whitened(matrix, vectors, rank).image)
    assert not failed.any()
    assert turned.is_contiguous()
    for x, u, result in zip(matrix, vectors, turned, strict=True):
        assert_orthonormal(result)
        expected = torch.linalg.qr(x @ x.T @ u).Q
        for count in range(1, rank + 1):
            # The image is that of X Xᵀ U C⁻ᵀ, without damping's part: C⁻ᵀ is triangular.
            span, wanted = reference.projector(result[:, :count]), reference.projector(expected[:, :count])
            torch.testing.assert_close(span, wanted, rtol=0, atol=1e-9)


def test_turning_again_and_again_arrives_at_the_leading_singular_vectors() -> None:
    left, right = random_frame(dim=8, rank=8, dtype=torch.float64), random_frame(dim=12, rank=8, seed=1).double()
    matrix = ((left * 2.0 ** -torch.arange(8)) @ right.T).float()
    vectors = random_frame(dim=8, rank=3, seed=2)
    for _ in range(40):
        vectors, _ = turn_subspace(vectors, whitened(matrix, vectors, 3).image)
    for column in range(3):
        assert abs(float(vectors[:, column].double() @ left[:, column])) > 1 - 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_subspace_stays_bit_for_bit_where_its_image_is_not_finite(value: float) -> None:
    vectors, image = random_frame(2, dim=6, rank=3), random_matrix(2, 6, 3)
    image[0, 2, 1] = value
    turned, failed = turn_subspace(vectors, image)
    assert failed.tolist() == [True, False]
    assert torch.equal(turned[0], vectors[0])
    assert_close(reference.projector(turned[1]), reference.projector(torch.linalg.qr(image[1].double()).Q), atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_deficient_image_turns_into_an_orthonormal_subspace(rank: int) -> None:
    image = rank * torch.outer(random_matrix(6), random_matrix(3, seed=1))
    turned, failed = turn_subspace(random_frame(dim=6, rank=3), image)
    assert not failed.any()
    assert_orthonormal(turned)


# ------------------------------------------------------------------------------------------------ columns


@pytest.mark.parametrize("beta", [0.0, 0.9])
@pytest.mark.parametrize("shape", [(4, 6), (5, 5), (1, 3), (3, 1)])
@pytest.mark.parametrize("batch", BATCHES)
def test_evened_columns_are_those_of_plain_loops(batch: tuple[int, ...], shape: tuple[int, int], beta: float) -> None:
    sizes = torch.ones(*batch, shape[1])
    expected_sizes = [[1.0] * shape[1] for _ in matrices(sizes, 1)]
    for step in range(4):
        white = random_matrix(*batch, *shape, seed=step)
        given = white.clone()
        wanted = random_matrix(*batch, seed=9).abs()
        result = even_columns(white, sizes, beta, wanted)
        assert result is white
        for row, (w, evened) in enumerate(zip(matrices(given), matrices(result), strict=True)):
            kept = expected_sizes[row]
            for j in range(shape[1]):
                mean = sum(float(w[i, j]) ** 2 for i in range(shape[0])) / shape[0]
                kept[j] = beta * kept[j] + (1 - beta) * shape[1] * mean
            columns = [[float(w[i, j]) / math.sqrt(kept[j]) for j in range(shape[1])] for i in range(shape[0])]
            even = torch.tensor(columns, dtype=torch.float64)
            assert_close(evened, float(matrices(wanted, 0)[row]) * even / even.square().mean().sqrt())
            assert_close(matrices(sizes, 1)[row], torch.tensor(kept, dtype=torch.float64))


def test_the_columns_of_an_orthogonal_matrix_are_even_from_the_start() -> None:
    white = random_frame(dim=6, rank=6)
    sizes = torch.ones(6)
    evened = even_columns(white.clone(), sizes, 0.95, ONE)
    assert_close(evened, white.double() * math.sqrt(6))
    assert_close(sizes, torch.ones(6).double())


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6])
def test_evened_columns_have_the_root_mean_square_one(scale: float) -> None:
    evened = even_columns(scale * random_matrix(3, 4, 60), torch.ones(3, 60), 0.95, torch.ones(3))
    root = evened.double().square().mean((-2, -1)).sqrt()
    # Below 1e-19 squares are zero in float32; a step that small may be shorter, not longer and not NaN.
    assert_close(root if scale > 1e-19 else root.clamp_min(1), torch.ones(3).double())


def test_zeros_stay_zeros_for_as_long_as_they_come() -> None:
    sizes = torch.ones(4096)
    for _ in range(2500):  # 0.95^2500 is far below the smallest float32
        sizes.mul_(0.95)
    for kept in (torch.ones(4096), sizes):
        assert not even_columns(torch.zeros(3, 4096), kept, 0.95, ONE).any()
    assert torch.isfinite(even_columns(random_matrix(3, 4096), sizes, 0.95, ONE)).all()


def test_a_column_of_zeros_stays_one_beside_others() -> None:
    white = random_matrix(4, 6)
    white[:, 2] = 0
    evened = even_columns(white, torch.ones(6), 0.95, ONE)
    assert not evened[:, 2].any()
    assert float(evened.square().mean()) == pytest.approx(1.0, rel=1e-5)
