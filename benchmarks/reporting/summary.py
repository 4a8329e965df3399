"""Everything that is said about a study, as plain values: the rows of its tables and what they were made with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.reporting.recorded import Recorded
from benchmarks.reporting.tables import (
    Cost,
    Difference,
    FinalLoss,
    Reach,
    Search,
    baseline_targets,
    costs,
    differences,
    final_losses,
    reaches,
    search_of,
    targets_per_step,
)
from benchmarks.tasks.texts import ORIGINS
from scao_hf.finetune.comparison.protocol import LEAST_SEEDS, Comparison
from scao_hf.finetune.comparison.runs import Run

SUBJECT = "scao"
"""The optimizer that is compared with each of the others, beside the baseline with each."""
PUBLISHED_PERPLEXITIES = (19.50, 15.00, 14.10, 13.50, 13.00, 12.50, 12.20, 12.03)
"""Targets of the published time-to-quality table, for the model of a million parameters."""


@dataclass(frozen=True)
class Provenance:
    """What the runs of a study were made with."""

    study: str
    task: str
    options: Mapping[str, Any]
    data: str
    """"hub" or "local"."""
    text: str
    """A sentence on the text and how it was split."""
    target: str
    """What is predicted, and the loss is the mean over: "byte", say."""
    extras: tuple[str, ...]
    """Optimizers that are no part of the study's definition."""
    device: str
    tuning_seed: int | None
    """None where nothing was tuned."""
    confirmations: int
    """How many of the best trials of each were run on the further tuning seeds as well."""
    confirmation_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    environments: tuple[Mapping[str, Any], ...]
    """The different ones among the runs."""
    timing_environment: Mapping[str, Any] | None


@dataclass(frozen=True)
class Size:
    """Of the model and of a run."""

    parameters: int
    trained_parameters: int
    steps: int
    targets_per_step: float


@dataclass(frozen=True)
class Summary:
    """All tables of a study. Lists of rows are empty where nothing is complete."""

    provenance: Provenance
    size: Size | None
    losses: Sequence[FinalLoss]
    subject_differences: Sequence[Difference]
    time_to_baseline: Sequence[Reach]
    time_to_published: Mapping[float, Sequence[Reach]]
    """By perplexity."""
    costs: Sequence[Cost]
    searches: Sequence[Search]
    outside: Sequence[FinalLoss]
    """Competitors with a schedule of their own, which are compared with nobody."""
    left_out: Mapping[str, str]

    @property
    def supports_claims(self) -> bool:
        return len(self.provenance.seeds) >= LEAST_SEEDS

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, six digits; what is not finite is null."""
        return _plain({**asdict(self), "supports_claims": self.supports_claims})


def summarise(recorded: Recorded) -> Summary:
    """Draw up every table of a study."""
    comparison, outside = recorded.comparison, recorded.outside
    times = recorded.timing.arms if recorded.timing else {}
    finals = [run for each in (comparison, outside) if each for entry in each.entries.values() for run in entry.finals]
    complete = [name for each in (comparison, outside) if each for name in each.entries]
    return Summary(
        provenance=_provenance(recorded),
        size=_size(finals[0]) if finals else None,
        losses=final_losses(comparison) if comparison else [],
        subject_differences=differences(comparison, SUBJECT) if comparison else [],
        time_to_baseline=_to_baseline(comparison, times) if comparison else [],
        time_to_published=_to_published(recorded, times),
        costs=costs(comparison, times) if comparison else [],
        searches=[search_of(name, recorded.found[name]) for name in complete],
        outside=final_losses(outside) if outside else [],
        left_out=recorded.left_out,
    )


def _to_baseline(comparison: Comparison, times: Any) -> list[Reach]:
    targets = baseline_targets(comparison)
    return [] if targets is None else reaches(comparison, targets, times)


def _to_published(recorded: Recorded, times: Any) -> dict[float, list[Reach]]:
    comparison, study = recorded.comparison, recorded.study
    if comparison is None or study.task != "lm" or study.options.get("size") != "1m":
        return {}
    return {
        perplexity: reaches(comparison, dict.fromkeys(comparison.seeds, math.log(perplexity)), times)
        for perplexity in PUBLISHED_PERPLEXITIES
    }


def _provenance(recorded: Recorded) -> Provenance:
    plan, study = recorded.study.plan(), recorded.study
    runs = [pair for found in recorded.found.values() for pair in (*found.trials, *found.finals)]
    config = runs[-1][0] if runs else {"data": "hub", "device": "cpu"}
    return Provenance(
        study=recorded.name,
        task=study.task,
        options=study.options,
        data=config["data"],
        text=text_of(study.task, study.options, config["data"]),
        target=target_of(study.task, study.options),
        extras=recorded.extras,
        device=config["device"],
        tuning_seed=plan.tuning_seed if plan.trials else None,
        confirmations=plan.confirmations,
        confirmation_seeds=tuple(plan.confirmation_seeds),
        seeds=tuple(plan.seeds),
        environments=_different([run.measures["environment"] for _, run in runs]),
        timing_environment=recorded.timing.environment if recorded.timing else None,
    )


def text_of(task: str, options: Mapping[str, Any], data: str) -> str:
    """On what a task trains and where it is judged."""
    if task == "lm":
        return ORIGINS["wikitext", data]
    if task == "encoder":
        return "; ".join(ORIGINS[text, data] for text in ("wikitext", "shakespeare", "gsm8k"))
    return f"{ORIGINS[options['text'], data]}; the base model was pretrained by the suite on WikiText-2 with Muon"


def target_of(task: str, options: Mapping[str, Any]) -> str:
    """What a task predicts."""
    if task == "encoder":
        return "window"
    return "byte of the answers" if options.get("text") == "gsm8k" else "byte"


def _size(run: Run) -> Size:
    measures = run.measures
    steps = run.conditions["steps"]
    return Size(measures["parameters"], measures["trained_parameters"], steps, targets_per_step(run))


def _different(values: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Each once, in the order in which they appear."""
    seen: list[Mapping[str, Any]] = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return tuple(seen)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
