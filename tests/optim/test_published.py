"""PublishedSCAO against its float64 reference, keyword by keyword."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from problems import random_matrix
from trajectories import STEPS, largest_error, library_paths, reference_path

from scao_hf.optim.published import PublishedSCAO

# Phase 2 from step 6, whole from step 11; the rank stays below full.
BASE: dict[str, Any] = {
    "lr": 1e-2,
    "warmup_steps": 5,
    "min_precond_updates": 3,
    "precond_freq": 4,
    "blend_steps": 6,
    "rho": 0.95,
    "epsilon_sparse": 0.2,
    "k_min": 1,
}
SHAPES = [(5, 5), (4, 6), (6, 4), (3, 4, 2), (4, 2, 3, 3)]
TOLERANCE = 1e-5

KEYWORDS: dict[str, dict[str, Any]] = {
    "lr": {"lr": 3e-2},
    "betas": {"betas": (0.8, 0.95)},
    "eps": {"eps": 1e-1},
    "weight_decay": {"weight_decay": 5.0},
    "warmup_steps": {"warmup_steps": 9},
    "min_precond_updates": {"min_precond_updates": 13},
    "precond_freq": {"precond_freq": 7},
    "stats_freq": {"stats_freq": 3},
    "rho": {"rho": 0.7},
    "epsilon_sparse": {"epsilon_sparse": 0.5},
    "k_min": {"k_min": 5},
    "k_max": {"k_max": 2},
    "tau": {"tau": 0.5},
    "blend_steps": {"blend_steps": 15},
    "blend_steps zero": {"blend_steps": 0},
    "max_precond_dim": {"max_precond_dim": 4},
    "use_int8_ema": {"use_int8_ema": True},
    "stats_freq beyond precond_freq": {"stats_freq": 6, "min_precond_updates": 1},
    "updates that bind with thin statistics": {"stats_freq": 4, "min_precond_updates": 4},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_thirty_steps_follow_the_reference(shape: tuple[int, ...]) -> None:
    seeds = range(3)
    paths = library_paths(PublishedSCAO, shape, seeds, **BASE)
    for seed, path in zip(seeds, paths, strict=True):
        expected, optimizer = reference_path(reference.PublishedSCAO, shape, seed, **BASE)
        assert optimizer.phase_two_steps == STEPS - 5
        assert largest_error(path, expected) < TOLERANCE


@pytest.mark.parametrize("name", KEYWORDS)
def test_every_keyword_means_what_the_reference_means(name: str) -> None:
    shape = (10, 6)
    options = BASE | KEYWORDS[name]
    expected, _ = reference_path(reference.PublishedSCAO, shape, **options)
    plain, _ = reference_path(reference.PublishedSCAO, shape, **BASE)
    assert largest_error(plain, expected) > 1e-3, "the keyword changes nothing here, so this test would prove nothing"
    assert largest_error(library_paths(PublishedSCAO, shape, **options)[0], expected) < TOLERANCE


@pytest.mark.parametrize("shape", [(10, 6), (6, 10), (9, 9), (5, 2, 3)])
def test_blocks_of_a_large_matrix_have_factors_of_their_own(shape: tuple[int, ...]) -> None:
    options = BASE | {"max_precond_dim": 4, "tau": 2.0}
    expected, optimizer = reference_path(reference.PublishedSCAO, shape, **options)
    assert len(optimizer.blocks) > 1
    assert largest_error(library_paths(PublishedSCAO, shape, **options)[0], expected) < TOLERANCE


def test_the_defaults_are_the_published_ones() -> None:
    group = PublishedSCAO([torch.nn.Parameter(torch.zeros(2, 2))]).param_groups[0]
    published = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "warmup_steps": 100,
        "min_precond_updates": 10,
        "precond_freq": 20,
        "rho": 0.999,
        "epsilon_sparse": 0.05,
        "k_min": 8,
        "k_max": 128,
        "tau": None,
        "max_precond_dim": 4096,
        "use_int8_ema": False,
    }
    assert {name: group[name] for name in published} == published


@pytest.mark.parametrize(
    ("num_params", "expected"),
    [
        (1_000_000, (100, 10, 64, None, 0.999)),
        (125_000_000, (500, 20, 128, 5.0, 0.999)),
        (3_000_000_000, (1000, 50, 256, 5.0, 0.99)),
        (70_000_000_000, (2000, 100, 512, 10.0, 0.99)),
    ],
)
def test_recommended_settings_are_the_published_table(num_params: int, expected: tuple[Any, ...]) -> None:
    settings = PublishedSCAO.recommended(num_params)
    names = ("warmup_steps", "precond_freq", "k_max", "tau", "rho")
    assert tuple(settings[name] for name in names) == expected
    PublishedSCAO([torch.nn.Parameter(torch.zeros(2, 2))], **settings)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (7, 1), ()])
def test_what_has_no_two_sides_is_adamw_to_the_last_step(shape: tuple[int, ...]) -> None:
    start = random_matrix(*shape)
    mine, torchs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3}
    optimizer = PublishedSCAO([mine], **(BASE | options))
    adamw = torch.optim.AdamW([torchs], **options)
    for step in range(STEPS):
        mine.grad = torchs.grad = random_matrix(*shape, seed=step + 1)
        optimizer.step()
        adamw.step()
        torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-6)


def test_a_gradient_that_overflows_one_factor_is_kept_out_of_both() -> None:
    param = torch.nn.Parameter(torch.zeros(2, 40))
    optimizer = PublishedSCAO([param])
    # The squares of a row overflow when 40 of them are added; those of a column, two of which are, do not.
    param.grad = torch.full((2, 40), 1e19)
    assert torch.isfinite(param.grad.mT @ param.grad).all()
    assert not torch.isfinite(param.grad @ param.grad.mT).all()
    optimizer.step()
    state = optimizer.state[param]
    assert torch.equal(state["left_factor"], 1e-4 * torch.eye(2))
    assert torch.equal(state["right_factor"], 1e-4 * torch.eye(40))


def test_phase_one_is_adamw_and_phase_two_is_not() -> None:
    start = random_matrix(4, 5)
    mine, torchs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizer = PublishedSCAO([mine], **BASE)
    adamw = torch.optim.AdamW([torchs], lr=BASE["lr"], weight_decay=0.01)
    for step in range(1, 8):
        mine.grad = torchs.grad = random_matrix(4, 5, seed=step)
        optimizer.step()
        adamw.step()
        if step <= BASE["warmup_steps"]:
            torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-6)
    assert float((mine - torchs).detach().abs().max()) > 1e-4
