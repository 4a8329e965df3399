"""What a run measured on its way, read back from metrics.jsonl."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scao_hf.finetune.layout import METRICS
from scao_hf.finetune.phases import PHASES, phase_name

Points = list[tuple[float, float]]
Event = Mapping[str, Any]

PHASE = "scao/phase"


@dataclass(frozen=True, kw_only=True)
class History:
    """The events of a run by kind, each step once, steps ascending."""

    steps: Sequence[Event]
    """As `StepMetrics` names them, with the optimizer's diagnostics as `scao/...`."""
    evaluations: Sequence[Event]
    """As `EvalMetrics` names them."""
    ranks: Mapping[str, Mapping[int, float]]
    """Layer to step to active columns, mean over its sides; empty where no layer has a basis."""

    def losses(self) -> Points:
        """(step, training loss), where it is finite."""
        return self._of("loss")

    def rates(self) -> Points:
        """(step, learning rate)."""
        return self._of("learning_rate")

    def gradient_norms(self) -> Points:
        """(step, norm of the gradient before clipping), where it is finite."""
        return self._of("grad_norm")

    def held_out(self) -> Points:
        """(step, held-out loss), where it is finite."""
        return [(event["step"], event["loss"]) for event in self.evaluations if event["loss"] is not None]

    def seconds_at(self, step: float) -> float:
        """Seconds of training up to a step, evaluation left out; between two logged steps, in proportion."""
        known = [(0.0, 0.0), *((event["step"], event["elapsed_seconds"]) for event in self.steps)]
        place = bisect.bisect_left([each for each, _ in known], step)
        if place == len(known):
            return known[-1][1]
        if known[place][0] == step or place == 0:
            return known[place][1]
        (before, started), (after, ended) = known[place - 1], known[place]
        return started + (ended - started) * (step - before) / (after - before)

    def phases(self) -> list[tuple[str, float, float]]:
        """(phase of the optimizer, first step, last step) in order; empty for an optimizer without phases."""
        logged = [(event["step"], phase_name(event[PHASE])) for event in self.steps if event.get(PHASE) is not None]
        spans: list[tuple[str, float, float]] = []
        start = 0.0
        for name, group in itertools.groupby(logged, key=lambda each: each[1]):
            end = float(list(group)[-1][0])
            spans.append((name, start, end))
            start = end
        assert all(name in PHASES for name, _, _ in spans)
        return spans

    def _of(self, name: str) -> Points:
        return [(event["step"], event[name]) for event in self.steps if event.get(name) is not None]


def read_history(folder: Path) -> History:
    """The history of the run in a folder; empty if it has measured nothing.

    A run that was resumed repeats the steps between its checkpoint and its end: the later ones count. A last line that
    was cut off, as a killed process leaves it, is left out.
    """
    path = folder / METRICS
    events = list(_events(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []
    ranks: dict[str, dict[int, float]] = {}
    for event in events:
        if event["event"] == "layers":
            for layer, rank in event["ranks"].items():
                ranks.setdefault(layer, {})[event["step"]] = rank
    return History(
        steps=_by_step(event for event in events if event["event"] == "step"),
        evaluations=_by_step(event for event in events if event["event"] == "evaluation"),
        ranks=ranks,
    )


def smoothed(points: Points, span: int) -> Points:
    """Exponential moving average over about `span` points, the start at zero undone."""
    decay, total, weight, result = 1 - 2 / (span + 1), 0.0, 0.0, []
    for step, value in points:
        total = decay * total + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        result.append((step, total / weight))
    return result


def _events(lines: Sequence[str]) -> Iterable[Event]:
    for number, line in enumerate(lines):
        try:
            yield json.loads(line)
        except ValueError:
            if number + 1 < len(lines):
                raise


def _by_step(events: Iterable[Event]) -> list[Event]:
    latest = {event["step"]: event for event in events}
    return [latest[step] for step in sorted(latest)]
