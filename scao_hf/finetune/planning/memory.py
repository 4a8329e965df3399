"""Bytes of weights, gradients, optimizer state and activations of a model on the meta device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from scao_hf.finetune import settings
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.footprint import held_bytes, tensor_bytes, trainable_bytes
from scao_hf.finetune.planning.outcome import Memory
from scao_hf.hf.arguments import optimizer_and_kwargs, optimizer_name
from scao_hf.hf.options import OPTIMIZERS

ADAMW = frozenset({"adamw_torch", "adamw_torch_fused"})
"""Names whose state is two tensors like the parameter, and a step count in float32."""

_STEP_BYTES = 4

# bitsandbytes: a float32 maximum for every 64 weights; with double quantization an 8-bit one, and a float32 for 256 of
# those. LLM.int8 keeps one float32 scale a row, which is left out.
_FOUR_BIT, _FOUR_BIT_TWICE, _EIGHT_BIT = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256), 1.0

_FUSED, _EAGER = "planned_fused_attention", "planned_eager_attention"


def memory_of(recipe: Recipe, args: Any, shapes: Any, longest: int, device: torch.device, available: int) -> Memory:
    """What a run takes on its device.

    Args:
        recipe: of the run.
        args: its TrainingArguments.
        shapes: its model, with its adapter, on the meta device; its dtype may be changed.
        longest: tokens of the longest row.
        device: of the run.
        available: bytes that the device has free before the run.
    """
    return Memory(
        weights=weight_bytes(shapes, recipe.quantization),
        gradients=trainable_bytes(shapes),
        optimizer=optimizer_bytes(args, shapes),
        adamw=adamw_bytes(shapes),
        device=str(device),
        available=available,
        activations=activation_bytes(
            shapes,
            args.per_device_train_batch_size,
            longest,
            checkpointing=settings.checkpoints_activations(args),
            autocast=bool(args.bf16),
        ),
    )


def weight_bytes(model: nn.Module, quantization: Mapping[str, Any] | None) -> int:
    """Bytes of all parameters and buffers; linear layers but the head count as bitsandbytes keeps them."""
    if quantization is None:
        return held_bytes(model)
    tensors = [*model.parameters(), *model.buffers()]
    packed = {id(tensor) for tensor in _quantized(model)}
    per_weight = _quantized_bytes(quantization)
    return round(
        sum(tensor.numel() * per_weight if id(tensor) in packed else tensor_bytes(tensor) for tensor in tensors)
    )


def cast_adapter(model: nn.Module) -> None:
    """Make the trainable parameters bfloat16, as TRL does with the adapter of a quantized model."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def optimizer_bytes(args: Any, model: nn.Module) -> int | None:
    """Bytes of the optimizer's state after its first step; None for an optimizer that this package does not know.

    Args:
        args: TrainingArguments with `optim` and `optim_args` as the run will have them.
        model: with its adapter; may lie on the meta device.
    """
    name = optimizer_name(args)
    if name in OPTIMIZERS:
        cls, options = optimizer_and_kwargs(args, model)
        params = options.pop("params")
        return cls.state_bytes(params, **options)  # type: ignore[attr-defined]
    return adamw_bytes(model) if name in ADAMW else None


