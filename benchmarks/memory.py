"""Bytes: of an optimizer's state, and of the process or the device at its fullest."""

from __future__ import annotations

import resource
import sys

import torch
from torch import Tensor


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state, a storage shared by several views counted by what each shows."""
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in (state.values() if isinstance(state, dict) else ())
        if isinstance(value, Tensor)
    )


def peak_bytes(device: torch.device) -> int:
    """Most bytes so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reserved_bytes(device: torch.device) -> int:
    """What `peak_bytes` says now, to be taken from it later; on a GPU the peak is begun anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return peak_bytes(device)
