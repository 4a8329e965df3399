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
    """On the whole evaluation set, after the last step; infinite for a run that diverged, which NaN becomes."""
    curve: tuple[tuple[int, float], ...] = ()
    """(step, loss on a fixed part of the evaluation set), steps ascending."""
    step_seconds: float | None = None
    """Seconds per step, evaluation left out. Comparable only between runs that were timed side by side."""
    measures: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else was measured."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.loss):
            object.__setattr__(self, "loss", math.inf)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: tuples are lists, and a number that is not finite is null."""
        return plain(asdict(self))

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Run:
        """The inverse of `to_dict`; a loss of null, of the run or of a point of its curve, is infinite.

        Raises:
            TypeError: a name that is no field, or a field that is missing.
            KeyError: no "curve" or no "loss".
        """
        curve = tuple((int(step), _loss(loss)) for step, loss in values["curve"])
        return Run(**{**values, "curve": curve, "loss": _loss(values["loss"])})


def _loss(value: float | None) -> float:
    return math.inf if value is None else float(value)


def plain(value: Any) -> Any:
    """A value as it comes back from a JSON file: tuples are lists, a number that is not finite is None."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def canonical(value: Any) -> str:
    """The same text for equal JSON values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """16 hexadecimal digits that name a JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]
