"""Muon against torch's own, its AdamW against torch's own, and the NorMuon-like rows against the formula."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from problems import random_frame, random_matrix, relative_error
from torch import Tensor

from benchmarks import muon
from benchmarks.muon import Muon, orthogonalise

SHAPES = [(8, 8), (6, 10), (12, 5), (1, 7), (7, 1)]
LR, BETA1, BETA2, DECAY = 0.02, 0.9, 0.8, 0.1
BETAS = (BETA1, BETA2)


def weights(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [random_matrix(*shape, seed=place).requires_grad_() for place, shape in enumerate(shapes)]


def step(optimizer: torch.optim.Optimizer, parameters: list[Tensor], number: int) -> None:
    """One step with gradients that depend on the step and the parameter's place alone."""
    for place, parameter in enumerate(parameters):
        parameter.grad = random_matrix(*parameter.shape, seed=100 * number + place)
    optimizer.step()


def group(parameters: list[Tensor], kind: str = "matrix") -> list[dict[str, Any]]:
    return [{"params": parameters, "kind": kind}]


def torch_muon(parameters: list[Tensor]) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with torch 2.9")
    return torch.optim.Muon(
        parameters, lr=LR, momentum=BETA1, weight_decay=DECAY, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )


@pytest.mark.parametrize("kind", ["matrix", "lora_a", "lora_b"])
def test_muon_is_torchs_update_in_float32(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    ours, theirs = weights(*SHAPES), weights(*SHAPES)
    optimizer, reference = Muon(group(ours, kind), LR, BETAS, DECAY), torch_muon(theirs)
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)  # torch's iterations are in bfloat16 whatever they are given
    for number in range(4):
        step(optimizer, ours, number)
        step(reference, theirs, number)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.03), (torch.bfloat16, 0.06)])
def test_muon_is_torchs_update_to_the_precision_of_bfloat16(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float
) -> None:
    # On a GPU the iterations run in bfloat16, on a CPU in float32.
    monkeypatch.setattr(muon, "orthogonalise", lambda matrices, _: orthogonalise(matrices, dtype))
    ours, theirs, start = weights(*SHAPES), weights(*SHAPES), weights(*SHAPES)
    step(Muon(group(ours), LR, BETAS, DECAY), ours, 0)
    step(torch_muon(theirs), theirs, 0)
    for mine, other, before in zip(ours, theirs, start, strict=True):
        assert relative_error((mine - before).detach(), (other - before).detach()) < tolerance


def test_matrices_of_equal_shape_do_not_meet() -> None:
    together, alone = weights((6, 10), (6, 10), (6, 10)), weights((6, 10), (6, 10), (6, 10))
    optimizer = Muon(group(together), LR, BETAS, normalise_rows=True)
    single = [Muon(group([parameter]), LR, BETAS, normalise_rows=True) for parameter in alone]
    for number in range(3):
        step(optimizer, together, number)
        for place, (each, parameter) in enumerate(zip(single, alone, strict=True)):
            parameter.grad = random_matrix(6, 10, seed=100 * number + place)
            each.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["embedding", "head", "vector"])
