"""The model of a run on the meta device, with what the trainer has made of it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model

from scao_hf.finetune import model as models
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.ledger import random_state, set_random_state

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def shapes_of(trained: Any, recipe: Recipe, config: PretrainedConfig, device: torch.device) -> Any:
    """A model of the shapes and dtypes of one that is about to be trained, without its memory.

    Quantized layers come as the plain ones that they were made of. No random number is used up.

    Args:
        trained: the trainer's model, which may have an adapter and tokens that the configuration does not know of.
        recipe: of the run.
        config: of the model.
        device: where it is trained.
    """
    before = random_state(device)
    try:
        shapes = _laid_out(trained, recipe, config, device)
    finally:
        set_random_state(before, device)
    held = dict(trained.named_parameters())
    for name, parameter in shapes.named_parameters():
        parameter.requires_grad_(held[name].requires_grad)
        if parameter.requires_grad:
            parameter.data = parameter.data.to(held[name].dtype)
    return shapes


def _laid_out(trained: Any, recipe: Recipe, config: PretrainedConfig, device: torch.device) -> Any:
    shapes: Any = models.shapes_only(recipe, config, device)
    vocabulary = trained.get_input_embeddings().weight.shape[0]
    if vocabulary != shapes.get_input_embeddings().weight.shape[0]:
        shapes.resize_token_embeddings(vocabulary, mean_resizing=False)
    if not isinstance(trained, PeftModel):
        return shapes
    return adapted(shapes, trained.active_peft_config)


def adapted(shapes: Any, adapter: Any) -> Any:
    """A model on the meta device with an adapter of this configuration."""
    adapter = copy.copy(adapter)
    adapter.init_lora_weights = True  # Some starts decompose the weights, which are not there.
    return get_peft_model(shapes, adapter)
