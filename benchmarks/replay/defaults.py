"""What SCAO does where it is told nothing: read off its constructor, and off a step of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from scao_hf import SCAO

DEFAULTS: dict[str, Any] = {name: parameter.default for name, parameter in inspect.signature(SCAO).parameters.items()}
PERIOD: int = DEFAULTS["precond_freq"]
BETAS: tuple[float, float] = DEFAULTS["betas"]


def tracked_rank(shape: Sequence[int], treatment: Mapping[str, str]) -> int:
    """How many directions are tracked of a matrix (m, n) in a group with this `kind`; 0 where it takes AdamW."""
    parameter = nn.Parameter(torch.zeros(*shape))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = SCAO([{"params": [parameter], **treatment}])
    optimizer.step()
    state = optimizer.state[parameter]
    return state["vectors"].shape[-1] if "vectors" in state else 0
