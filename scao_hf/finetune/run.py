"""One fine-tuning run: from a recipe to a saved adapter or model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scao_hf.finetune.config import Recipe
from scao_hf.finetune.observer import Observer


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """What a finished run came to. Losses are nats per supervised token on the held-out rows."""

    recipe: str
    output_dir: Path
    saved_dir: Path
    """`output_dir/adapter` (LoRA) or `output_dir/model`."""
    is_adapter: bool
    optimizer: str
    initial_eval_loss: float | None
    """None when the recipe holds out no rows."""
    final_eval_loss: float | None
    initial_perplexity: float | None
    final_perplexity: float | None
    train_loss: float
    """Mean over all steps."""
    steps: int
    epochs: float
    train_seconds: float
    """Seconds of training steps; loading, evaluation and saving left out."""
    tokens: int
    trainable_parameters: int
    total_parameters: int
    optimizer_state_bytes: int
    sample_prompt: str | None
    sample_before: str | None
    sample_after: str | None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


def finetune(recipe: Recipe, observer: Observer | None = None, *, overwrite: bool = False) -> FinetuneReport:
    """Fine-tune as the recipe says; see `FinetuneReport` for what comes back.

    Args:
        recipe: from `load_recipe`.
        observer: told of every stage, step and evaluation; silent by default.
        overwrite: replace an existing, non-empty `training.output_dir` instead of refusing it.

    Raises:
        FinetuneError: anything the user can answer; `exit_code` says of which kind.
        Interrupted: Ctrl-C or SIGTERM, after the step in hand was finished and a checkpoint saved.
    """
    raise NotImplementedError
