"""From runs to rows: what the tables say, before anybody decides how they look."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.reporting.recorded import Found, StepTimes
from scao_hf.finetune.comparison.protocol import Comparison, Entry
from scao_hf.finetune.comparison.runs import Run, Setting, canonical, digest
from scao_hf.finetune.comparison.statistics import Estimate, estimate, paired_difference, steps_to
from scao_hf.finetune.comparison.study import Config

BASELINE = "adamw"
PACKAGES = ("python", "torch", "transformers", "peft", "scao-hf")
Row = dict[str, Any]


# Losses


@dataclass(frozen=True)
class FinalLoss:
    """What a competitor came to at its best setting."""

    optimizer: str
    setting: Setting
    trials: int
    losses: tuple[float, ...]
    """By ascending seed."""
    loss: Estimate
    perplexity: Estimate
    """exp(loss)."""
    accuracy: Estimate | None
    """On the evaluation set; None where the task has no such thing."""
    training_area: Estimate
    """Mean training loss over all steps: the area under that curve."""
    from_baseline: Estimate | None
    """Its losses less the baseline's, paired by seed; None for the baseline itself, and without one."""


def final_losses(comparison: Comparison) -> list[FinalLoss]:
    """Lowest mean first."""
    baseline = comparison.entries.get(BASELINE)
    return sorted(
        (_final_loss(entry, baseline) for entry in comparison.entries.values()), key=lambda row: row.loss.mean
    )


def _final_loss(entry: Entry, baseline: Entry | None) -> FinalLoss:
    theirs = None if baseline is None or baseline is entry else baseline.losses
    return FinalLoss(
        optimizer=entry.name,
        setting=entry.finals[0].setting,
        trials=len(entry.trials),
        losses=tuple(entry.losses),
        loss=estimate(entry.losses),
        perplexity=estimate([perplexity(loss) for loss in entry.losses]),
        accuracy=_accuracy(entry.finals),
        training_area=estimate([training_area(run) for run in entry.finals]),
        from_baseline=None if theirs is None else paired_difference(entry.losses, theirs),
    )


def _accuracy(runs: Sequence[Run]) -> Estimate | None:
    accuracies = [run.measures["accuracy"] for run in runs if "accuracy" in run.measures]
    return estimate(accuracies) if accuracies else None


def perplexity(loss: float) -> float:
    """exp(loss), infinite where it overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def training_area(run: Run) -> float:
    """Mean training loss over all steps; infinite for a run that diverged."""
    return statistics.fmean(run.measures["train_losses"]) if math.isfinite(run.loss) else math.inf


@dataclass(frozen=True)
class Difference:
    """Final losses of one less those of another, paired by seed."""

    ours: str
    theirs: str
    difference: Estimate


def differences(comparison: Comparison, ours: str) -> list[Difference]:
    """Of one competitor to each other; none when it is not in the comparison."""
    if ours not in comparison.entries:
        return []
    losses = comparison.entries[ours].losses
    return [
        Difference(ours, entry.name, paired_difference(losses, entry.losses))
        for entry in comparison.entries.values()
        if entry.name != ours
    ]


# Time to a target


@dataclass(frozen=True)
class Reach:
    """How long a competitor takes to a loss."""

    optimizer: str
    steps: tuple[float | None, ...]
    """By ascending seed; None where it never comes down to the target."""
    mean_steps: Estimate | None
    """None unless every seed reaches the target; so are the others."""
    step_ratio: Estimate | None
    """Steps over the baseline's, paired by seed; None for the baseline itself."""
    mean_seconds: Estimate | None
    """Steps times the mean step time; the spread is that of the steps. None without timing."""
    second_ratio: Estimate | None


def baseline_targets(comparison: Comparison) -> dict[int, float] | None:
    """By seed, the last point of the baseline's curve; None without a baseline, and where it diverged."""
    baseline = comparison.entries.get(BASELINE)
    if baseline is None or not all(math.isfinite(loss) for loss in baseline.losses):
        return None
    return {run.seed: run.curve[-1][1] for run in baseline.finals}


def reaches(comparison: Comparison, targets: Mapping[int, float], times: Mapping[str, StepTimes]) -> list[Reach]:
    """Time to a target of each seed, for every competitor.

    Args:
        comparison: whose curves are read.
        targets: loss by seed, on the batches of the curves.
        times: by competitor; may lack some.
    """
    steps = {
        name: tuple(steps_to(run.curve, targets[run.seed]) for run in sorted(entry.finals, key=lambda run: run.seed))
        for name, entry in comparison.entries.items()
    }
    seconds = {name: statistics.fmean(times[name].step_seconds) for name in steps if name in times}
    return [_reach(name, steps, seconds) for name in steps]


def _reach(name: str, steps: Mapping[str, tuple[float | None, ...]], seconds: Mapping[str, float]) -> Reach:
    ours, theirs = _all_reached(steps[name]), _all_reached(steps.get(BASELINE, ()))
    mean = estimate(ours) if ours else None
    ratio = None
    if name != BASELINE and ours and theirs and all(theirs):
        ratio = estimate([mine / baseline for mine, baseline in zip(ours, theirs, strict=True)])
    slower = seconds[name] / seconds[BASELINE] if name in seconds and BASELINE in seconds else None
    return Reach(
        optimizer=name,
        steps=steps[name],
        mean_steps=mean,
        step_ratio=ratio,
        mean_seconds=scaled(mean, seconds[name]) if mean and name in seconds else None,
        second_ratio=scaled(ratio, slower) if ratio and slower else None,
    )


