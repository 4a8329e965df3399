"""Memory as a process has it."""

from __future__ import annotations

import psutil
import torch

from scao_hf.finetune.devices import Gauge, peak_bytes

CPU = torch.device("cpu")


def test_a_gauge_tells_by_what_the_process_grew_and_nothing_if_it_had_been_larger() -> None:
    below = peak_bytes(CPU) - psutil.Process().memory_info().rss
    size = below + (64 << 20)
    gauge = Gauge(CPU)
    held = bytearray(b"\1") * size
    del held
    grown = gauge.peak()
    assert grown is not None
    assert size - (8 << 20) < grown < 2 * size + (64 << 20)
    assert Gauge(CPU).peak() is None
