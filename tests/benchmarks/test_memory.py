"""Bytes of optimizer states of every make, and of the process; and what is told of a machine."""

from __future__ import annotations

import getpass
import platform
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import memory
from benchmarks.environment import environment
from benchmarks.optimizers import ADAPTERS

CPU = torch.device("cpu")


def with_state(**state: Any) -> torch.optim.Optimizer:
    parameter = nn.Parameter(torch.zeros(3, 4))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.state[parameter] = state
    return optimizer


MATRIX = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({}, 0),
        ({"step": 3, "name": "x", "none": None}, 0),
        ({"a": MATRIX}, 48),
        ({"a": MATRIX.bfloat16(), "b": MATRIX.to(torch.int8)}, 24 + 12),
        ({"a": MATRIX, "again": MATRIX}, 48),
        ({"view": MATRIX[0], "other": MATRIX[1]}, 32),
        ({"factors": [MATRIX, (MATRIX.clone(), [])]}, 96),
        ({"inner": {"deep": {"a": MATRIX}}}, 48),
        ({"object": SimpleNamespace(left=MATRIX, rank=3, more=SimpleNamespace(right=MATRIX.clone()))}, 96),
    ],
)
def test_state_bytes_are_those_of_every_tensor_wherever_it_is_kept(state: dict[str, Any], expected: int) -> None:
    assert memory.state_bytes(with_state(**state)) == expected


@pytest.mark.parametrize(
    ("name", "least"),
    [
        # Of a (64, 32) matrix, 4 bytes a number: two moments; one; two moments, two factors and their eigenbases.
        ("adamw", 2 * 2048),
        ("muon", 2048),
        ("soap", 2 * 2048 + 2 * (64**2 + 32**2)),
        ("soap_pytorch_optimizer", 2 * 2048 + 2 * (64**2 + 32**2)),
    ],
)
def test_state_bytes_of_a_matrix_are_counted_by_hand(name: str, least: int) -> None:
    if not ADAPTERS[name].is_available:
        pytest.skip(f"{ADAPTERS[name].package} is not installed")
    model = nn.Linear(32, 64, bias=False)
    optimizer = ADAPTERS[name].build(model, ADAPTERS[name].space().start)
    for _ in range(2):
        model(torch.randn(8, 32)).square().mean().backward()
        optimizer.step()
    numbers = memory.state_bytes(optimizer) / 4
    assert least <= numbers <= least + 200  # counters and a few vectors


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the second opinion is Linux's")
def test_the_peak_of_a_process_is_in_bytes() -> None:
    held = bytearray(b"x") * (64 << 20)
    peak = memory.peak_bytes(CPU)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    highest = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    assert len(held) < highest
    assert 0.99 * highest <= peak < 16 * highest  # it may still know the process that started this one


def test_the_peak_of_a_process_never_falls() -> None:
    before = memory.reserved_bytes(CPU)
    held = bytearray(b"x") * (8 << 20)
    during = memory.peak_bytes(CPU)
    del held
    assert before <= during <= memory.peak_bytes(CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_peak_of_a_gpu_is_begun_anew() -> None:
    device = torch.device("cuda")
    held = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    del held
    before = memory.reserved_bytes(device)
    assert before < 64 << 20
    held = torch.empty(32 << 20, dtype=torch.uint8, device=device)
    assert memory.peak_bytes(device) - before == held.numel()


def test_an_environment_tells_versions_and_hardware_and_no_names() -> None:
    told = environment(CPU)
    assert told["torch"] == torch.__version__ or told["torch"] == torch.__version__.partition("+")[0]
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (told["device"], told["threads"]) == ("cpu", torch.get_num_threads())
    assert told["processor"]
    assert not {platform.node(), getpass.getuser(), str(Path.home())} & {str(value) for value in told.values()}
