"""Eigenbases and ranks against the dense float64 reference; bases are compared through their projectors."""

from __future__ import annotations

from collections.abc import Callable

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
)
from torch import Tensor

from scao_hf.numerics import eigenbasis
from scao_hf.numerics.eigenbasis import (
    Eigenbasis,
    basis_drift,
    descending_order,
    eigh_descending,
    excess_spectral_rank,
    orthogonal_iteration,
    rayleigh_quotients,
    spectral_rank,
    tail_value,
    take_columns,
)

# Vectors of float32 `eigh` are off by d·2^-24·‖A‖ / gap, 8 · 6e-8 · 2 / 0.2 = 5e-6 for a `random_factor` of 8 rows.
PROJECTOR_TOLERANCE = 2e-5


def assert_same_leading_spans(actual: Tensor, expected: Tensor, atol: float = PROJECTOR_TOLERANCE) -> None:
    """For every a, the first a columns span the same space."""
    for count in range(1, actual.shape[-1] + 1):
        torch.testing.assert_close(
            reference.projector(actual[:, :count]), reference.projector(expected[:, :count]), rtol=0, atol=atol
        )


# ------------------------------------------------------------------------------------------------ eigh


@pytest.mark.parametrize("dim", [1, 2, 5, 8])
@pytest.mark.parametrize("batch", BATCHES)
def test_eigh_gives_the_reference_pairs_largest_first(batch: tuple[int, ...], dim: int) -> None:
    factor = random_factor(*batch, dim=dim)
    basis, failed = eigh_descending(factor)
    assert failed.shape == batch
    assert not failed.any()
    for matrix, vectors, values in zip(
        matrices(factor), matrices(basis.vectors), matrices(basis.values, 1), strict=True
    ):
        expected_values, expected_vectors = reference.eigh_descending(matrix)
        assert_close(values, expected_values)
        assert_same_leading_spans(vectors, expected_vectors)


def test_eigh_of_zero_and_of_rank_one_matrices_is_orthonormal() -> None:
    vector = random_matrix(5)
    basis, failed = eigh_descending(torch.stack([torch.zeros(5, 5), torch.outer(vector, vector)]))
    assert not failed.any()
    assert_orthonormal(basis.vectors)
    assert_close(basis.values[0], torch.zeros(5).double())
    assert float(basis.values[1, 0]) == pytest.approx(float(vector @ vector), rel=1e-5)


def test_eigh_results_are_contiguous() -> None:
    basis, _ = eigh_descending(random_factor(2, dim=4))
    assert basis.vectors.is_contiguous()
    assert basis.values.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_eigh_of_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    factor = random_factor(dim=4).to(dtype)
    basis, failed = eigh_descending(factor)
    assert basis.vectors.dtype == dtype
    assert not failed.any()
    # The result is rounded to the dtype once: half a unit in the last place of numbers up to 2.
    assert_close(basis.values, reference.eigh_descending(factor)[0], rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_matrix_that_is_not_finite_keeps_its_fallback_and_is_reported(value: float) -> None:
    factor = random_factor(3, dim=4)
    factor[1, 2, 1] = value
    last_good = Eigenbasis(random_frame(3, dim=4, rank=4, seed=5), random_matrix(3, 4, seed=6))
    basis, failed = eigh_descending(factor, last_good)
    assert failed.tolist() == [False, True, False]
    assert torch.equal(basis.vectors[1], last_good.vectors[1])
    assert torch.equal(basis.values[1], last_good.values[1])
    alone, _ = eigh_descending(factor[2])
    assert_same_leading_spans(basis.vectors[2], alone.vectors)


def test_without_a_fallback_a_failed_matrix_gets_unit_vectors_and_zeros() -> None:
    basis, failed = eigh_descending(torch.full((3, 3), torch.nan))
    assert bool(failed)
    assert torch.equal(basis.vectors, torch.eye(3))
    assert not basis.values.any()


def refusing(refuses: Callable[[Tensor], bool]) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], list[Tensor]]:
    """An `eigh` that does not converge on some inputs, and the list of inputs it has seen."""
    original, seen = torch.linalg.eigh, []

    def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(matrix)
        if refuses(matrix):
            raise torch.linalg.LinAlgError("did not converge")
        return original(matrix)

    return eigh, seen


def test_a_solver_that_fails_once_is_tried_again_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    factor = random_factor(dim=4)
    eigh, seen = refusing(lambda matrix: torch.equal(matrix, factor))
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    basis, failed = eigh_descending(factor)
    monkeypatch.undo()
    assert not failed.any()
    jitter = (seen[-1] - factor).diagonal()
    # 1e-6 of the mean eigenvalue is a few units in the last place of the diagonal, so the sum is rounded.
    assert_close(jitter, 1e-6 * factor.diagonal().mean().double().expand(4), rtol=0.5, atol=0)
    assert_same_leading_spans(basis.vectors, reference.eigh_descending(factor)[1])
    assert_close(basis.values, reference.eigh_descending(factor)[0])


