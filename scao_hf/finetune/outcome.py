"""What a run came to, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scao_hf.finetune.observer import RunInfo


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
    stopped_early: bool = False
    """Whether `training.early_stopping_patience` ended the run before its last step."""
    best_step: int | None = None
    """Step with the best `training.metric_for_best_model`; None where that is not looked at."""
    best_metric: float | None = None
    best_checkpoint: Path | None = None
    """Where the best step was saved; with `training.load_best_model_at_end` its weights are the saved ones."""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}

    def _repr_html_(self) -> str:
        """The report as a table, for notebooks."""
        from scao_hf.finetune.tables import html_table
        from scao_hf.finetune.units import byte_size, count, counted, duration

        def shown(value: float | None) -> str:
            return "-" if value is None else f"{value:.3f}"

        rows = [
            ("held-out loss", f"{shown(self.initial_eval_loss)} before, {shown(self.final_eval_loss)} after"),
            ("perplexity", f"{shown(self.initial_perplexity)} before, {shown(self.final_perplexity)} after"),
            ("trained", f"{count(self.trainable_parameters)} of {count(self.total_parameters)} parameters"),
            ("optimizer state", byte_size(self.optimizer_state_bytes)),
            ("saved", str(self.saved_dir)),
        ]
        samples = (("prompt", self.sample_prompt), ("before", self.sample_before), ("after", self.sample_after))
        rows += [(name, text) for name, text in samples if text is not None]
        work = f"{counted(self.steps, 'step')} of {self.optimizer} in {duration(self.train_seconds)}"
        return html_table(rows, caption=f"{self.recipe}: {work}")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a run came to of which nothing else is kept. Losses are nats per supervised token on the held-out rows."""

    info: RunInfo
    loss: float
    """After the last step; infinite for a run that diverged."""
    curve: tuple[tuple[int, float], ...]
    """(step, loss), from step 0 on, as far as it is finite."""
    conditions: Mapping[str, Any]
    """See `Witness.conditions`."""
    step_seconds: float
    """Seconds of training per step, evaluation left out."""
    optimizer_state_bytes: int
    diverged_at: int | None
    """The step in which a number was not finite."""