def _all_reached(steps: Sequence[float | None]) -> list[float] | None:
    reached = [step for step in steps if step is not None]
    return reached if reached and len(reached) == len(steps) else None


def scaled(value: Estimate, factor: float) -> Estimate:
    """An estimate in another unit."""
    deviation = None if value.deviation is None else value.deviation * factor
    half_width = None if value.half_width is None else value.half_width * factor
    return Estimate(value.mean * factor, deviation, half_width, value.count)


# Costs


@dataclass(frozen=True)
class Cost:
    """What a step takes, and what the optimizer remembers. Times are None without timing."""

    optimizer: str
    step_seconds: Estimate | None
    """Over blocks, and so are the others."""
    optimizer_seconds: Estimate | None
    step_ratio: Estimate | None
    """Over the baseline's block beside it; None for the baseline itself."""
    targets_per_second: float | None
    state_bytes: int
    state_ratio: float | None
    """Over the baseline's."""
    peak_bytes: int
    """The largest of the final runs."""

    @property
    def share(self) -> float | None:
        """Of the step, spent in the optimizer."""
        if self.step_seconds is None or self.optimizer_seconds is None:
            return None
        return self.optimizer_seconds.mean / self.step_seconds.mean


def costs(comparison: Comparison, times: Mapping[str, StepTimes]) -> list[Cost]:
    return [_cost(entry, comparison.entries.get(BASELINE), times) for entry in comparison.entries.values()]


def _cost(entry: Entry, baseline: Entry | None, times: Mapping[str, StepTimes]) -> Cost:
    own = times.get(entry.name)
    step = estimate(own.step_seconds) if own else None
    ratio = None
    if own and BASELINE in times and entry.name != BASELINE:
        blocks = zip(own.step_seconds, times[BASELINE].step_seconds, strict=True)
        ratio = estimate([mine / theirs for mine, theirs in blocks])
    state = _largest(entry, "state_bytes")
    return Cost(
        optimizer=entry.name,
        step_seconds=step,
        optimizer_seconds=estimate(own.optimizer_seconds) if own else None,
        step_ratio=ratio,
        targets_per_second=targets_per_step(entry.finals[0]) / step.mean if step else None,
        state_bytes=state,
        state_ratio=state / _largest(baseline, "state_bytes") if baseline else None,
        peak_bytes=_largest(entry, "peak_bytes"),
    )


def targets_per_step(run: Run) -> float:
    """Targets of a step, on average."""
    return run.conditions["token_budget"] / run.conditions["steps"]


def _largest(entry: Entry, measure: str) -> int:
    return max(run.measures[measure] for run in entry.finals)


# The search


@dataclass(frozen=True)
class Search:
    """What was tried, and what was taken."""

    optimizer: str
    version: str
    """Of the code that the runs depend on."""
    tried: dict[str, list[Any]]
    """By coordinate, every value, ascending."""
    chosen: Setting
    trials: int
    diverged: int
    best_loss: float
    """Of the chosen setting, mean over the tuning seeds it was run on."""


def search_of(optimizer: str, found: Found) -> Search:
    """Of a competitor whose runs are complete."""
    trials = [run for _, run in found.trials]
    config, final = found.finals[0]
    settings = [run.setting for run in trials] or [final.setting]
    return Search(
        optimizer=optimizer,
        version=config["version"],
        tried={name: _values([setting[name] for setting in settings]) for name in final.setting},
        chosen=final.setting,
        trials=len(trials),
        diverged=sum(not math.isfinite(run.loss) for run in trials),
        best_loss=statistics.fmean(run.loss for run in trials if run.setting == final.setting) if trials else math.nan,
    )


def _values(values: Sequence[Any]) -> list[Any]:
    """Different ones, ascending."""
    return sorted({canonical(value): value for value in values}.values())


# Whole runs


def run_rows(found: Mapping[str, Found]) -> list[Row]:
    """A row for each run, trials before finals."""
    rows = []
    for runs in found.values():
        rows += [run_row("trial", config, run) for config, run in runs.trials]
        rows += [run_row("final", config, run) for config, run in runs.finals]
    return rows


def run_row(purpose: str, config: Config, run: Run) -> Row:
    measures, environment = run.measures, run.measures["environment"]
    return {
        "purpose": purpose,
        "optimizer": run.arm,
        **{name: canonical(value) if isinstance(value, list) else value for name, value in run.setting.items()},
        "seed": run.seed,
        "loss": run.loss,
        "perplexity": perplexity(run.loss),
        "training_area": training_area(run),
        "diverged_at": measures["diverged_at"],
        "step_seconds": run.step_seconds,
        "optimizer_ms": 1e3 * measures["optimizer_seconds"],
        "state_bytes": measures["state_bytes"],
        "peak_bytes": measures["peak_bytes"],
        "key": digest(config),
        "version": config["version"],
        **{name: environment.get(name) for name in (*PACKAGES, "processor", "cores", "threads", "device")},
    }


def curve_rows(found: Mapping[str, Found]) -> list[Row]:
    """A row for each point of the curves of the final runs."""
    return [
        {"optimizer": name, "seed": run.seed, "step": step, "loss": loss}
        for name, runs in found.items()
        for _, run in runs.finals
        for step, loss in run.curve
    ]
