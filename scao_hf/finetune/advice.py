"""What would do when memory ran out: the overrides to type, for the recipe at hand."""

from __future__ import annotations

from scao_hf.finetune.config import Recipe
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.schema import RENAMED, section_hints

_BATCH, _ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
_DEFAULT_BATCH = 8
"""Of transformers, for training and for evaluation."""


def out_of_memory(recipe: Recipe, reason: str, evaluating: bool) -> FinetuneError:
    """The error for memory that ran out in a step or in an evaluation.

    Args:
        recipe: of the run.
        reason: what the allocator said, one line.
        evaluating: whether it happened on held-out rows.
    """
    if evaluating:
        return FinetuneError("memory.evaluation", f"out of memory while evaluating: {reason}", _for_evaluation(recipe))
    return FinetuneError("memory.out", f"out of memory: {reason}", _for_training(recipe))


def _for_evaluation(recipe: Recipe) -> str:
    size = int(recipe.training.get("per_device_eval_batch_size") or _DEFAULT_BATCH)
    if size > 1:
        return f"training.per_device_eval_batch_size={size // 2}"
    return "hold out shorter rows: a smaller data.max_length"


def _for_training(recipe: Recipe) -> str:
    """First what leaves the run as it is, so that it can be resumed; then what makes it another one."""
    return "\n".join(["one of these, or several:", *_same_run(recipe), *_another_run(recipe)])


def _same_run(recipe: Recipe) -> list[str]:
    training = recipe.training
    batch, accumulation = int(training.get(_BATCH) or _DEFAULT_BATCH), int(training.get(_ACCUMULATION) or 1)
    told = []
    if batch > 1 and batch % 2 == 0:
        told.append(f"training.{_BATCH}={batch // 2} training.{_ACCUMULATION}={accumulation * 2}")
    elif batch > 1:
        told.append(f"training.{_BATCH}=1 training.{_ACCUMULATION}={accumulation * batch}")
    checkpointing = _checkpointing_key()
    if not training.get(checkpointing):
        told.append(f"training.{checkpointing}=true")
    return told


def _another_run(recipe: Recipe) -> list[str]:
    told = []
    if recipe.data.max_length is not None and recipe.data.max_length > 64:
        told.append(f"data.max_length={recipe.data.max_length // 2} (from the start)")
    if recipe.lora is None:
        told.append("lora.r=16 lora.target_modules=all-linear (from the start: an adapter instead of all weights)")
    elif recipe.quantization is None:
        told.append("quantization.load_in_4bit=true (from the start)")
    return told


def _checkpointing_key() -> str:
    name = "gradient_checkpointing"
    return name if name in section_hints("training") else RENAMED[name]
