"""A wish to stop that reaches one of several processes is the wish of all, under one name."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from scao_hf.finetune.signals import StopRequest

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("own", "other", "agreed"),
    [
        (None, None, None),
        (signal.SIGINT, None, "SIGINT"),
        (None, signal.SIGINT, "SIGINT"),
        (None, signal.SIGTERM, "SIGTERM"),
        (signal.SIGINT, signal.SIGTERM, "SIGTERM"),
    ],
)
def test_two_processes_agree_on_a_signal(
    own: signal.Signals | None, other: signal.Signals | None, agreed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_reduce(number: torch.Tensor, operation: Any) -> None:
        assert operation == torch.distributed.ReduceOp.MAX
        number.clamp_(min=0 if other is None else other.value)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    told: list[str] = []
    request = StopRequest(told.append, world_size=2)
    with request.listening():
        if own is not None:
            os.kill(os.getpid(), own)
        assert request.agreed(CPU) == agreed
    assert told == ([] if own is None else [own.name])


def test_a_process_alone_asks_nobody() -> None:
    request = StopRequest(lambda name: None)
    assert request.agreed(CPU) is None
    with request.listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert request.agreed(CPU) == "SIGTERM"
