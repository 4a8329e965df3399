"""The judge is judged: pieces of the reference against torch's own routines and against arithmetic."""

from __future__ import annotations

import pytest
import reference
import torch
from problems import random_matrix


def test_adamw_is_torchs() -> None:
    start = random_matrix(3, 4, dtype=torch.float64)
    param = torch.nn.Parameter(start.clone())
    torchs = torch.optim.AdamW([param], lr=1e-2, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3)
    mine = reference.AdamW(start, lr=1e-2, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3)
    for step in range(10):
        param.grad = random_matrix(3, 4, seed=step, dtype=torch.float64)
        mine.step(param.grad)
        torchs.step()
    torch.testing.assert_close(mine.parameter, param.detach(), rtol=1e-12, atol=1e-14)


def test_the_triangular_factor_is_torchs() -> None:
    matrix = random_matrix(5, 8, dtype=torch.float64)
    gram = matrix @ matrix.T
    torch.testing.assert_close(reference.cholesky(gram), torch.linalg.cholesky(gram), rtol=1e-12, atol=1e-12)


def test_orthogonal_rows_are_orthonormal_and_span_the_same() -> None:
    matrix = random_matrix(5, 8, dtype=torch.float64)
    rows = reference.orthogonal_rows(matrix, damping=0.0)
    torch.testing.assert_close(rows @ rows.T, reference.identity(5), rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix @ rows.T @ rows, matrix, rtol=0, atol=1e-12)


def test_whitening_in_the_singular_vectors_gives_the_polar_factor() -> None:
    left, values, right = torch.linalg.svd(random_matrix(5, 8, dtype=torch.float64), full_matrices=False)
    white = reference.whiten(left @ torch.diag(values) @ right, left, 5, block_rows=2, damping=0.0, noise_floor=0.0)
    torch.testing.assert_close(white, left @ right, rtol=0, atol=1e-12)


def test_soap_at_full_frequency_whitens_a_constant_gradient() -> None:
    # With one gradient for ever the rotated gradient is diagonal, and Adam turns it into signs: the polar factor.
    grad = random_matrix(4, 4, dtype=torch.float64)
    options = {"lr": 1.0, "weight_decay": 0.0, "eps": 1e-14, "precondition_frequency": 1, "use_eigh": True}
    optimizer = reference.SOAP(torch.zeros(4, 4), **options)
    optimizer.step(grad)
    before = optimizer.parameter
    for _ in range(400):
        before = optimizer.parameter
        optimizer.step(grad)
    step = before - optimizer.parameter
    core = torch.linalg.eigh(grad @ grad.T)[1].T @ step @ torch.linalg.eigh(grad.T @ grad)[1]
    torch.testing.assert_close(core.diagonal().abs(), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)


def test_unit_curvature_corrects_nothing() -> None:
    block = reference.PublishedBlock(3, 3, reference.PublishedSCAO(torch.zeros(3, 3), k_min=1))
    block.bases = [(reference.identity(3), torch.ones(3, dtype=torch.float64))] * 2
    grad = random_matrix(3, 3, dtype=torch.float64)
    torch.testing.assert_close(block.apply(grad), grad, rtol=1e-13, atol=1e-14)


def test_known_ranks() -> None:
    assert reference.rank_by_mass([6.0, 3.0, 1.0], 0.1) == 2
    assert reference.rank_by_mass([6.0, 3.0, 1.0], 0.05) == 3
    assert reference.rank_by_excess([6.0, 3.0, 1.0], 1.0, 0.3) == 1
    assert reference.rank_by_excess([1.0, 1.0], 1.0, 0.05) == 0


def test_known_codes() -> None:
    codes, scale = reference.symmetric_int8(torch.tensor([127.0, -63.6, 0.4]))
    assert codes.tolist() == [127.0, -64.0, 0.0]
    assert scale == pytest.approx(1.0)
