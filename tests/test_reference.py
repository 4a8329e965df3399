"""The judge is judged: pieces of the reference against torch's own routines and against arithmetic."""

from __future__ import annotations

import pytest
import reference
import torch
from problems import random_frame, random_matrix


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


@pytest.mark.parametrize(("dim", "rank"), [(7, 3), (5, 5), (1, 1), (6, 0)])
def test_the_completion_is_orthogonal_and_begins_with_the_frame(dim: int, rank: int) -> None:
    frame = random_frame(dim=dim, rank=max(rank, 1), dtype=torch.float64)
    completed = reference.householder_completion(frame, rank)
    torch.testing.assert_close(completed.T @ completed, reference.identity(dim), rtol=0, atol=1e-13)
    torch.testing.assert_close(completed[:, :rank], frame[:, :rank], rtol=0, atol=1e-13)


def test_the_completion_keeps_what_is_orthogonal_to_frame_and_unit_vectors() -> None:
    frame = random_frame(dim=8, rank=2, dtype=torch.float64)
    touched = torch.cat([frame, reference.identity(8)[:, :2]], 1)
    outside = random_matrix(8, dtype=torch.float64)
    outside = outside - touched @ torch.linalg.lstsq(touched, outside.unsqueeze(1)).solution.squeeze(1)
    turned = reference.householder_completion(frame, 2) @ outside
    torch.testing.assert_close(turned, outside, rtol=0, atol=1e-13)


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
