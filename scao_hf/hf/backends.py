"""Which ways of distributing a model the optimizers work with: one device and DDP, and nothing that shards."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments


class UnsupportedBackendError(RuntimeError):
    """The parameters are, or will be, sharded or flattened, so that no matrix is left to precondition."""

    def __init__(self, name: str, found: str) -> None:
        super().__init__(
            f"optim={name!r} cannot train with {found}: the optimizer would get shards instead of whole matrices and "
            f"silently do without preconditioning; a single device and DDP (torchrun without sharding) work"
        )


def refuse_sharding(name: str, args: TrainingArguments, model: nn.Module | None) -> None:
    """Raise UnsupportedBackendError if the arguments, the launcher or the model say DeepSpeed, FSDP or DTensor."""
    found = _in_arguments(args) or _in_launcher() or (_in_model(model) if model is not None else None)
    if found:
        raise UnsupportedBackendError(name, found)


def _in_arguments(args: TrainingArguments) -> str | None:
    if args.deepspeed:
        return "DeepSpeed (TrainingArguments.deepspeed is set)"
    if args.fsdp:
        return f"FSDP (TrainingArguments.fsdp is {args.fsdp!r})"
    return None


def _in_launcher() -> str | None:
    """What `accelerate launch` was configured for, told by its environment and, once built, by its state."""
    from accelerate.state import AcceleratorState

    for variable, backend in (("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_FSDP", "FSDP")):
        if os.environ.get(variable, "false").lower() in ("1", "true", "yes"):
            return f"{backend} ({variable} is set)"
    kind = AcceleratorState._shared_state.get("distributed_type")
    value = getattr(kind, "value", kind)
    return f"{value} (accelerate's distributed_type)" if value in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "TP") else None


def _in_model(model: nn.Module) -> str | None:
    if not distributed.is_available():
        return None
    from torch.distributed.fsdp import FullyShardedDataParallel

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return "FSDP1 (the model is wrapped in FullyShardedDataParallel)"
    return _in_parameters(model.parameters())


def _in_parameters(parameters: Iterable[Tensor]) -> str | None:
    from torch.distributed.fsdp import FlatParameter
    from torch.distributed.tensor import DTensor

    for parameter in parameters:
        if isinstance(parameter, FlatParameter):
            return "FSDP1 (the model has flat parameters)"
        if isinstance(parameter, DTensor):
            return "FSDP2 or tensor parallelism (the model has DTensor parameters)"
        if hasattr(parameter, "ds_id"):
            return "DeepSpeed ZeRO-3 (the model has partitioned parameters)"
    return None
