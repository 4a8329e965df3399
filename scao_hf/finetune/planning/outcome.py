"""A plan as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scao_hf.finetune.observer import RunInfo
from scao_hf.finetune.tables import html_table


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Lengths of the training rows, as they will be given to the model, in tokens."""

    rows: int
    """Rows that these figures are of."""
    sampled: bool
    """Whether they are the first rows of a stream, which has more."""
    median: int
    percentile_95: int
    longest: int
    total: int
    supervised: int
    """Tokens that the loss counts."""
    full_rows: int
    """Rows of exactly `data.max_length` tokens: cut there, or packed."""

    @property
    def supervised_share(self) -> float:
        return self.supervised / max(1, self.total)

    @property
    def mean(self) -> float:
        return self.total / max(1, self.rows)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device. Weights, gradients and optimizer are counted, activations are estimated."""

    weights: int
    gradients: int
    optimizer: int | None
    """State of the recipe's optimizer; None where this package cannot tell it without training."""
    adamw: int
    """State of AdamW for the same parameters."""
    activations: int | None
    """Of the longest micro-batch: what autograd keeps, and the gradient of the largest of it; None for a model whose
    steps depend on values, as the routing of experts may."""
    device: str
    available: int
    """What the device has free now."""

    @property
    def total(self) -> int:
        """All that is known; AdamW's state stands in for one that is not."""
        state = self.adamw if self.optimizer is None else self.optimizer
        return self.weights + self.gradients + state + (self.activations or 0)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self) | {"total": self.total}


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that the run will write, and what the folder's device has free."""

    checkpoint: int
    checkpoints: int
    """Most checkpoints that lie there at one time."""
    saved: int
    """The adapter or the model at the end."""
    available: int

    @property
    def total(self) -> int:
        return self.checkpoint * self.checkpoints + self.saved


@dataclass(frozen=True, kw_only=True)
class Caution:
    """Something that will not stop the run and should be known before it starts."""

    code: str
    message: str
    hint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What real steps on the longest rows took; the optimizer was preconditioning in them."""

    steps: int
    step_seconds: float
    """Of the last one: the first step of a process also allocates and compiles."""
    tokens_per_second: float
    run_seconds: float
    """All steps of the run at that pace, evaluation and saving left out."""
    peak_bytes: int | None
    """Peak of the allocator on an accelerator; on a CPU, growth of the process from before the weights to its peak, and
    None where it had been larger before."""
    optimizer_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that can be said of a run before any weight is loaded."""

    info: RunInfo
    tokens: Tokens
    memory: Memory
    disk: Disk
    blend_steps: int | None
    """Steps over which SCAO's preconditioning grows to its whole strength; None for an optimizer without it."""
    overrides: tuple[str, ...]
    notices: tuple[str, ...]
    cautions: tuple[Caution, ...]
    probe: Probe | None

    @property
    def run_tokens(self) -> float:
        """Tokens that all steps of the run are given, if its rows are as long as these on the whole."""
        return self.info.total_steps * self.info.rows_per_step * self.tokens.mean

    @property
    def preconditioned_from(self) -> int | None:
        """The first step that is preconditioned; None if none will be."""
        first = self.info.adam_steps
        return None if first is None or first >= self.info.total_steps else first + 1

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, for JSON."""
        values = _plain(asdict(self))
        values["memory"] = self.memory.to_dict()
        values["disk"]["total"] = self.disk.total
        values["tokens"]["supervised_share"] = self.tokens.supervised_share
        return values | {"preconditioned_from": self.preconditioned_from, "run_tokens": self.run_tokens}

    def __str__(self) -> str:
        from scao_hf.finetune.planning.rows import rows

        return "\n".join(f"{name:<11}{text}" for name, text in rows(self))

    def _repr_html_(self) -> str:
        """The plan as a table, for notebooks."""
        from scao_hf.finetune.planning.rows import rows

        return html_table(rows(self))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
