"""The rules of a comparison, and the refusal of one that breaks them.

Nothing here trusts a configuration: conditions are digests that every run took of what it was given (its initial
weights, its batches in order, its evaluation set), and a comparison is made of runs alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from scao_hf.finetune.comparison.runs import Run, Setting, canonical
from scao_hf.finetune.comparison.tuning import RATE, Trial

LEAST_SEEDS = 3
"""Seeds that a claim needs."""

CONDITIONS = ("initialisation", "data_order", "clipping", "evaluation_set", "schedule", "token_budget")
"""What every run has to say of itself; whatever else it says must be equal as well."""


class ProtocolError(Exception):
    """A comparison that would not be fair, with what makes it so."""


@dataclass(frozen=True)
class Entry:
    """One competitor: the runs its setting was chosen by, and the runs at that setting."""

    name: str
    trials: tuple[Run, ...]
    finals: tuple[Run, ...]

    @property
    def chosen(self) -> Setting:
        return chosen(self.trials)

    @property
    def searched(self) -> tuple[Run, ...]:
        """The trials of the search itself, all on one seed; the others confirm the best of them on further seeds."""
        return tuple(run for run in self.trials if run.seed == self.trials[0].seed)

    @property
    def losses(self) -> list[float]:
        """Final losses, by ascending seed."""
        return [run.loss for run in sorted(self.finals, key=lambda run: run.seed)]


@dataclass(frozen=True)
class Comparison:
    """Competitors that had the same chance; made by `compare` alone."""

    entries: Mapping[str, Entry]
    seeds: tuple[int, ...]

    @property
    def supports_claims(self) -> bool:
        return len(self.seeds) >= LEAST_SEEDS


def compare(runs: Iterable[tuple[str, Sequence[Run], Sequence[Run]]]) -> Comparison:
    """Put competitors side by side, or refuse.

    Args:
        runs: (name, trials, finals) for each; trials may be empty for all of them: settings nobody tuned. Trials begin
            with those of the search, on one seed; those of its best settings on further seeds may follow.

    Raises:
        ProtocolError: nothing to compare; unequal numbers of trials; trials that all diverged; an optimum on the edge
            of its learning rates; finals at another setting than the best trial's; seeds that differ or that the
            tuning has seen; conditions that differ or that a run does not tell.
    """
    entries = [Entry(name, tuple(trials), tuple(finals)) for name, trials, finals in runs]
    if not entries:
        raise ProtocolError("there is nothing to compare")
    if len(entries) != len({entry.name for entry in entries}):
        raise ProtocolError("two competitors have the same name")
    for entry in entries:
        _require_own_runs(entry)
    _require_equal_trials(entries)
    for entry in entries:
        if entry.trials:
            _require_tuned(entry)
        _require_one_setting(entry)
    _require_same_seeds(entries)
    _require_same_conditions([run for entry in entries for run in entry.trials], "tuning")
    _require_same_conditions([run for entry in entries for run in entry.finals], "final")
    return Comparison({entry.name: entry for entry in entries}, tuple(sorted({r.seed for r in entries[0].finals})))


def as_trials(runs: Iterable[Run]) -> list[Trial]:
    return [Trial(run.setting, run.loss) for run in runs]


def leaders(trials: Sequence[Run], count: int) -> list[Setting]:
    """The settings of the best `count` trials of a search, best first, the earlier of equals."""
    return [run.setting for run in sorted(trials, key=lambda run: run.loss)[:count]]


def chosen(trials: Sequence[Run]) -> Setting:
    """The setting with the lowest mean loss among those that were run on the most seeds.

    Raises:
        ProtocolError: none of them has a finite loss.
    """
    by_setting: dict[str, list[Run]] = {}
    for run in trials:
        by_setting.setdefault(canonical(run.setting), []).append(run)
    most = max(len(runs) for runs in by_setting.values())
    means = [(fmean(r.loss for r in runs), runs[0].setting) for runs in by_setting.values() if len(runs) == most]
    mean, setting = min(means, key=lambda pair: pair[0])
    if not math.isfinite(mean):
        raise ProtocolError(
            f"none of the {len(trials)} trials of {trials[0].arm} ended with a finite loss; "
            "start its search at a smaller learning rate, or give all optimizers more trials"
        )
    return setting


def _require_own_runs(entry: Entry) -> None:
    if not entry.finals:
        raise ProtocolError(f"{entry.name} has no final runs")
    for run in (*entry.trials, *entry.finals):
        if run.arm != entry.name:
            raise ProtocolError(f"{entry.name} is given a run of {run.arm}")
        if untold := [name for name in CONDITIONS if name not in run.conditions]:
            raise ProtocolError(f"a run of {entry.name} does not tell its {_spelled(', '.join(untold))}")
    if seen := {run.seed for run in entry.trials} & {run.seed for run in entry.finals}:
        raise ProtocolError(f"{entry.name} was tuned on seed {min(seen)}, which its final runs use")


def _require_equal_trials(entries: Sequence[Entry]) -> None:
    for entry in entries:
        if len({(canonical(run.setting), run.seed) for run in entry.trials}) < len(entry.trials):
            raise ProtocolError(f"{entry.name} has a tuning trial twice")
    if len({len(entry.trials) for entry in entries}) > 1:
        told = ", ".join(f"{entry.name} {len(entry.trials)}" for entry in entries)
        raise ProtocolError(f"unequal numbers of tuning trials: {told}; give every optimizer the same")
    for entry in entries[1:]:
        ours, theirs = (Counter(run.seed for run in each.trials) for each in (entries[0], entry))
        if ours != theirs:
            told = f"{entries[0].name} {dict(sorted(ours.items()))}, {entry.name} {dict(sorted(theirs.items()))}"
            raise ProtocolError(f"different tuning seeds (seed: trials): {told}")


def _require_tuned(entry: Entry) -> None:
    _require_confirmed_alike(entry)
    setting = entry.chosen
    rates = [run.setting[RATE] for run in entry.trials]
    if not min(rates) < setting[RATE] < max(rates):
        raise ProtocolError(
            f"the best learning rate of {entry.name}, {setting['lr']:g}, is the smallest or the largest tried; "
            "give all optimizers more trials"
        )
    if any(canonical(run.setting) != canonical(setting) for run in entry.finals):
        raise ProtocolError(f"{entry.name} has final runs at another setting than its best trial's")


def _require_confirmed_alike(entry: Entry) -> None:
    """Every further seed has to run the best settings of the search and no others: a seed more is a chance more."""
    for seed in sorted({run.seed for run in entry.trials} - {entry.trials[0].seed}):
        confirmed = {canonical(run.setting) for run in entry.trials if run.seed == seed}
        if confirmed != {canonical(setting) for setting in leaders(entry.searched, len(confirmed))}:
            raise ProtocolError(f"on tuning seed {seed}, {entry.name} has trials of others than its best settings")


def _require_one_setting(entry: Entry) -> None:
    if len({canonical(run.setting) for run in entry.finals}) > 1:
        raise ProtocolError(f"the final runs of {entry.name} have different settings")


def _require_same_seeds(entries: Sequence[Entry]) -> None:
    first = sorted(run.seed for run in entries[0].finals)
    if len(first) != len(set(first)):
        raise ProtocolError(f"{entries[0].name} has a seed twice: {first}")
    for entry in entries[1:]:
        seeds = sorted(run.seed for run in entry.finals)
        if seeds != first:
            raise ProtocolError(f"different seeds: {entries[0].name} {first}, {entry.name} {seeds}")


def _require_same_conditions(runs: Sequence[Run], what: str) -> None:
    by_seed: dict[int, Run] = {}
    for run in runs:
        first = by_seed.setdefault(run.seed, run)
        for key in sorted(first.conditions.keys() | run.conditions.keys()):
            ours, theirs = first.conditions.get(key), run.conditions.get(key)
            if ours != theirs:
                raise ProtocolError(
                    f"different {_spelled(key)} in the {what} runs of seed {run.seed}: "
                    f"{first.arm} {ours}, {run.arm} {theirs}"
                )


def _spelled(key: str) -> str:
    return key.replace("_", " ")
