"""One thread, one seed and no network for every test."""

from __future__ import annotations

import os

# Set before the first import of the libraries that read them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    # Matrices of a few rows gain nothing from threads, and parallel workers lose by them.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