def test_a_solver_that_fails_in_float32_is_tried_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    factor = random_factor(2, dim=4)
    eigh, seen = refusing(lambda matrix: matrix.dtype == torch.float32)
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    basis, failed = eigh_descending(factor)
    monkeypatch.undo()
    assert seen[-1].dtype == torch.float64
    assert not failed.any()
    assert basis.vectors.dtype == torch.float32
    for matrix, vectors in zip(factor, basis.vectors, strict=True):
        assert_same_leading_spans(vectors, reference.eigh_descending(matrix)[1])


def test_a_solver_that_always_fails_keeps_every_fallback_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    last_good = Eigenbasis(random_frame(2, dim=4, rank=4), random_matrix(2, 4))
    eigh, _ = refusing(lambda matrix: True)
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    basis, failed = eigh_descending(random_factor(2, dim=4), last_good)
    assert failed.tolist() == [True, True]
    assert torch.equal(basis.vectors, last_good.vectors)
    assert torch.equal(basis.values, last_good.values)


def test_one_matrix_that_cannot_be_decomposed_does_not_cost_the_others_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    factor = random_factor(3, dim=4)
    factor[1, 0, 0] += 50  # the mark by which the solver below knows the matrix, jittered or not
    eigh, _ = refusing(lambda matrix: bool((matrix[..., 0, 0] > 40).any()))
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    basis, failed = eigh_descending(factor)
    monkeypatch.undo()
    assert failed.tolist() == [False, True, False]
    assert torch.equal(basis.vectors[1], torch.eye(4))
    for row in (0, 2):
        alone, _ = eigh_descending(factor[row])
        assert torch.equal(basis.vectors[row], alone.vectors)
        assert torch.equal(basis.values[row], alone.values)


def test_other_errors_of_the_solver_reach_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    with pytest.raises(torch.OutOfMemoryError):
        eigh_descending(random_factor(dim=4))


# ------------------------------------------------------------------------------------------------ small tools


@pytest.mark.parametrize("batch", BATCHES)
def test_rayleigh_quotients_are_the_diagonal_in_the_basis(batch: tuple[int, ...]) -> None:
    factor, frame = random_factor(*batch, dim=5), random_frame(*batch, dim=5, rank=3)
    for matrix, vectors, values in zip(
        matrices(factor), matrices(frame), matrices(rayleigh_quotients(factor, frame), 1), strict=True
    ):
        assert_close(values, torch.diag(vectors.double().T @ matrix.double() @ vectors.double()))


def test_descending_order_keeps_ties_and_puts_nan_last() -> None:
    values = torch.tensor([[1.0, 3.0, 1.0, 2.0], [float("nan"), -1.0, float("inf"), -1.0]])
    assert descending_order(values).tolist() == [[1, 3, 0, 2], [2, 1, 3, 0]]


def test_take_columns_reorders_each_matrix_by_its_own_indices() -> None:
    matrix = random_matrix(2, 3, 4)
    order = torch.tensor([[2, 0, 3, 1], [0, 1, 3, 2]])
    taken = take_columns(matrix, order)
    for row in range(2):
        for new, old in enumerate(order[row].tolist()):
            assert torch.equal(taken[row, :, new], matrix[row, :, old])


# ------------------------------------------------------------------------------------------------ orthogonal iteration


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("rank", [2, 5])
def test_orthogonal_iteration_turns_the_basis_as_the_reference_does(rank: int, steps: int) -> None:
    factor, frame = random_factor(3, dim=5), random_frame(3, dim=5, rank=rank, seed=9)
    ordered = take_columns(frame, descending_order(rayleigh_quotients(factor, frame)))
    turned, failed = orthogonal_iteration(factor, ordered, steps)
    assert not failed.any()
    assert turned.is_contiguous()
    for row in range(3):
        expected, order = reference.orthogonal_iteration(factor[row].double(), frame[row].double(), steps)
        assert_same_leading_spans(ordered[row], frame[row].double()[:, order])
        assert_same_leading_spans(turned[row], expected)


def test_many_iterations_arrive_at_the_eigenvectors() -> None:
    factor = random_factor(dim=5)
    turned, _ = orthogonal_iteration(factor, random_frame(dim=5, rank=5), 200)
    assert_same_leading_spans(turned, reference.eigh_descending(factor)[1])


def test_iteration_with_a_spoilt_factor_leaves_that_basis_bit_for_bit() -> None:
    factor, frame = random_factor(2, dim=4), random_frame(2, dim=4, rank=4)
    factor[0, 1, 1] = torch.nan
    turned, failed = orthogonal_iteration(factor, frame)
    assert failed.tolist() == [True, False]
    assert torch.equal(turned[0], frame[0])
    assert_same_leading_spans(turned[1], torch.linalg.qr(factor[1].double() @ frame[1].double()).Q)


@pytest.mark.parametrize("rank", [0, 1])
def test_iteration_with_a_deficient_factor_stays_orthonormal(rank: int) -> None:
    vector = random_matrix(4)
    turned, failed = orthogonal_iteration(rank * torch.outer(vector, vector), random_frame(dim=4, rank=4))
    assert not failed.any()
    assert_orthonormal(turned)


# ------------------------------------------------------------------------------------------------ rank


