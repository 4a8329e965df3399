"""First and second moments of a gradient, elementwise or factored, and the Adam direction they give."""

from __future__ import annotations

import torch
from torch import Tensor


def update_moments(exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor, betas: tuple[float, float]) -> None:
    """Fold one gradient into the first and second moment, in place.

        m <- β₁ m + (1 − β₁) g        v <- β₂ v + (1 − β₂) g²

    Args:
        exp_avg: m, any shape, float32; overwritten.
        exp_avg_sq: v, same shape; overwritten.
        grad: g, same shape.
        betas: (β₁, β₂), each in [0, 1).

    Source: Kingma & Ba (2015), arXiv:1412.6980, Algorithm 1.
    """
    exp_avg.lerp_(grad, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])


def adam_direction(
    exp_avg: Tensor, exp_avg_sq: Tensor, betas: tuple[float, float], eps: float, step: int, *, correct_bias: bool = True
) -> Tensor:
    """The step of Adam from its moments.

        m̂ / (√v̂ + eps),    m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    Args:
        exp_avg: m, any shape.
        exp_avg_sq: v ≥ 0, broadcastable to m.
        betas: (β₁, β₂).
        eps: added outside the root, in units of the gradient.
        step: t ≥ 1, updates the moments have seen.
        correct_bias: take m̂ = m and v̂ = v if False.

    Returns:
        Shape of m, new.

    Source: Kingma & Ba (2015), arXiv:1412.6980, Algorithm 1.
    """
    first, second = _bias_corrections(betas, step) if correct_bias else (1.0, 1.0)
    denominator = (exp_avg_sq / second).sqrt_().add_(eps)
    return (exp_avg / first).div_(denominator)


def nesterov_adam_direction(
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad: Tensor,
    betas: tuple[float, float],
    eps: float,
    step: int,
    *,
    correct_bias: bool = True,
) -> Tensor:
    """The step of Adam with Nesterov's look-ahead.

        (β₁ m / (1 − β₁ᵗ⁺¹) + (1 − β₁) g / (1 − β₁ᵗ)) / (√v̂ + eps)

    Args:
        exp_avg: m, which has seen g.
        exp_avg_sq: v, same shape, which has seen g.
        grad: g, same shape.
        betas: (β₁, β₂).
        eps: added outside the root.
        step: t ≥ 1.
        correct_bias: replace the three corrections by 1 if False.

    Returns:
        Shape of m, new.

    Source: Dozat (2016), Incorporating Nesterov Momentum into Adam, ICLR workshop.
    """
    first, second = _bias_corrections(betas, step) if correct_bias else (1.0, 1.0)
    ahead = _bias_corrections(betas, step + 1)[0] if correct_bias else 1.0
    momentum = exp_avg * (betas[0] / ahead) + grad * ((1 - betas[0]) / first)
    return momentum.div_((exp_avg_sq / second).sqrt_().add_(eps))


def _bias_corrections(betas: tuple[float, float], step: int) -> tuple[float, float]:
    return 1 - betas[0] ** step, 1 - betas[1] ** step


def update_factored_second_moment(row: Tensor, column: Tensor, grad: Tensor, beta: float) -> None:
    """Fold one gradient into the factored second moment, in place.

        r <- β r + (1 − β) mean_j G_ij²        c <- β c + (1 − β) mean_i G_ij²

    Args:
        row: r (..., m), float32; overwritten.
        column: c (..., n), float32; overwritten.
        grad: (..., m, n), float32.
        beta: in [0, 1).

    Source: Shazeer & Stern (2018), arXiv:1804.04235, §3, with means in place of sums.
    """
    squared = grad.square()
    row.lerp_(squared.mean(-1), 1 - beta)
    column.lerp_(squared.mean(-2), 1 - beta)


def factored_adam_direction(
    exp_avg: Tensor, row: Tensor, column: Tensor, betas: tuple[float, float], eps: float, step: int
) -> Tensor:
    """The step of Adam with a second moment of rank one.

        m̂_ij / (√(r̂_i ĉ_j / mean(r̂)) + eps)

    Args:
        exp_avg: m (..., m, n).
        row: r (..., m) ≥ 0.
        column: c (..., n) ≥ 0, whose mean is that of the whole moment; the mean of r cancels.
        betas: (β₁, β₂).
        eps: added outside the root, in units of the gradient.
        step: t ≥ 1.

    Returns:
        (..., m, n), new; 0 where the moments are 0.

    Source: Shazeer & Stern (2018), arXiv:1804.04235, Algorithm 4, with the bias correction of Adam.
    """
    first, second = _bias_corrections(betas, step)
    relative_row = row / row.mean(-1, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny)
    denominator = relative_row.sqrt().unsqueeze(-1) * (column / second).sqrt().unsqueeze(-2)
    return (exp_avg / first).div_(denominator.add_(eps))