def adamw_bytes(model: nn.Module) -> int:
    """Bytes of torch.optim.AdamW's state: two moments in the parameter's dtype, and its step count."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return sum(2 * tensor_bytes(parameter) + _STEP_BYTES for parameter in trained)


def activation_bytes(model: Any, rows: int, length: int, *, checkpointing: bool, autocast: bool) -> int | None:
    """What autograd keeps of a micro-batch of `rows` times `length` tokens, and the gradient of the largest of it.

    A forward pass on the meta device, in which every tensor saved for the backward pass is counted once. Attention
    counts as a fused kernel does, which keeps its inputs and its output, unless the model's is "eager". A checkpointed
    layer keeps its input, and one layer at a time keeps everything. None for a model whose steps depend on values.

    Args:
        model: causal language model on the meta device; its dtype is changed where `autocast` is given.
        autocast: whether the run computes in bfloat16 on float32 weights; each of them then has a copy.
    """
    copies = 0
    if autocast:
        copies = sum(p.numel() * 2 for p in model.parameters() if p.dtype == torch.float32 and p.ndim >= 2)
        model.to(torch.bfloat16)
    model.train()
    if checkpointing:
        # The name changed in transformers 5.
        getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
    count = _Count(model)
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    try:
        with _autocast_without_device(), _attention_without_values(model), count.counting():
            model(input_ids=ids, labels=ids, use_cache=False)
    except RuntimeError:  # What torch raises where a meta tensor's values are asked for.
        return None
    kept = count.outside + (count.checkpointed if checkpointing else sum(count.layers.values()))
    return kept + count.largest + copies


class _Count:
    """Bytes saved for the backward pass, each storage once, by the layer that saved them."""

    def __init__(self, model: nn.Module) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        self.model = model
        self.checkpointable = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        self.layers: dict[int, int] = {}
        self.inputs: dict[int, int] = {}
        self.outside = 0
        self.largest = 0
        self._layer: int | None = None
        self._seen = {_storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}
        self._alive: list[Tensor] = []

    @property
    def checkpointed(self) -> int:
        """Of checkpointed layers: the input of each, and all of the largest one."""
        return sum(self.inputs.values()) + max(self.layers.values(), default=0)

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for module in self.checkpointable:
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
                stack.callback(module.register_forward_hook(self._leave).remove)
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor))
            yield

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._layer = id(module)
        self.layers.setdefault(self._layer, 0)
        self.inputs[self._layer] = sum(tensor_bytes(value) for value in inputs if isinstance(value, Tensor))

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._layer = None

    def _save(self, tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if key not in self._seen:
            self._seen.add(key)
            self._alive.append(tensor)  # so that no other storage gets the same address
            size = tensor.untyped_storage().nbytes()
            self.largest = max(self.largest, size)
            if self._layer is None:
                self.outside += size
            else:
                self.layers[self._layer] += size
        return tensor


class _KeepsInputsAndOutput(torch.autograd.Function):
    """Stands for a fused attention kernel; only its shapes and what it saves are of interest."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query[..., : value.shape[-1]])
        context.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        raise AssertionError("a plan has no backward pass")


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_args: Any, **_options: Any
) -> tuple[Tensor, None]:
    return _KeepsInputsAndOutput.apply(query, key, value).transpose(1, 2), None


def _attend_eagerly(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_args: Any, **_options: Any
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    probabilities = torch.softmax(query @ key.mT, dim=-1)
    return (probabilities @ value).transpose(1, 2), None


@contextlib.contextmanager
def _attention_without_values(model: Any) -> Iterator[None]:
    """Within it, a model whose attention can be exchanged attends on shapes alone, and keeps what its own would.

    Masks are made from values, which the meta device has none of, and are not made for an attention of another name.
    """
    from transformers import AttentionInterface

    before = model.config._attn_implementation
    AttentionInterface.register(_FUSED, _attend)
    AttentionInterface.register(_EAGER, _attend_eagerly)
    try:
        model.set_attn_implementation(_EAGER if before == "eager" else _FUSED)
    except ValueError:  # An architecture with an attention of its own.
        yield
        return
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextlib.contextmanager
def _autocast_without_device() -> Iterator[None]:
    """Within it, autocast can be switched off for the meta device, as models in transformers before 5 do."""
    autocast: Any = torch.autocast

    def without_meta(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu" if device_type == "meta" else device_type, *args, **kwargs)

    with mock.patch.object(torch, "autocast", without_meta):
        yield


def _quantized(model: Any) -> Iterator[Tensor]:
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and "lora_" not in name:
            yield module.weight


def _quantized_bytes(quantization: Mapping[str, Any]) -> float:
    if quantization.get("load_in_8bit"):
        return _EIGHT_BIT
    return _FOUR_BIT_TWICE if quantization.get("bnb_4bit_use_double_quant") else _FOUR_BIT


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
