"""Bytes: of an optimizer's state, and of the process or the device at its fullest."""

from __future__ import annotations

import itertools
import resource
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state, a storage shared by several views counted by what each shows."""
    tensors = {id(tensor): tensor for state in optimizer.state.values() for tensor in _tensors(state)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a value, also inside containers and inside objects of an optimizer's own classes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_tensors, value.values()))
    elif isinstance(value, (list, tuple, set)):
        yield from itertools.chain.from_iterable(map(_tensors, value))
    elif hasattr(value, "__dict__") and not callable(value):
        yield from _tensors(vars(value))


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
