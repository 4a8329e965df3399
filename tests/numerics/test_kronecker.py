"""Kronecker factors against the dense float64 loops."""

from __future__ import annotations

import pytest
import reference
import torch
from problems import BATCHES, SHAPES, assert_close, matrices, random_factor, random_matrix

from scao_hf.numerics.kronecker import (
    KroneckerFactors,
    accumulate,
    damp,
    damping,
    debias,
    finite_matrices,
    outer_product,
    update_factors,
)


def zero_factors(*batch: int, shape: tuple[int, int]) -> KroneckerFactors:
    return KroneckerFactors(torch.zeros(*batch, shape[0], shape[0]), torch.zeros(*batch, shape[1], shape[1]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_factors_are_the_moving_averages_of_the_outer_products(batch: tuple[int, ...], shape: tuple[int, int]) -> None:
    grads = [random_matrix(*batch, *shape, seed=seed) for seed in range(6)]
    factors = zero_factors(*batch, shape=shape)
    for grad in grads:
        update_factors(factors, grad, 0.9)
    for row, (left, right) in enumerate(zip(matrices(factors.left), matrices(factors.right), strict=True)):
        expected = reference.kronecker_factors([matrices(grad)[row] for grad in grads], 0.9)
        assert_close(left, expected[0])
        assert_close(right, expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_accumulated_in_float32(dtype: torch.dtype) -> None:
    grad = (100 * random_matrix(4, 6)).to(dtype)
    factors = zero_factors(shape=(4, 6))
    update_factors(factors, grad, 0.5)
    expected = reference.kronecker_factors([grad], 0.5)
    assert factors.left.dtype == torch.float32
    assert_close(factors.left, expected[0])
    assert_close(factors.right, expected[1])


def test_a_transposed_view_accumulates_like_its_copy() -> None:
    view = random_matrix(5, 3).mT
    factors, copied = zero_factors(shape=(3, 5)), zero_factors(shape=(3, 5))
    update_factors(factors, view, 0.5)
    update_factors(copied, view.clone(memory_format=torch.contiguous_format), 0.5)
    assert not view.is_contiguous()
    assert_close(factors.left, copied.left.double())
    assert_close(factors.right, copied.right.double())


def test_a_zero_gradient_only_decays_the_factors() -> None:
    factors = zero_factors(shape=(3, 5))
    update_factors(factors, random_matrix(3, 5), 0.5)
    before = KroneckerFactors(factors.left.clone(), factors.right.clone())
    update_factors(factors, torch.zeros(3, 5), 0.5)
    torch.testing.assert_close(factors.left, before.left / 2)
    torch.testing.assert_close(factors.right, before.right / 2)


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_gradient_that_spoils_its_outer_product_costs_one_observation_of_one_matrix(spoilt: float) -> None:
    # 1e30 is a finite number whose square is not, in float32.
    first, second = random_matrix(2, 3, 5, seed=1), random_matrix(2, 3, 5, seed=2)
    second[1, 0, 0] = spoilt
    factors = zero_factors(2, shape=(3, 5))
    update_factors(factors, first, 0.5)
    update_factors(factors, second, 0.5)
    whole, cut = reference.kronecker_factors([first[0], second[0]], 0.5), reference.kronecker_factors([first[1]], 0.5)
    for row, expected in enumerate((whole, cut)):
        assert_close(factors.left[row], expected[0])
        assert_close(factors.right[row], expected[1])


def test_both_factors_skip_a_gradient_that_overflows_one_of_them() -> None:
    # Squares of 1.5e19 fit into float32, but not the sum of five along the row.
    factors = zero_factors(shape=(3, 5))
    grad = torch.zeros(3, 5)
    grad[0] = 1.5e19
    assert torch.isfinite(grad.mT @ grad).all()
    update_factors(factors, grad, 0.5)
    assert not factors.left.any()
    assert not factors.right.any()


def test_accumulate_leaves_refused_matrices_bit_for_bit_alone() -> None:
    factor, outer = random_matrix(3, 4, 4, seed=1), random_matrix(3, 4, 4, seed=2)
    outer[1] = torch.nan
    before = factor.clone()
    accumulate(factor, outer, 0.75, torch.tensor([True, False, True]))
    assert torch.equal(factor[1], before[1])
    assert_close(factor[0], 0.75 * before[0].double() + 0.25 * outer[0].double())
    assert_close(factor[2], 0.75 * before[2].double() + 0.25 * outer[2].double())


def test_accumulate_without_a_mask_takes_every_finite_matrix() -> None:
    factor, outer = random_matrix(2, 4, 4, seed=1), random_matrix(2, 4, 4, seed=2)
    expected = 0.75 * factor.double() + 0.25 * outer.double()
    accumulate(factor, outer, 0.75)
    assert_close(factor, expected)


@pytest.mark.parametrize("accept", [None, torch.tensor([True, True])])
def test_accumulate_skips_an_outer_product_that_overflowed(accept: torch.Tensor | None) -> None:
    factor, outer = random_matrix(2, 4, 4, seed=1), random_matrix(2, 4, 4, seed=2)
    outer[0, 1, 2] = torch.inf
    before = factor.clone()
    accumulate(factor, outer, 0.75, accept)
    assert torch.equal(factor[0], before[0])
    assert_close(factor[1], 0.75 * before[1].double() + 0.25 * outer[1].double())


@pytest.mark.parametrize("shape", [(6,), (3, 5), (2, 3, 4), (3, 2, 2, 3)])
def test_outer_product_contracts_every_dimension_but_one(shape: tuple[int, ...]) -> None:
    batch = random_matrix(2, *shape)
    for dim, size in enumerate(shape):
        result = outer_product(batch, dim)
        assert result.shape == (2, size, size)
        for row, tensor in enumerate(batch.double()):
            for i in range(size):
                for j in range(size):
                    expected = float((tensor.select(dim, i) * tensor.select(dim, j)).sum())
                    assert float(result[row, i, j]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_entry_marks_its_matrix_and_no_other(value: float) -> None:
    grad = random_matrix(2, 2, 3, 4)
    grad[1, 0, 2, 3] = value
    assert finite_matrices(grad).tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize("num_updates", [1, 2, 50])
def test_debiased_factors_of_a_constant_gradient_are_its_outer_product(num_updates: int) -> None:
    grad = random_matrix(3, 5)
    factors = zero_factors(shape=(3, 5))
    for _ in range(num_updates):
        update_factors(factors, grad, 0.99)
    # At t = 1 the factor is 1 − 0.99 of the answer, and float32 rounds that constant to 6e-6 relative at worst.
    assert_close(debias(factors.left, 0.99, num_updates), grad.double() @ grad.double().T, rtol=2e-5, atol=1e-5)
    assert_close(
        debias(factors.right, 0.99, num_updates), reference.debias(factors.right, 0.99, num_updates), rtol=1e-6
    )


@pytest.mark.parametrize("num_updates", [0, -3])
def test_debiasing_before_an_update_is_refused(num_updates: int) -> None:
    with pytest.raises(ValueError, match="num_updates"):
        debias(torch.eye(2), 0.9, num_updates)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-9])
@pytest.mark.parametrize("batch", BATCHES)
def test_damping_adds_the_larger_of_floor_and_relative_multiple(batch: tuple[int, ...], scale: float) -> None:
    factor = scale * random_factor(*batch, dim=4)
    damped = damp(factor, floor=1e-8, relative=1e-2)
    for matrix, result in zip(matrices(factor), matrices(damped), strict=True):
        expected = reference.damp(matrix, 1e-8, 1e-2)
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-7 * scale)


def test_a_zero_factor_is_damped_by_the_floor() -> None:
    assert damping(torch.zeros(2, 3, 3), floor=1e-6).tolist() == pytest.approx([1e-6, 1e-6])
    assert_close(damp(torch.zeros(3, 3), floor=1e-6), 1e-6 * reference.identity(3), atol=0)


def test_damping_defaults_are_the_published_ones() -> None:
    factor = random_factor(dim=4)
    assert_close(damp(factor), reference.damp(factor, 1e-8, 1e-4))
    assert float(damping(1e-9 * factor)) == pytest.approx(1e-8)
