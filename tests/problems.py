"""Random inputs that the numerical tests share, and the comparison they use."""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES = [(3, 5), (5, 3), (4, 4), (1, 7), (7, 1)]
"""Wide, tall, square, one row, one column."""

BATCHES = [(), (3,), (2, 3)]
"""Batch dimensions in front of a matrix."""


def random_matrix(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal entries that depend on the arguments only."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def random_factor(*batch: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Symmetric positive definite matrices with well separated eigenvalues between about 0.1 and 2."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(*batch, dim, dim, generator=generator, dtype=torch.float64)).Q
    values = torch.linspace(2.0, 0.1, dim, dtype=torch.float64)
    factor = (basis * values) @ basis.mT
    return ((factor + factor.mT) / 2).to(dtype)


def random_frame(*batch: int, dim: int, rank: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Orthonormal columns."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(*batch, dim, rank, generator=generator, dtype=torch.float64)).Q.to(dtype)


def matrices(batched: Tensor, trailing: int = 2) -> list[Tensor]:
    """The single matrices (or vectors, or numbers) of a batch, in order."""
    return list(batched.reshape(-1, *batched.shape[batched.ndim - trailing :]))


def assert_close(actual: Tensor, expected: Tensor | float, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Compare in float64; the defaults are float32's few roundings of numbers near one."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=atol)


def assert_orthonormal(vectors: Tensor, atol: float = 1e-5) -> None:
    gram = vectors.double().mT @ vectors.double()
    torch.testing.assert_close(gram, torch.eye(gram.shape[-1], dtype=gram.dtype).expand_as(gram), rtol=0, atol=atol)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
