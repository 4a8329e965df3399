"""What a run tells whoever watches it: one protocol, and plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """All that is settled before the first step."""

    recipe: str
    output_dir: Path
    model: str
    dataset: str
    dataset_format: str
    loss_on: str
    """"all", "completion" or "assistant": the tokens that the loss counts."""
    device: str
    dtype: str
    optimizer: str
    learning_rate: float
    train_rows: int | None
    """None for a stream, whose rows nobody has counted; likewise `epochs`."""
    eval_rows: int
    rows_per_step: int
    total_steps: int
    epochs: float | None
    trainable_parameters: int
    total_parameters: int
    lr_warmup_steps: int
    adam_steps: int | None
    """Steps of plain Adam that one of this package's optimizers begins with; None for any other optimizer."""
    funnel: Mapping[str, int]
    """Rows left after each stage of reading, in order: read, parsed, formatted, ...; empty for a stream."""


def rows_in_words(train_rows: int | None) -> str:
    """`812 rows to train on`, or that nobody has counted them."""
    return "rows streamed" if train_rows is None else f"{train_rows} rows to train on"


def steps_in_words(total_steps: int, rows_per_step: int, epochs: float | None) -> str:
    """`60 of 8 rows (0.591 epochs)`; of a stream without the epochs."""
    return f"{total_steps} of {rows_per_step} rows" + ("" if epochs is None else f" ({epochs:.3g} epochs)")


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One logging step. Losses are nats per supervised token; times are seconds of training, evaluation left out."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None
    tokens: int
    tokens_per_second: float
    elapsed_seconds: float
    eta_seconds: float
    scao: Mapping[str, float] = field(default_factory=dict)
    """The optimizer's diagnostics (phase, blend, rank_mean, ...) without the "scao/" before their names."""
    memory_bytes: int | None = None
    """Most memory that the run has had on its device so far; of the whole process on a CPU."""


@dataclass(frozen=True, kw_only=True)
class EvalMetrics:
    """One evaluation on the held-out rows; `moment` is "before", "during" or "after" training."""

    moment: str
    step: int
    loss: float
    perplexity: float
    tokens: int
    seconds: float


class Observer(Protocol):
    """Called by `finetune` as the run goes on; every method here does nothing, so override what you want to show."""

    def stage(self, text: str) -> None:
        """A piece of work without steps begins, such as "loading the model"."""
        return

    def begin(self, info: RunInfo) -> None:
        """Everything is loaded and checked; evaluation and training come next."""
        return

    def step(self, metrics: StepMetrics) -> None:
        """A logging step (every `training.logging_steps`)."""
        return

    def evaluated(self, metrics: EvalMetrics) -> None:
        """An evaluation ended."""
        return

    def saved(self, path: Path) -> None:
        """A checkpoint, the adapter or the model lies complete under `path`."""
        return

    def notice(self, text: str) -> None:
        """Something the user should know and need not answer."""
        return


class Silence(Observer):
    """An observer that shows nothing."""
