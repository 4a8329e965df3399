"""Memory of a device: what is free, and what this process has taken at most."""

from __future__ import annotations

import sys

import psutil
import torch


def available_bytes(device: torch.device) -> int:
    """What a device has free now; of a CPU, the memory that programs may still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return psutil.virtual_memory().available


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has had there: of the allocator on a GPU, of everything on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
