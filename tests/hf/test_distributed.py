"""Two DDP processes on the CPU do what one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("ddp_run.py")
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def run(command: list[str]) -> None:
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "optim", ["scao", *(pytest.param(name, marks=pytest.mark.slow) for name in ("scao_published", "soap"))]
)
def test_two_processes_equal_one(optim: str, tmp_path: Path) -> None:
    run([*LAUNCHER, str(PROGRAM), str(tmp_path), optim])
    run([sys.executable, str(PROGRAM), str(tmp_path), optim])
    one, first, second = (torch.load(tmp_path / f"{optim}-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for name, weight in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, rtol=1e-4, atol=1e-5)
