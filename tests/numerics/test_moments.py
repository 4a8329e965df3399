"""Moments and the directions they give, against float64 loops and torch's own Adam."""

from __future__ import annotations

import pytest
import reference
import torch
from problems import BATCHES, SHAPES, assert_close, matrices, random_matrix

from scao_hf.numerics.moments import (
    adam_direction,
    factored_adam_direction,
    nesterov_adam_direction,
    update_factored_second_moment,
    update_moments,
)

BETAS = (0.8, 0.95)


def accumulated(grads: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    exp_avg, exp_avg_sq = torch.zeros_like(grads[0]), torch.zeros_like(grads[0])
    for grad in grads:
        update_moments(exp_avg, exp_avg_sq, grad, BETAS)
    return exp_avg, exp_avg_sq


def moments_by_hand(grads: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    m, v = torch.zeros_like(grads[0]).double(), torch.zeros_like(grads[0]).double()
    for grad in grads:
        m = BETAS[0] * m + (1 - BETAS[0]) * grad.double()
        v = BETAS[1] * v + (1 - BETAS[1]) * grad.double() ** 2
    return m, v


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_the_direction_is_adams(shape: tuple[int, ...], num_steps: int) -> None:
    grads = [random_matrix(*shape, seed=seed) for seed in range(num_steps)]
    exp_avg, exp_avg_sq = accumulated(grads)
    m, v = moments_by_hand(grads)
    assert_close(exp_avg, m)
    assert_close(exp_avg_sq, v)
    direction = adam_direction(exp_avg, exp_avg_sq, BETAS, 1e-3, num_steps)
    assert_close(direction, reference.adam_direction(m, v, BETAS, num_steps, 1e-3))


def test_the_direction_is_the_one_torch_takes() -> None:
    parameter = torch.zeros(4, 3, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=1.0, betas=BETAS, eps=1e-3)
    grads = [random_matrix(4, 3, seed=seed) for seed in range(5)]
    for grad in grads:
        before = parameter.detach().clone()
        parameter.grad = grad
        optimizer.step()
    direction = adam_direction(*accumulated(grads), BETAS, 1e-3, len(grads))
    assert_close(direction, (before - parameter.detach()).double())


def test_uncorrected_bias_leaves_the_raw_moments() -> None:
    exp_avg, exp_avg_sq = accumulated([random_matrix(3, 4)])
    expected = exp_avg.double() / (exp_avg_sq.double().sqrt() + 1e-8)
    assert_close(adam_direction(exp_avg, exp_avg_sq, BETAS, 1e-8, 1, correct_bias=False), expected)


@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("num_steps", [1, 7])
def test_nesterov_looks_one_step_ahead(num_steps: int, correct_bias: bool) -> None:
    grads = [random_matrix(3, 4, seed=seed) for seed in range(num_steps)]
    m, v = moments_by_hand(grads)
    beta1, beta2 = BETAS
    now, ahead, second = 1 - beta1**num_steps, 1 - beta1 ** (num_steps + 1), 1 - beta2**num_steps
    if not correct_bias:
        now = ahead = second = 1.0
    expected = (beta1 * m / ahead + (1 - beta1) * grads[-1].double() / now) / ((v / second).sqrt() + 1e-3)
    direction = nesterov_adam_direction(
        *accumulated(grads), grads[-1], BETAS, 1e-3, num_steps, correct_bias=correct_bias
    )
    assert_close(direction, expected)


def test_zero_moments_give_a_zero_direction() -> None:
    zero = torch.zeros(3, 4)
    assert not adam_direction(zero, zero.clone(), BETAS, 1e-8, 1).any()
    assert not nesterov_adam_direction(zero, zero.clone(), zero, BETAS, 1e-8, 1).any()
    assert not factored_adam_direction(zero, torch.zeros(3), torch.zeros(4), BETAS, 1e-8, 1).any()


def test_directions_leave_the_moments_as_they_were() -> None:
    grads = [random_matrix(3, 4)]
    exp_avg, exp_avg_sq = accumulated(grads)
    row, column = torch.ones(3), torch.ones(4)
    kept = [tensor.clone() for tensor in (exp_avg, exp_avg_sq, row, column)]
    adam_direction(exp_avg, exp_avg_sq, BETAS, 1e-8, 1)
    nesterov_adam_direction(exp_avg, exp_avg_sq, grads[0], BETAS, 1e-8, 1)
    factored_adam_direction(exp_avg, row, column, BETAS, 1e-8, 1)
    for now, before in zip((exp_avg, exp_avg_sq, row, column), kept, strict=True):
        assert torch.equal(now, before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_the_factored_direction_uses_the_rank_one_second_moment(batch: tuple[int, ...], shape: tuple[int, int]) -> None:
    grads = [random_matrix(*batch, *shape, seed=seed) for seed in range(4)]
    row, column = torch.zeros(*batch, shape[0]), torch.zeros(*batch, shape[1])
    for grad in grads:
        update_factored_second_moment(row, column, grad, BETAS[1])
    exp_avg = accumulated(grads)[0]
    direction = factored_adam_direction(exp_avg, row, column, BETAS, 1e-3, len(grads))
    for index, result in enumerate(matrices(direction)):
        mine = [matrices(grad)[index] for grad in grads]
        r, c, v = reference.factored_second_moment(mine, BETAS[1])
        debias = 1 - BETAS[1] ** len(grads)
        assert_close(matrices(row, 1)[index] / debias, r)
        assert_close(matrices(column, 1)[index] / debias, c)
        m = moments_by_hand(mine)[0] / (1 - BETAS[0] ** len(grads))
        assert_close(result, m / (v.sqrt() + 1e-3))


def test_the_factored_second_moment_is_exact_where_the_squares_have_rank_one() -> None:
    grad = torch.outer(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 4.0]))
    row, column = torch.zeros(3), torch.zeros(2)
    update_factored_second_moment(row, column, grad, BETAS[1])
    exp_avg, exp_avg_sq = accumulated([grad])
    assert_close(
        factored_adam_direction(exp_avg, row, column, BETAS, 1e-8, 1),
        adam_direction(exp_avg, exp_avg_sq, BETAS, 1e-8, 1).double(),
    )


def test_a_row_that_never_had_a_gradient_stays_put_under_the_factored_moment() -> None:
    grad = random_matrix(3, 4)
    grad[1] = 0
    row, column = torch.zeros(3), torch.zeros(4)
    update_factored_second_moment(row, column, grad, BETAS[1])
    direction = factored_adam_direction(accumulated([grad])[0], row, column, BETAS, 1e-8, 1)
    assert not direction[1].any()
    assert torch.isfinite(direction).all()