@pytest.mark.parametrize("mass", [0.3, 0.77, 0.95, 1.0])
@pytest.mark.parametrize("bounds", [(1, 8), (3, 5), (0, 8), (8, 8)])
def test_the_rank_holds_the_wanted_share_of_the_mass(mass: float, bounds: tuple[int, int]) -> None:
    values = random_matrix(6, 8).square().sort(-1, descending=True).values
    ranks = spectral_rank(values, values.sum(-1), mass, *bounds)
    assert ranks.dtype == torch.int64
    for row, rank in zip(values, ranks.tolist(), strict=True):
        expected = reference.rank_by_mass(row.double().tolist(), 1 - mass, float(row.sum()))
        assert rank == reference.clamp_rank(expected, *bounds, dim=8)


def test_the_rank_is_taken_against_the_whole_spectrum_where_only_its_head_is_known() -> None:
    head = torch.tensor([4.0, 2.0, 1.0])
    assert int(spectral_rank(head, torch.tensor(10.0), 0.55, 1, 3)) == 2
    assert int(spectral_rank(head, torch.tensor(10.0), 0.95, 1, 3)) == 3


def test_negative_eigenvalues_count_as_zero() -> None:
    assert int(spectral_rank(torch.tensor([3.0, 1.0, -2.0]), torch.tensor(4.0), 1.0, 1, 3)) == 2


@pytest.mark.parametrize("k_min", [0, 1, 2])
def test_a_spectrum_of_zeros_needs_the_smallest_rank(k_min: int) -> None:
    zeros = torch.zeros(2, 4)
    assert spectral_rank(zeros, zeros.sum(-1), 0.95, k_min, 4).tolist() == [k_min, k_min]
    assert excess_spectral_rank(torch.ones(2, 4), torch.ones(2), 0.95, k_min, 4).tolist() == [k_min, k_min]


def test_a_rank_never_exceeds_k_max_even_below_k_min() -> None:
    assert int(spectral_rank(torch.ones(3), torch.tensor(3.0), 0.1, 8, 3)) == 3


@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_the_rank_by_excess_ignores_the_tail_at_every_scale(scale: float) -> None:
    values = random_matrix(6, 8).square().sort(-1, descending=True).values
    tail = values.mean(-1)
    ranks = excess_spectral_rank(scale * values, scale * tail, 0.9, 1, 8)
    for row, level, rank in zip(values, tail, ranks.tolist(), strict=True):
        assert rank == reference.rank_by_excess(row.double().tolist(), float(level), 0.1)


def test_a_flat_tail_does_not_raise_the_rank_by_excess_but_does_raise_the_rank_by_mass() -> None:
    values = torch.cat([torch.tensor([50.0, 40.0]), torch.ones(30)])
    assert int(excess_spectral_rank(values, torch.tensor(1.0), 0.95, 1, 32)) == 2
    # 0.95 · 120 = 114 = 50 + 40 + 24
    assert int(spectral_rank(values, values.sum(), 0.95, 1, 32)) == 26


@pytest.mark.parametrize("rank", [0, 2, 5])
def test_the_tail_is_the_mean_of_what_is_left_of_the_trace(rank: int) -> None:
    values = reference.eigh_descending(random_factor(dim=5))[0]
    tail = tail_value(values[:rank].float(), values.sum().float(), 5)
    assert_close(tail, reference.tail_level(float(values.sum()), values[:rank].tolist(), 5))


def test_a_tail_is_never_negative() -> None:
    assert float(tail_value(torch.tensor([2.0, 2.0]), torch.tensor(3.0), 5)) == 0.0


# ------------------------------------------------------------------------------------------------ drift


def test_the_drift_is_the_mean_squared_sine_of_the_columns_angles() -> None:
    angles = torch.tensor([[0.0, 0.3], [1.0, torch.pi / 2]])
    before = torch.eye(4)[:, :2].expand(2, 4, 2)
    after = torch.zeros(2, 4, 2)
    for column in range(2):
        after[:, column, column] = angles[:, column].cos()
        after[:, column + 2, column] = angles[:, column].sin()
    expected = angles.sin().square().mean(-1)
    assert_close(basis_drift(before, after), expected.double())
    assert_close(basis_drift(before, -after), expected.double())


def test_the_drift_of_a_rank_counts_its_leading_columns_alone() -> None:
    before, after = random_frame(3, dim=6, rank=4), random_frame(3, dim=6, rank=4, seed=1)
    rank = torch.tensor([0, 2, 4])
    drifts = basis_drift(before, after, rank)
    assert float(drifts[0]) == 0
    assert_close(drifts[1], basis_drift(before[1, :, :2], after[1, :, :2]).double())
    assert_close(drifts[2], basis_drift(before[2], after[2]).double())


def test_a_basis_does_not_drift_from_itself() -> None:
    frame = random_frame(3, dim=6, rank=4)
    assert float(basis_drift(frame, frame).max()) <= 1e-6
    assert float(basis_drift(frame, frame).min()) >= 0


def test_jitter_grows() -> None:
    assert list(eigenbasis.JITTERS) == sorted(eigenbasis.JITTERS)
    assert eigenbasis.JITTERS[0] == 0.0
