"""One training run of a comparison, as plain values: what was asked for and what came of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Setting = dict[str, Any]
"""Hyperparameters by name: what a search may turn. Plain JSON values."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run. Losses are nats per target."""

    arm: str
    """Which competitor: the optimizer's name."""
    setting: Setting
    seed: int
    conditions: Mapping[str, Any]
    """What must be equal between arms at the same seed: initialisation, data order, clipping, evaluation set, schedule,
    token budget. Digests and numbers taken while the run went on, not copied from its configuration."""
    loss: float
    """On the whole evaluation set, after the last step; infinite for a run that diverged."""
    curve: tuple[tuple[int, float], ...] = ()
    """(step, loss on a fixed part of the evaluation set), steps ascending."""
    step_seconds: float | None = None
    """Seconds per step, evaluation left out. Comparable only between runs that were timed side by side."""
    measures: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else was measured."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an infinite loss is null."""
        return {**asdict(self), "loss": self.loss if math.isfinite(self.loss) else None}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Run:
        curve = tuple((int(step), float(loss)) for step, loss in values["curve"])
        loss = math.inf if values["loss"] is None else float(values["loss"])
        return Run(**{**values, "curve": curve, "loss": loss})


def canonical(value: Any) -> str:
    """The same text for equal JSON values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """16 hexadecimal digits that name a JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]
