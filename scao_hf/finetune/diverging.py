"""Where in a model the numbers stopped being finite."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_WRAPPING = "base_model.model."
"""What PEFT puts before the names of a model's modules; it calls the layer under an adapter `base_layer`."""


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no floating-point tensor holds NaN or infinity; one synchronisation for all."""
    # The maximum norm cannot overflow, as a sum of squares could.
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not floating:
        return True
    norms = torch.stack([norm.float().to(floating[0].device) for norm in torch._foreach_norm(floating, float("inf"))])
    return bool(torch.isfinite(norms).all())


def origin_of_loss(model: nn.Module, inputs: Mapping[str, Any]) -> str:
    """Which weights, or the output of which layer, are the first that are not finite, in words.

    Args:
        model: run once more on the batch; its mode and its weights stay.
        inputs: the batch, on the model's device.
    """
    weights = [name for name, weight in model.named_parameters() if not all_finite([weight])]
    if weights:
        return f"the weights of {_listed(weights)} are not finite"
    found = _first_output(model, inputs)
    if found is None:
        return "the outputs of all layers are finite: it is the loss itself that is not"
    return f"the output of {_short(found)} is the first that is not finite"


def origin_of_gradient(model: nn.Module) -> str:
    """Which parameter's gradient is the first that is not finite on the way back from the loss, in words."""
    named = [(name, weight.grad) for name, weight in model.named_parameters() if weight.grad is not None]
    broken = [name for name, gradient in reversed(named) if not all_finite([gradient])]
    return f"on the way back from the loss it begins with {_listed(broken)}, of {len(named)} that are trained"


@torch.no_grad()
def _first_output(model: nn.Module, inputs: Mapping[str, Any]) -> str | None:
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
            parts = output if isinstance(output, tuple | list) else [output]
            if not found and not all_finite(part for part in parts if isinstance(part, Tensor)):
                found.append(name)

        return hook

    layers = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(look(name)) for name, module in layers]
    try:
        model(**_arguments(model, inputs))
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _arguments(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch the model itself takes; without labels, as only its layers are of interest."""
    wrapped: Any = model
    inner = wrapped.get_base_model() if hasattr(model, "get_base_model") else wrapped
    taken = inspect.signature(inner.forward).parameters
    return {name: value for name, value in inputs.items() if name in taken and name != "labels"}


def _listed(names: list[str]) -> str:
    others = f" and {len(names) - 1} others" if len(names) > 1 else ""
    return _short(names[0]) + others


def _short(name: str) -> str:
    return name.removeprefix(_WRAPPING).replace(".base_layer", "")
