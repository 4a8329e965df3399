"""SCAO against its float64 reference with materialised maps, keyword by keyword."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from torch import Tensor
from trajectories import STEPS, NoisyQuadratic, largest_error

from scao_hf.numerics.eigenbasis import initial_sketch
from scao_hf.optim.scao import SCAO

# Tracked, not whole, on both sides; the basis acts from step 5 on and the ramp ends at step 8.
BASE: dict[str, Any] = {
    "lr": 1e-2,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "weight_decay": 0.01,
    "warmup_steps": 4,
    "blend_steps": 4,
    "min_precond_updates": 1,
    "precond_freq": 4,
    "rho": 0.9,
    "k_min": 1,
    "epsilon_sparse": 0.2,
    "max_precond_dim": 64,
    "second_moment": "factored",
}
TRACKING: dict[str, Any] = {"k_max": 4, "k_exact": 0, "sides": "both"}
"""Options that decide which frames there are; the reference is given the frames instead."""
TOLERANCE = 1e-5

KEYWORDS: dict[str, dict[str, Any]] = {
    "lr": {"lr": 3e-2},
    "betas": {"betas": (0.8, 0.99)},
    "eps": {"eps": 1e-1},
    "weight_decay": {"weight_decay": 5.0},
    "warmup_steps": {"warmup_steps": 9},
    "warmup_steps zero": {"warmup_steps": 0, "min_precond_updates": 0, "precond_freq": 8},
    "blend_steps": {"blend_steps": 15},
    "blend_steps zero": {"blend_steps": 0},
    "min_precond_updates": {"min_precond_updates": 11},
    "precond_freq": {"precond_freq": 7},
    "rho": {"rho": 0.6},
    "k_min": {"k_min": 4},
    "epsilon_sparse": {"epsilon_sparse": 0.6},
    "max_precond_dim": {"max_precond_dim": 5},
    "second_moment": {"second_moment": "elementwise"},
    "second_moment with an early ramp": {"second_moment": "elementwise", "warmup_steps": 1, "blend_steps": 20},
}


def library_path(shape: tuple[int, ...], seed: int, options: dict[str, Any]) -> tuple[list[Tensor], list[Any]]:
    """The path of the library, and the pseudo-random frames that it starts from, block by block."""
    problem = NoisyQuadratic(shape, seed)
    param = torch.nn.Parameter(problem.start.clone())
    optimizer = SCAO([param], **options)
    path = []
    for step in range(STEPS):
        param.grad = problem.gradient(param.detach(), step).float()
        optimizer.step()
        path.append(param.detach().double() - problem.start.double())
    first = problem.gradient(problem.start, 0).float().reshape(shape[0], -1)
    pieces = [piece for _, _, piece in reference.cut(first, options["max_precond_dim"])]
    return path, [frames_of(piece, optimizer.state[param]) for piece in pieces]


def frames_of(block: Tensor, state: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """What both sides of a block begin with; `test_eigenbasis.py` looks after `initial_sketch`."""
    frames = []
    for side, facing in (("left", block), ("right", block.mT)):
        vectors = state.get(f"{side}_vectors")
        frames.append(None if vectors is None else initial_sketch(facing, vectors.shape[-1], 0.1).vectors)
    return frames[0], frames[1]


def reference_path(shape: tuple[int, ...], seed: int, frames: list[Any], **options: Any) -> tuple[list[Tensor], Any]:
    problem = NoisyQuadratic(shape, seed)
    optimizer = reference.SCAO(problem.start, frames, **options)
    start = problem.start.double()
    path = [optimizer.step(problem.gradient(optimizer.parameter, step)) - start for step in range(STEPS)]
    return path, optimizer


@pytest.mark.parametrize("second_moment", ["factored", "elementwise"])
@pytest.mark.parametrize("shape", [(10, 8), (8, 10), (7, 7), (6, 2, 5)])
def test_thirty_steps_follow_the_reference(shape: tuple[int, ...], second_moment: str) -> None:
    options = BASE | {"second_moment": second_moment}
    for seed in range(3):
        path, frames = library_path(shape, seed, options | TRACKING)
        expected, optimizer = reference_path(shape, seed, frames, **options)
        assert all(side.active > 0 for block in optimizer.blocks for side in block.sides)
        assert largest_error(path, expected) < TOLERANCE


@pytest.mark.parametrize("second_moment", ["factored", "elementwise"])
# Two gradients must fill both factors before the first turn at step 2; columns of a null space are a matter of taste.
@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (7, 4)])
def test_sides_kept_whole_follow_the_reference(shape: tuple[int, ...], second_moment: str) -> None:
    options = BASE | {"second_moment": second_moment}
    path, frames = library_path(shape, 0, options | {"k_exact": 64})
    expected, optimizer = reference_path(shape, 0, frames, **options)
    assert all(side.whole for side in optimizer.blocks[0].sides)
    assert largest_error(path, expected) < TOLERANCE


@pytest.mark.parametrize("sides", ["left", "right"])
@pytest.mark.parametrize("second_moment", ["factored", "elementwise"])
def test_one_sided_bases_follow_the_reference(sides: str, second_moment: str) -> None:
    options = BASE | {"second_moment": second_moment}
    path, frames = library_path((10, 8), 0, options | TRACKING | {"sides": sides})
    assert (frames[0][0] is None, frames[0][1] is None) == (sides == "right", sides == "left")
    assert largest_error(path, reference_path((10, 8), 0, frames, **options)[0]) < TOLERANCE


@pytest.mark.parametrize("name", KEYWORDS)
def test_every_keyword_means_what_the_reference_means(name: str) -> None:
    shape, options = (10, 8), BASE | KEYWORDS[name]
    _, plain_frames = library_path(shape, 0, BASE | TRACKING)
    path, frames = library_path(shape, 0, options | TRACKING)
    expected, _ = reference_path(shape, 0, frames, **options)
    plain, _ = reference_path(shape, 0, plain_frames, **BASE)
    assert largest_error(plain, expected) > 1e-3, "the keyword changes nothing here, so this test would prove nothing"
    assert largest_error(path, expected) < TOLERANCE
