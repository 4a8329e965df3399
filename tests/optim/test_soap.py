"""SOAP against its float64 reference, keyword by keyword."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from problems import random_matrix
from trajectories import STEPS, largest_error, library_paths, reference_path

from scao_hf.optim.soap import SOAP

# Eight plain steps make every factor definite, so that no eigenvector is a matter of taste.
BASE: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "precondition_frequency": 3, "adam_warmup_steps": 8}
SHAPES = [(5, 5), (4, 6), (6, 4), (3, 4, 2), (4, 2, 3, 3), (1, 7), (7, 1)]
TOLERANCE = 1e-5


def every_fourth_later(step: int) -> int:
    return 2 if step < 15 else 4


KEYWORDS: dict[str, dict[str, Any]] = {
    "lr": {"lr": 3e-2},
    "betas": {"betas": (0.8, 0.99)},
    "betas none": {"betas": None},
    "shampoo_beta": {"shampoo_beta": 0.7},
    "eps": {"eps": 1e-1},
    "weight_decay": {"weight_decay": 5.0},
    "use_decoupled_weight_decay": {"weight_decay": 5.0, "use_decoupled_weight_decay": False},
    "use_nesterov": {"use_nesterov": True},
    "use_nesterov without bias correction": {"use_nesterov": True, "correct_bias": False},
    "precondition_frequency": {"precondition_frequency": 7},
    "precondition_frequency callable": {"precondition_frequency": every_fourth_later},
    "precondition_warmup_steps": {"precondition_warmup_steps": 17},
    "adam_warmup_steps": {"adam_warmup_steps": 12},
    "adam_warmup_steps beyond the warm-up of the basis": {"precondition_warmup_steps": 11, "adam_warmup_steps": 20},
    "max_precond_dim": {"max_precond_dim": 5},
    "max_precond_dim below every dimension": {"max_precond_dim": 3},
    "trace_normalization": {"trace_normalization": True},
    "normalize_preconditioned_grads": {"normalize_preconditioned_grads": True},
    "correct_bias": {"correct_bias": False},
    "use_eigh": {"use_eigh": True},
    "use_adaptive_criteria": {"use_adaptive_criteria": True, "adaptive_update_tolerance": 0.012},
    "use_adaptive_criteria with eigh": {
        "use_adaptive_criteria": True,
        "adaptive_update_tolerance": 0.012,
        "use_eigh": True,
    },
    "power_iter_steps": {"power_iter_steps": 4},
    "max_update_rms": {"max_update_rms": 0.3},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_thirty_steps_follow_the_reference(shape: tuple[int, ...]) -> None:
    seeds = range(3)
    paths = library_paths(SOAP, shape, seeds, **BASE)
    for seed, path in zip(seeds, paths, strict=True):
        expected, optimizer = reference_path(reference.SOAP, shape, seed, **BASE)
        assert len(optimizer.bases) == len(shape)
        assert largest_error(path, expected) < TOLERANCE


@pytest.mark.parametrize("name", KEYWORDS)
def test_every_keyword_means_what_the_reference_means(name: str) -> None:
    shape = (6, 4)
    options = BASE | KEYWORDS[name]
    expected, _ = reference_path(reference.SOAP, shape, **options)
    plain, _ = reference_path(reference.SOAP, shape, **BASE)
    assert largest_error(plain, expected) > 1e-3, "the keyword changes nothing here, so this test would prove nothing"
    assert largest_error(library_paths(SOAP, shape, **options)[0], expected) < TOLERANCE


@pytest.mark.parametrize("use_eigh", [False, True])
def test_the_adaptive_criterion_skips_some_refreshes_and_not_others(use_eigh: bool) -> None:
    options = BASE | {"use_adaptive_criteria": True, "adaptive_update_tolerance": 0.012, "use_eigh": use_eigh}
    _, optimizer = reference_path(reference.SOAP, (6, 4), **options)
    refreshes = 2 * sum(step % 3 == 0 for step in range(9, STEPS + 1))
    assert 0 < optimizer.skipped < refreshes


def test_an_unset_tolerance_is_the_published_one() -> None:
    options = BASE | {"use_adaptive_criteria": True}
    expected, optimizer = reference_path(reference.SOAP, (6, 4), **options, adaptive_update_tolerance=1e-7)
    assert optimizer.skipped == 0
    assert largest_error(library_paths(SOAP, (6, 4), **options)[0], expected) < TOLERANCE


def test_the_first_gradient_seeds_the_basis_of_a_square_matrix_in_the_published_order() -> None:
    options = BASE | {"adam_warmup_steps": 0}
    expected, optimizer = reference_path(reference.SOAP, (5, 5), **options)
    assert optimizer.adam_warmup_steps == 1
    assert largest_error(library_paths(SOAP, (5, 5), **options)[0], expected) < TOLERANCE


def test_factors_without_memory_are_those_of_the_last_gradient() -> None:
    # Square, because the factor of a single (6, 4) gradient has a null space, whose eigenvectors are a matter of taste.
    options = BASE | {"shampoo_beta": 0.0, "use_eigh": True}
    expected, _ = reference_path(reference.SOAP, (4, 4), **options)
    assert largest_error(library_paths(SOAP, (4, 4), **options)[0], expected) < TOLERANCE


@pytest.mark.parametrize("precondition_1d", [False, True])
def test_vectors_have_a_basis_on_request_only(precondition_1d: bool) -> None:
    options = BASE | {"precondition_1d": precondition_1d}
    expected, optimizer = reference_path(reference.SOAP, (7,), **options)
    assert len(optimizer.bases) == int(precondition_1d)
    assert largest_error(library_paths(SOAP, (7,), **options)[0], expected) < TOLERANCE


def test_the_two_answers_for_vectors_differ() -> None:
    paths = [reference_path(reference.SOAP, (7,), **BASE, precondition_1d=wish)[0] for wish in (False, True)]
    assert largest_error(*paths) > 1e-3


def test_one_dimension_too_long_leaves_the_others_their_basis() -> None:
    options = BASE | {"max_precond_dim": 3}
    expected, optimizer = reference_path(reference.SOAP, (2, 5, 3), **options)
    assert sorted(optimizer.bases) == [0, 2]
    assert largest_error(library_paths(SOAP, (2, 5, 3), **options)[0], expected) < TOLERANCE


def test_trace_normalization_needs_a_factor_of_the_first_dimension() -> None:
    options = BASE | {"max_precond_dim": 4, "trace_normalization": True}
    without = BASE | {"max_precond_dim": 4}
    expected, _ = reference_path(reference.SOAP, (6, 4), **without)
    assert largest_error(library_paths(SOAP, (6, 4), **options)[0], expected) < TOLERANCE


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_matmul_precisions_are_set_for_the_step_and_put_back(precision: str) -> None:
    # Both precisions choose kernels of accelerators; on a CPU every choice gives the same float32 products.
    before = torch.get_float32_matmul_precision()
    options = BASE | {"fp32_matmul_prec": precision, "qr_fp32_matmul_prec": precision}
    expected, _ = reference_path(reference.SOAP, (4, 3), **BASE)
    assert largest_error(library_paths(SOAP, (4, 3), **options)[0], expected) < TOLERANCE
    assert torch.get_float32_matmul_precision() == before


def test_without_any_basis_it_is_adamw() -> None:
    start = random_matrix(4, 5)
    mine, torchs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3}
    optimizer = SOAP([mine], **options, max_precond_dim=2)
    adamw = torch.optim.AdamW([torchs], **options)
    for step in range(STEPS):
        mine.grad = torchs.grad = random_matrix(4, 5, seed=step + 1)
        optimizer.step()
        adamw.step()
        torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-6)


def test_added_decay_leaves_the_callers_gradient_alone() -> None:
    param = torch.nn.Parameter(random_matrix(3, 4))
    optimizer = SOAP([param], weight_decay=0.5, use_decoupled_weight_decay=False)
    grad = random_matrix(3, 4, seed=1)
    for _ in range(3):
        param.grad = grad.clone()
        optimizer.step()
        assert torch.equal(param.grad, grad)


def test_a_gradient_that_overflows_one_factor_is_kept_out_of_both() -> None:
    param = torch.nn.Parameter(torch.zeros(2, 40))
    optimizer = SOAP([param])
    # The squares of a row overflow when 40 of them are added; those of a column, two of which are, do not.
    param.grad = torch.full((2, 40), 1e19)
    optimizer.step()
    assert torch.equal(optimizer.state[param]["factor_0"], torch.zeros(2, 2))
    assert torch.equal(optimizer.state[param]["factor_1"], torch.zeros(40, 40))
