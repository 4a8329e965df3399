"""What the memory of a run went to, measured at its end."""

from __future__ import annotations

from typing import Any

import torch

from scao_hf.finetune.devices import peak_bytes


def footprint(model: torch.nn.Module, optimizer_bytes: int, device: torch.device) -> dict[str, Any]:
    """Bytes by what they are for, for run.json.

    Args:
        model: what was trained, with its adapter.
        optimizer_bytes: of the optimizer's state.
        device: where it was trained.

    Returns:
        weights, gradients (one for each trained parameter, in its dtype), optimizer, peak and peak_of. On a GPU the
        peak is that of torch's allocator, on a CPU that of the whole process, Python and libraries included.
    """
    parameters = list(model.parameters())
    return {
        "weights": sum(map(_bytes, parameters)),
        "gradients": sum(_bytes(parameter) for parameter in parameters if parameter.requires_grad),
        "optimizer": optimizer_bytes,
        "peak": peak_bytes(device),
        "peak_of": "the process" if device.type == "cpu" else "torch's allocator",
    }


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