def test_everything_else_takes_exactly_the_step_of_adamw(kind: str) -> None:
    shapes = [(9,), (7, 4), (3,)]
    ours, theirs = weights(*shapes), weights(*shapes)
    optimizer = Muon(group(ours, kind), LR, BETAS, DECAY)
    reference = torch.optim.AdamW(theirs, lr=LR, betas=BETAS, eps=1e-8, weight_decay=DECAY, fused=True)
    for number in range(5):
        step(optimizer, ours, number)
        step(reference, theirs, number)
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_every_group_has_its_own_rate_and_decay() -> None:
    ours, theirs = weights((6, 10), (5,)), weights((6, 10), (5,))
    groups = [
        {"params": ours[:1], "kind": "matrix", "lr": 0.1, "weight_decay": 0.5},
        {"params": ours[1:], "kind": "vector", "lr": 0.3, "weight_decay": 0.0},
    ]
    step(Muon(groups, lr=LR, betas=BETAS), ours, 0)
    step(Muon(group(theirs[:1]), 0.1, BETAS, 0.5), theirs[:1], 0)
    theirs[1].grad = ours[1].grad
    Muon(group(theirs[1:], "vector"), 0.3, BETAS, 0.0).step()
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def newton_schulz(matrix: Tensor) -> Tensor:
    """One matrix, through its singular values: each iteration maps s to a s + b s³ + c s⁵."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / matrix.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ torch.diag(values) @ right


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalising_maps_every_singular_value_by_the_polynomial(shape: tuple[int, int]) -> None:
    matrix = random_matrix(*shape, dtype=torch.float64)
    torch.testing.assert_close(orthogonalise(matrix, torch.float64), newton_schulz(matrix), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 6), (6, 10), (10, 6), (48, 32), (3, 6, 10), (2, 2, 10, 6)])
@pytest.mark.parametrize("smallest", [0.5, 0.1])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...], smallest: float) -> None:
    *batch, rows, columns = shape
    rank = min(rows, columns)
    left, right = (random_frame(*batch, dim=side, rank=rank, seed=side) for side in (rows, columns))
    values = torch.linspace(1.0, smallest, rank)
    found = torch.linalg.svdvals(orthogonalise(7.0 * (left * values) @ right.mT, torch.float32))
    assert found.shape == (*batch, rank)
    assert 0.65 < found.min() <= found.max() < 1.25


@pytest.mark.parametrize("shape", [(6, 6), (6, 10), (4, 6, 10)])
def test_orthogonalising_a_transpose_transposes(shape: tuple[int, ...]) -> None:
    matrix = random_matrix(*shape)
    torch.testing.assert_close(
        orthogonalise(matrix.mT, torch.float32), orthogonalise(matrix, torch.float32).mT, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("normalise_rows", [False, True])
def test_a_gradient_of_zero_only_decays(normalise_rows: bool) -> None:
    (parameter,), (before,) = weights((6, 10)), weights((6, 10))
    optimizer = Muon(group([parameter]), LR, BETAS, DECAY, normalise_rows)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(parameter, (1 - LR * DECAY) * before)


@pytest.mark.parametrize("shape", [(8, 8), (6, 10), (12, 5)])
def test_the_rows_of_the_normuon_like_update_are_divided_by_their_running_root_mean_square(
    shape: tuple[int, int],
) -> None:
    (parameter,) = weights(shape)
    optimizer = Muon(group([parameter]), LR, BETAS, DECAY, normalise_rows=True)
    expected = random_matrix(*shape, seed=0, dtype=torch.float64)
    momentum, mean_square = torch.zeros_like(expected), torch.zeros(shape[0], dtype=torch.float64)
    for number in range(4):
        step(optimizer, [parameter], number)
        grad = random_matrix(*shape, seed=100 * number, dtype=torch.float64)
        momentum = BETA1 * momentum + (1 - BETA1) * grad
        update = newton_schulz(BETA1 * momentum + (1 - BETA1) * grad)
        mean_square = BETA2 * mean_square + (1 - BETA2) * update.square().mean(1)
        rows = torch.stack([row / math.sqrt(square) for row, square in zip(update, mean_square, strict=True)])
        expected = (1 - LR * DECAY) * expected - 0.2 * LR * rows / rows.square().mean().sqrt()
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalise_rows", [False, True])
def test_a_resumed_run_continues_bit_for_bit(normalise_rows: bool) -> None:
    make = partial(Muon, lr=LR, betas=BETAS, normalise_rows=normalise_rows)
    whole, halves = weights((6, 10), (5,)), weights((6, 10), (5,))
    optimizer = make([*group(whole[:1]), *group(whole[1:], "vector")])
    first = make([*group(halves[:1]), *group(halves[1:], "vector")])
    for number in range(2):
        step(optimizer, whole, number)
        step(first, halves, number)
    second = make([*group(halves[:1]), *group(halves[1:], "vector")])
    second.load_state_dict(first.state_dict())
    for number in range(2, 4):
        step(optimizer, whole, number)
        step(second, halves, number)
    assert all(torch.equal(one, other) for one, other in zip(whole, halves, strict=True))
