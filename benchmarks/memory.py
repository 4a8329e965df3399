"""Bytes: of an optimizer's state, and of the process or the device at its fullest."""

from __future__ import annotations

import gc
import itertools
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


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


def settle(device: torch.device) -> None:
    """Begin a run like the first of its process on a GPU, where one process makes several; nothing on a CPU.

    What earlier runs left is freed, and the workspaces are taken that cuBLAS keeps from the first product on, of the
    threads of forward and of backward passes: no run's peak is told with them and another's without.
    """
    if device.type != "cuda":
        return
    gc.collect()  # a scheduler and its optimizer hold each other
    torch.cuda.empty_cache()
    square = torch.ones(8, 8, device=device, requires_grad=True)
    (square @ square).sum().backward()


def free_bytes(device: torch.device) -> int:
    """What may still be allocated, on the GPU or in this machine."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def workspace_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that torch has allocated while `work()` runs, above what it had before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells standard error when it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = (event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]")
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes, initial=0))
