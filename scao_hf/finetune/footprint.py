"""What the memory of a run went to, measured at its end."""

from __future__ import annotations

from typing import Any

import torch

from scao_hf.finetune.devices import Gauge


def footprint(model: torch.nn.Module, optimizer_bytes: int, gauge: Gauge) -> dict[str, Any]:
    """Bytes by what they are for, for run.json.

    Args:
        model: what was trained, with its adapter.
        optimizer_bytes: of the optimizer's state.
        gauge: made before the model was loaded.

    Returns:
        weights, gradients (one for each trained parameter, in its dtype), optimizer, peak and peak_of; see `Gauge`.
    """
    return shares(model, optimizer_bytes) | {
        "peak": gauge.peak(),
        "peak_of": peak_of(gauge.device),
    }


def peak_of(device: torch.device) -> str:
    """Whose memory a peak on the device is."""
    return "the process" if device.type == "cpu" else "torch's allocator"


def shares(model: torch.nn.Module, optimizer_bytes: int) -> dict[str, Any]:
    """Bytes of weights, gradients (one for each trained parameter, in its dtype) and optimizer."""
    return {
        "weights": held_bytes(model),
        "gradients": trainable_bytes(model),
        "optimizer": optimizer_bytes,
    }


def held_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers, as they are."""
    return sum(map(tensor_bytes, [*model.parameters(), *model.buffers()]))


def trainable_bytes(model: torch.nn.Module) -> int:
    """Bytes of the trainable parameters, which are also those of their gradients."""
    return sum(tensor_bytes(parameter) for parameter in model.parameters() if parameter.requires_grad)


def parameter_counts(model: Any) -> tuple[int, int]:
    """Trainable parameters and all parameters; a quantized matrix counts its original elements."""
    sizes = [(parameter, _elements(parameter)) for parameter in model.parameters()]
    return sum(size for parameter, size in sizes if parameter.requires_grad), sum(size for _, size in sizes)


def _elements(parameter: torch.Tensor) -> int:
    # bitsandbytes packs two 4-bit values into a byte and keeps the shape they had.
    quantized = getattr(parameter, "quant_state", None)
    return parameter.numel() if quantized is None else int(quantized.shape.numel())


def state_bytes(optimizer: Any) -> int:
    """Bytes of all tensors in an optimizer's state; a view counts its own elements."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    held = (value for state in optimizer.state.values() for value in state.values())
    return sum(tensor_bytes(value) for value in held if isinstance(value, torch.Tensor))


def tensor_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
