"""Runs in a line each, one run in full, and two runs side by side; no library is loaded for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scao_hf.finetune.results.folder import RunFolder
from scao_hf.finetune.results.history import read_history
from scao_hf.finetune.results.summary import recipe_of

RESULTS = (
    "initial_eval_loss",
    "final_eval_loss",
    "final_perplexity",
    "train_loss",
    "steps",
    "tokens",
    "train_seconds",
    "optimizer_state_bytes",
)
"""What two runs are compared by, as `FinetuneReport` names it."""
_ELSEWHERE = ("training.output_dir", "measured", "description")
"""Settings that say nothing of what a run computes."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A run in the list."""

    name: str
    path: str
    status: str
    recipe: str | None
    model: str | None
    optimizer: str | None
    learning_rate: float | None
    step: int
    """The last one that was logged."""
    total_steps: int | None
    eval_loss: float | None
    """The last one measured."""
    train_loss: float | None
    """The last one logged."""
    seconds: float | None
    started: str | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def line_of(run: RunFolder) -> Line:
    """How a run stands, from its record and its metrics."""
    history, info = read_history(run.path), run.info
    last: Mapping[str, Any] = history.steps[-1] if history.steps else {}
    held_out = history.held_out()
    return Line(
        name=run.name,
        path=str(run.path),
        status=run.status,
        recipe=run.facts.get("recipe"),
        model=info.get("model"),
        optimizer=info.get("optimizer"),
        learning_rate=info.get("learning_rate"),
        step=run.report.get("steps") or last.get("step", 0),
        total_steps=info.get("total_steps"),
        eval_loss=held_out[-1][1] if held_out else None,
        train_loss=last.get("loss"),
        seconds=run.report.get("train_seconds") or last.get("elapsed_seconds"),
        started=run.facts.get("started"),
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two runs: the settings that differ, and all results; a missing setting or result is None."""

    first: RunFolder
    second: RunFolder
    settings: Mapping[str, tuple[Any, Any]]
    """"section.key" to the values of the first and the second run."""
    results: Mapping[str, tuple[Any, Any]]
    same_data: bool
    """Whether both read the same rows; a difference of losses means little where they did not."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "runs": [str(self.first.path), str(self.second.path)],
            "settings": {key: list(values) for key, values in self.settings.items()},
            "results": {key: list(values) for key, values in self.results.items()},
            "same_data": self.same_data,
        }


def difference(first: RunFolder, second: RunFolder) -> Difference:
    """What was set differently in two runs, what came of each, and in which versions."""
    settings = _differing(_flat(recipe_of(first)), _flat(recipe_of(second)))
    versions = _differing(
        *({f"version of {k}": v for k, v in (r.facts.get("versions") or {}).items()} for r in (first, second))
    )
    fingerprints = [(run.facts.get("data") or {}).get("fingerprint") for run in (first, second)]
    return Difference(
        first=first,
        second=second,
        settings=settings | versions,
        results={name: (first.report.get(name), second.report.get(name)) for name in RESULTS},
        same_data=None not in fingerprints and fingerprints[0] == fingerprints[1],
    )


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as "section.key" to value."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = [key for key in dict.fromkeys((*first, *second)) if key not in _ELSEWHERE]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}
