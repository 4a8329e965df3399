"""The trained parameters of models that people train, in their real shapes.

A model is built on the meta device, where nothing is stored; `with_random_weights` then gives storage to what trains.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from scao_hf import parameter_groups

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LAYER = re.compile(r"\.(?:h|layers)\.\d+\.")
"""In the name of every parameter of a transformer layer."""
SEED = 0


class NamedShape(NamedTuple):
    name: str
    shape: tuple[int, ...]
    kind: str
    """Of its parameter group."""


@dataclass(frozen=True)
class Architecture:
    """A model's dimensions.

    Args:
        title: as tables and figures call it.
        num_layers: transformer layers.
        build: from a number of layers to the model; called under the meta device.
        lora: whether only LoRA factors are trained.
    """

    title: str
    num_layers: int
    build: Callable[[int], nn.Module]
    lora: bool = False

    def model(self, num_layers: int | None = None) -> nn.Module:
        """The model without weights; `num_layers` instead of all."""
        with torch.device("meta"):
            return self.build(num_layers or self.num_layers)


def _gpt2(num_layers: int, **dimensions: Any) -> nn.Module:
    from transformers import GPT2Config

    return _causal(GPT2Config(n_layer=num_layers, **dimensions))


def _qwen3(num_layers: int) -> nn.Module:
    return _causal(_qwen3_config(num_layers, hidden_size=1024, intermediate_size=3072, heads=16, tied=True))


def _qwen3_8b_lora(num_layers: int, rank: int) -> nn.Module:
    config = _qwen3_config(num_layers, hidden_size=4096, intermediate_size=12_288, heads=32, tied=False)
    return _with_lora(config, rank)


def _qwen3_config(
    num_layers: int, hidden_size: int, intermediate_size: int, heads: int, tied: bool
) -> PreTrainedConfig:
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=151_936,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=tied,
    )


def _llama3_lora(num_layers: int, rank: int) -> nn.Module:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=num_layers,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    return _with_lora(config, rank)


def _with_lora(config: PreTrainedConfig, rank: int) -> nn.Module:
    """LoRA on all linear layers but the head."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(_causal(config), LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))


def _causal(config: PreTrainedConfig) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config)


def _matrix(num_layers: int, rows: int, columns: int) -> nn.Module:
    layers = nn.ModuleList(nn.Linear(columns, rows, bias=False) for _ in range(num_layers))
    return nn.ModuleDict({"only": nn.ModuleDict({"layers": layers})})


ARCHITECTURES = {
    "wide": Architecture("one 768×3072 matrix", 1, partial(_matrix, rows=768, columns=3072)),
    "tall": Architecture("one 3072×768 matrix", 1, partial(_matrix, rows=3072, columns=768)),
    "gpt2": Architecture("GPT-2 small", 12, _gpt2),
    "gpt2-medium": Architecture("GPT-2 medium", 24, partial(_gpt2, n_embd=1024, n_head=16)),
    "qwen3-0.6b": Architecture("Qwen3-0.6B", 28, _qwen3),
    "llama3-8b-lora": Architecture("Llama-3-8B, LoRA r=16", 32, partial(_llama3_lora, rank=16), lora=True),
    "qwen3-8b-lora": Architecture("Qwen3-8B, LoRA r=16", 36, partial(_qwen3_8b_lora, rank=16), lora=True),
}


def shapes_of(model_name: str) -> list[NamedShape]:
    """The trained parameters of a model, each once, as `scao_hf.parameter_groups` sees them."""
    groups = parameter_groups(ARCHITECTURES[model_name].model())
    return [NamedShape(name, tuple(p.shape), group["kind"]) for group in groups for name, p in group["params"]]


def freeze(model: nn.Module, in_layers: bool) -> None:
    """Train no longer what is in the transformer layers, or what is outside of them."""
    for name, parameter in model.named_parameters():
        if (LAYER.search(name) is not None) == in_layers:
            parameter.requires_grad_(False)


def with_random_weights(model: nn.Module, device: torch.device) -> nn.Module:
    """Give every trained parameter random weights and a random gradient, in place; tied ones stay one."""
    generator = torch.Generator(device).manual_seed(SEED)
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            if not old.requires_grad:
                continue
            if id(old) not in made:
                made[id(old)] = nn.Parameter(0.02 * torch.randn(old.shape, device=device, generator=generator))
                made[id(old)].grad = torch.randn(old.shape, device=device, generator=generator)
            setattr(module, name, made[id(old)])
    return model
