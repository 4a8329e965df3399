"""Cells, tables and what stands under them, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.optimizers import ADAPTERS
from benchmarks.reporting.summary import Provenance
from benchmarks.reporting.tables import Reach
from scao_hf.finetune.comparison.statistics import Estimate

RESULTS = "benchmarks/results"
"""Where the repository keeps its results."""
NONE = "–"
VERSIONS = ("torch", "transformers", "peft", "scao-hf")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def title(optimizer: str) -> str:
    return ADAPTERS[optimizer].title


def spread(value: Estimate | None, digits: int = 3) -> str:
    """Mean ± standard deviation."""
    if value is None:
        return NONE
    if not math.isfinite(value.mean):
        return "diverged"
    deviation = "" if value.deviation is None else f" ± {value.deviation:.{digits}f}"
    return f"{value.mean:.{digits}f}{deviation}"


def milliseconds(seconds: Estimate, digits: int) -> str:
    deviation = "" if seconds.deviation is None else f" ± {1e3 * seconds.deviation:.{digits}f}"
    return f"{1e3 * seconds.mean:.{digits}f}{deviation}"


def interval(value: Estimate | None, supports_claims: bool, signed: bool = True) -> str:
    """Mean ± half of its 95% interval; the mean alone where there are too few seeds for one."""
    if value is None or not math.isfinite(value.mean):
        return NONE
    mean = f"{value.mean:+.3f}" if signed else f"{value.mean:.2f}"
    if value.half_width is None or not supports_claims:
        return mean
    return f"{mean} ± {value.half_width:.3f}" if signed else f"{mean} ± {value.half_width:.2f}"


def level(supports_claims: bool) -> str:
    """What a column of intervals says of them; nothing where there are too few seeds for any."""
    return " (95%)" if supports_claims else ""


def judgement(difference: Estimate, supports_claims: bool) -> str:
    """Of a difference of losses."""
    if not math.isfinite(difference.mean):
        return "no verdict: a run diverged"
    if not supports_claims:
        return "no claim"
    if difference.covers_zero:
        return "not distinguishable"
    return "lower" if difference.mean < 0 else "higher"


def reached(row: Reach) -> str:
    """Mean steps, or on how many seeds they do not suffice."""
    if row.mean_steps is not None:
        return spread(row.mean_steps, 0)
    missed = sum(step is None for step in row.steps)
    return "never" if missed == len(row.steps) else f"never on {missed} of {len(row.steps)} seeds"


def setting(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {short(value)}" for name, value in values.items())


def short(value: Any) -> str:
    if isinstance(value, list):
        return "(" + ", ".join(map(short, value)) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


# What stands under a table


def footer(provenance: Provenance, timed: bool = False) -> str:
    """What reproduces a table, and what it was made with."""
    return f"<sub>{commands(provenance, provenance.study, timed)}. {made_with(provenance)} {provenance.text}.</sub>"


def commands(provenance: Provenance, names: str, timed: bool) -> str:
    data = " --data-dir DATA" if provenance.data == "local" else ""
    device = f" --device {provenance.device}" if provenance.device != "cpu" else ""
    study = f"python -m benchmarks study {names}{data}{device} --out {RESULTS}"
    extras = "".join(f" --optimizer {name}" for name in provenance.extras)
    told = [f"`{study}`", *([f"`{study}{extras}`"] if extras else [])]
    if timed:
        told.append(f"`python -m benchmarks timing {names}{data}{device} --out {RESULTS}`")
    told.append(f"`python -m benchmarks report {names} --out {RESULTS}`")
    return ", then ".join(told)


def made_with(provenance: Provenance) -> str:
    environments = [*provenance.environments]
    if provenance.timing_environment and provenance.timing_environment not in environments:
        environments.append(provenance.timing_environment)
    hardware = " / ".join(dict.fromkeys(map(hardware_of, environments)))
    versions = " / ".join(dict.fromkeys(map(versions_of, environments)))
    return f"{hardware}; {versions}. {_tuned(provenance)}, final runs on {_seeds(provenance.seeds)}."


def _tuned(provenance: Provenance) -> str:
    if provenance.tuning_seed is None:
        return "Not tuned"
    tuned = f"Tuned on seed {provenance.tuning_seed}"
    if not provenance.confirmations:
        return tuned
    return (
        f"{tuned}, the best {provenance.confirmations} trials of each also on {_seeds(provenance.confirmation_seeds)}"
    )


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def hardware_of(environment: Mapping[str, Any]) -> str:
    threads = environment["threads"]
    return f"{environment['processor']}, {environment['cores']} cores, {threads} thread{'s' * (threads > 1)} a run"


def versions_of(environment: Mapping[str, Any]) -> str:
    packages = [f"{name} {environment[name]}" for name in VERSIONS if name in environment]
    return ", ".join([f"Python {environment['python']}", *packages])
