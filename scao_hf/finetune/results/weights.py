"""Models of a run, loaded: the base that it began with, and what it trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scao_hf.finetune import model
from scao_hf.finetune.config import ModelSection, Recipe
from scao_hf.finetune.results.folder import RunFolder
from scao_hf.finetune.results.summary import recipe_of

if TYPE_CHECKING:
    import torch


def stored_recipe(run: RunFolder, dtype: str | None = None) -> Recipe:
    """What the resolved recipe says of the model, the adapter and training; it was checked when it was run.

    Args:
        run: with a resolved recipe.
        dtype: of the weights, in the place of the run's.

    Raises:
        FinetuneError: config.missing-file.
    """
    resolved = run.resolved
    data = recipe_of(run)
    section: Mapping[str, Any] = data["model"] | ({} if dtype is None else {"dtype": dtype})
    return Recipe(
        name=str(run.facts.get("recipe", run.path.name)),
        source=str(resolved),
        model=ModelSection(**section),
        quantization=data.get("quantization"),
        lora=data.get("lora"),
        training=data.get("training") or {},
    )


def load_tokenizer(run: RunFolder) -> Any:
    """The tokenizer that lies beside the trained weights."""
    return model.load_tokenizer(ModelSection(model_name_or_path=str(run.weights)), str(run.weights))


def load_base(recipe: Recipe, device: torch.device) -> Any:
    """The model as it was before training, in evaluation mode.

    Raises:
        FinetuneError: kind "model", if it is no longer where it was.
    """
    reference = model.model_reference(recipe.model)
    config = model.load_config(recipe.model, reference)
    loaded: Any = model.load_model(recipe, reference, config, device)
    return _ready(loaded, recipe, device)


def load_trained(run: RunFolder, recipe: Recipe, device: torch.device) -> Any:
    """The base with the run's adapter, or the model that the run trained whole; in evaluation mode.

    Raises:
        FinetuneError: model.no-weights; kind "model" for a base that is no longer where it was.
    """
    weights = run.weights
    if run.is_adapter:
        return add_adapter(load_base(recipe, device), run)
    section = ModelSection(model_name_or_path=str(weights), dtype=recipe.model.dtype)
    whole = Recipe(name=recipe.name, source=recipe.source, model=section, training=recipe.training)
    config = model.load_config(section, str(weights))
    return _ready(model.load_model(whole, str(weights), config, device), whole, device)


def add_adapter(base: Any, run: RunFolder) -> Any:
    """The base with the run's adapter; the base itself is changed."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(run.weights)).eval()


def _ready(loaded: Any, recipe: Recipe, device: torch.device) -> Any:
    # bitsandbytes has put a quantized model where it belongs, and refuses to have it moved.
    return (loaded if recipe.quantization is not None else loaded.to(device)).eval()


def device_for(recipe: Recipe) -> torch.device:
    """Where the run was trained, if there is such a device here."""
    return model.device_of(bool(recipe.training.get("use_cpu")))
