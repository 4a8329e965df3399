"""Memory of a device: what is free, and what this process has taken at most."""

from __future__ import annotations

import re
import sys
from pathlib import Path

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
    return _peak_of_process()


class Gauge:
    """The most memory that is taken on a device from here on, without what was there before.

    On an accelerator that is all of torch's allocator; on a CPU it is the growth of the process, so that Python and its
    libraries are not counted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._before = psutil.Process().memory_info().rss if device.type == "cpu" else 0
        self._peak_before = peak_bytes(device) if device.type == "cpu" else 0

    def peak(self) -> int | None:
        """Bytes; None where the process had taken more before, which hides what it took since."""
        highest = peak_bytes(self.device)
        return highest - self._before if highest > self._peak_before else None


def _peak_of_process() -> int:
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    status = Path("/proc/self/status")
    if status.is_file():
        # What getrusage says is also that of the process that started this one.
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE)
        if found is not None:
            return 1024 * int(found[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
