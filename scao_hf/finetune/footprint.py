"""What the memory of a run went to, measured at its end."""

from __future__ import annotations

import sys
from typing import Any

import torch


def footprint(model: torch.nn.Module, optimizer_bytes: int, device: torch.device) -> dict[str, Any]:
    """Bytes by what they are for, for run.json.

    Args:
        model: what was trained, with its adapter.
        optimizer_bytes: of the optimizer's state.
        device: where it was trained.

    Returns:
        weights, gradients (one for each trained parameter, in its dtype), optimizer, peak and peak_of. On a GPU the
        peak is that of torch's allocator, on a CPU that of the whole process, Python and libraries included; None
        where the system does not tell it.
    """
    parameters = list(model.parameters())
    peak, peak_of = _peak(device)
    return {
        "weights": sum(map(_bytes, parameters)),
        "gradients": sum(_bytes(parameter) for parameter in parameters if parameter.requires_grad),
        "optimizer": optimizer_bytes,
        "peak": peak,
        "peak_of": peak_of,
    }


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _peak(device: torch.device) -> tuple[int | None, str]:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "torch's allocator"
    try:
        import resource
    except ImportError:  # Windows has no such module.
        return None, "the process"
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest * (1 if sys.platform == "darwin" else 1024), "the process"
