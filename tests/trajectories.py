"""Runs an optimizer of the library in float32 beside its float64 reference on random closed-loop problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from problems import random_frame, random_matrix, relative_error
from torch import Tensor

STEPS = 30


class NoisyQuadratic:
    """Gradients A_1 ⊗ A_2 ⊗ … (0.3 (p − target) + noise_t): correlated along every dimension, of full rank."""

    def __init__(self, shape: tuple[int, ...], seed: int):
        self.start = 0.1 * random_matrix(*shape, seed=seed)
        self.target = random_matrix(*shape, seed=seed + 1000, dtype=torch.float64)
        self.noise = random_matrix(STEPS, *shape, seed=seed + 2000, dtype=torch.float64)
        # Eigenvalues that keep their distance, so that float32 and float64 agree on the eigenvectors.
        self.mixing = [
            random_frame(dim=size, rank=size, seed=seed + dim, dtype=torch.float64)
            * torch.linspace(1.5, 0.5, size, dtype=torch.float64).sqrt()
            for dim, size in enumerate(shape)
        ]

    def gradient(self, parameter: Tensor, step: int) -> Tensor:
        grad = 0.3 * (parameter.double() - self.target) + self.noise[step]
        for dim, mixing in enumerate(self.mixing):
            grad = torch.tensordot(mixing, grad.movedim(dim, 0), dims=1).movedim(0, dim)
        return grad


def reference_path(
    make: Callable[..., Any], shape: tuple[int, ...], seed: int = 0, **options: Any
) -> tuple[list[Tensor], Any]:
    """The parameter minus its start after every step, float64, and the reference optimizer at the end."""
    problem = NoisyQuadratic(shape, seed)
    optimizer = make(problem.start, **options)
    start = problem.start.double()
    path = []
    for step in range(STEPS):
        path.append(optimizer.step(problem.gradient(optimizer.parameter, step)) - start)
    return path, optimizer


def library_paths(
    make: Callable[..., torch.optim.Optimizer], shape: tuple[int, ...], seeds: Sequence[int] = (0,), **options: Any
) -> list[list[Tensor]]:
    """The same for parameters that share one optimizer of the library, one path a seed."""
    problems = [NoisyQuadratic(shape, seed) for seed in seeds]
    params = [torch.nn.Parameter(problem.start.clone()) for problem in problems]
    optimizer = make(params, **options)
    paths: list[list[Tensor]] = [[] for _ in seeds]
    for step in range(STEPS):
        for param, problem in zip(params, problems, strict=True):
            param.grad = problem.gradient(param.detach(), step).float()
        optimizer.step()
        for param, problem, path in zip(params, problems, paths, strict=True):
            path.append(param.detach().double() - problem.start.double())
    return paths


def largest_error(path: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest relative error of the distance travelled, over all steps."""
    return max(relative_error(here, there) for here, there in zip(path, expected, strict=True))
