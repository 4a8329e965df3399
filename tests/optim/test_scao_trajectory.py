"""SCAO against its float64 reference, keyword by keyword."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
from torch import Tensor
from trajectories import STEPS, NoisyQuadratic, largest_error

from scao_hf.numerics.whitening import NOISE_FLOOR, initial_subspace
from scao_hf.optim.scao import SCAO

# Tracked, not whole; the whitened direction takes over from step 5 on and the ramp ends at step 8.
BASE: dict[str, Any] = {
    "lr": 1e-2,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "weight_decay": 0.01,
    "warmup_steps": 4,
    "blend_steps": 4,
    "min_precond_updates": 1,
    "precond_freq": 4,
    "k_min": 1,
    "epsilon_sparse": 0.2,
    "block_rows": 3,
    "damping": 1e-4,
    "max_precond_dim": 64,
    "tau": None,
    "total_steps": None,
}
TRACKING: dict[str, Any] = {"k_max": 4, "k_exact": 0}
"""Options that decide which frames there are; the reference is given the frames instead."""
TOLERANCE = 1e-5

KEYWORDS: dict[str, dict[str, Any]] = {
    "lr": {"lr": 3e-2},
    "betas": {"betas": (0.8, 0.99)},
    "eps": {"eps": 1e-1},
    "weight_decay": {"weight_decay": 5.0},
    "warmup_steps": {"warmup_steps": 9},
    "warmup_steps zero": {"warmup_steps": 0, "min_precond_updates": 0, "blend_steps": 0, "precond_freq": 8},
    "blend_steps": {"blend_steps": 15},
    "blend_steps zero": {"blend_steps": 0},
    "min_precond_updates": {"min_precond_updates": 11},
    "precond_freq": {"precond_freq": 7},
    "k_min": {"k_min": 4},
    "epsilon_sparse": {"epsilon_sparse": 0.6},
    "block_rows": {"block_rows": 5},
    "damping": {"damping": 1e-1},
    "max_precond_dim": {"max_precond_dim": 5},
    "tau": {"tau": 0.02},
    "tau in a short run": {"tau": 0.02, "total_steps": 40},
    "tau in blocks": {"tau": 0.02, "max_precond_dim": 5},
}


Rate = Callable[[int], float]
"""The learning rate of a step from 0, in units of the option."""


def constant(step: int) -> float:
    return 1.0


def up_and_down(step: int) -> float:
    return min((step + 1) / 8, (STEPS - step) / (STEPS - 7))


def library_path(
    shape: tuple[int, ...], seed: int, options: dict[str, Any], rate: Rate = constant
) -> tuple[list[Tensor], list[Tensor]]:
    """The path of the library, and the pseudo-random frames that it starts from, block by block."""
    problem = NoisyQuadratic(shape, seed)
    param = torch.nn.Parameter(problem.start.clone())
    optimizer = SCAO([param], **options)
    path = []
    for step in range(STEPS):
        param.grad = problem.gradient(param.detach(), step).float()
        optimizer.param_groups[0]["lr"] = options["lr"] * rate(step)
        optimizer.step()
        path.append(param.detach().double() - problem.start.double())
    first = problem.gradient(problem.start, 0).float().reshape(shape[0], -1)
    pieces = [piece for _, _, piece in reference.cut(first, options["max_precond_dim"])]
    rank = optimizer.state[param]["vectors"].shape[-1]
    # `test_whitening.py` looks after `initial_subspace`.
    return path, [initial_subspace(piece if len(piece) <= len(piece.mT) else piece.mT, rank) for piece in pieces]


def reference_path(
    shape: tuple[int, ...], seed: int, frames: list[Any], rate: Rate = constant, **options: Any
) -> tuple[list[Tensor], Any]:
    problem = NoisyQuadratic(shape, seed)
    optimizer = reference.SCAO(problem.start, frames, NOISE_FLOOR, **options)
    start = problem.start.double()
    path = []
    for step in range(STEPS):
        optimizer.lr = options["lr"] * rate(step)
        path.append(optimizer.step(problem.gradient(optimizer.parameter, step)) - start)
    return path, optimizer


@pytest.mark.parametrize("shape", [(10, 8), (8, 10), (7, 7), (6, 2, 5)])
def test_thirty_steps_follow_the_reference(shape: tuple[int, ...]) -> None:
    for seed in range(3):
        path, frames = library_path(shape, seed, BASE | TRACKING)
        expected, optimizer = reference_path(shape, seed, frames, **BASE)
        assert any(block.active < 4 for block in optimizer.blocks) or seed, "no rank ever moved"
        assert largest_error(path, expected) < TOLERANCE


@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (7, 4)])
def test_sides_whitened_whole_follow_the_reference(shape: tuple[int, ...]) -> None:
    path, frames = library_path(shape, 0, BASE | {"k_exact": 64})
    expected, optimizer = reference_path(shape, 0, frames, **BASE)
    assert optimizer.blocks[0].active == min(shape)
    assert largest_error(path, expected) < TOLERANCE


@pytest.mark.parametrize("name", KEYWORDS)
def test_every_keyword_means_what_the_reference_means(name: str) -> None:
    shape, options = (10, 8), BASE | KEYWORDS[name]
    _, plain_frames = library_path(shape, 0, BASE | TRACKING)
    path, frames = library_path(shape, 0, options | TRACKING)
    expected, _ = reference_path(shape, 0, frames, **options)
    plain, _ = reference_path(shape, 0, plain_frames, **BASE)
    assert largest_error(plain, expected) > 1e-3, "the keyword changes nothing here, so this test would prove nothing"
    assert largest_error(path, expected) < TOLERANCE


def test_the_longest_step_follows_the_schedule_as_the_reference_s_does() -> None:
    shape, options = (10, 8), BASE | KEYWORDS["warmup_steps zero"] | {"tau": 0.02}
    path, frames = library_path(shape, 0, options | TRACKING, up_and_down)
    expected, _ = reference_path(shape, 0, frames, up_and_down, **options)
    assert largest_error(path, expected) < TOLERANCE
