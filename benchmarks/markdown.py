"""Summaries of studies as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.optimizers import ADAPTERS
from benchmarks.summary import SUBJECT, Provenance, Summary
from benchmarks.tables import BASELINE, Cost, Reach, Search
from scao_hf.finetune.comparison.statistics import Estimate

RESULTS = "benchmarks/results"
"""Where the repository keeps its results."""
NONE = "–"
MEGABYTE = 1e6
UNDECIDED = "≈"
VERSIONS = ("torch", "transformers", "peft", "scao-hf")


def summary_page(summary: Summary, figures: Sequence[str]) -> str:
    """The page of one study, with every table and the figures, by file name."""
    sections = [
        _heading(summary),
        *(_losses(summary) if summary.losses else []),
        *(_time_to_baseline(summary) if summary.time_to_baseline else []),
        *(_time_to_published(summary) if summary.time_to_published else []),
        *(_costs(summary) if summary.costs else []),
        *(_searches(summary) if summary.searches else []),
        *(_outside(summary) if summary.outside else []),
        *(_left_out(summary.left_out) if summary.left_out else []),
        *(_figures(figures) if figures else []),
    ]
    return "\n\n".join(sections) + "\n"


def overview_page(summaries: Sequence[Summary]) -> str:
    """All studies, a headline table each."""
    parts = ["# Results", "One table a study; its name leads to all tables, the search, the costs and the figures."]
    for summary in summaries:
        parts += [f"## [{summary.provenance.study}]({summary.provenance.study}/summary.md)", _description(summary)]
        parts += [_headline(summary), *_notes(summary)] if summary.losses else []
        parts += [_left_out_sentence(summary.left_out)] if summary.left_out else []
        parts.append(footer(summary.provenance, timed=bool(summary.provenance.timing_environment)))
    return "\n\n".join(parts) + "\n"


def readme_block(summaries: Sequence[Summary], results: str) -> str:
    """The headline of all studies, a row each; empty without any.

    Args:
        summaries: of the studies; those without a complete competitor are passed over.
        results: path from the README to the results.
    """
    told = [summary for summary in summaries if summary.losses]
    if not told:
        return ""
    base, ours = title(BASELINE), title(SUBJECT)
    losses = [f"{base}, final loss", ours, f"− {base} (95%)", "best other", "− it (95%)"]
    header = ["", *losses, f"steps to {base}'s loss, ×", "seconds, ×", "state, ×"]
    explained = (
        f"Losses are nats per target, mean ± standard deviation over seeds; differences are {ours}'s loss less the "
        f"other's, paired by seed, and {UNDECIDED} marks those that decide nothing: their interval covers zero, or "
        f"there are fewer than three seeds. × is {base}'s; in brackets the lowest of the others."
    )
    rows = [[f"[{each.provenance.study}]({results}/{each.provenance.study}/summary.md)", *_row(each)] for each in told]
    return "\n\n".join([table(header, rows), explained, *_readme_footers(told)])


# A page of one study


def _heading(summary: Summary) -> str:
    return f"# {summary.provenance.study}\n\n{_description(summary)}"


def _description(summary: Summary) -> str:
    options = ", ".join(f"{name} {value}" for name, value in summary.provenance.options.items())
    task = f"Task `{summary.provenance.task}` ({options})"
    if summary.size is None:
        return f"{task}: no optimizer has all its runs yet."
    size = summary.size
    trained = "all" if size.trained_parameters == size.parameters else f"{size.trained_parameters:,}"
    return (
        f"{task}: {size.parameters:,} parameters, {trained} of them trained, for {size.steps} steps of "
        f"{size.targets_per_step:,.0f} targets, each a {summary.provenance.target}."
    )


def _losses(summary: Summary) -> list[str]:
    judged = any(row.accuracy for row in summary.losses)
    quality = ["final loss", "perplexity", *(["accuracy"] if judged else [])]
    header = ["", *quality, f"− {title(BASELINE)} (95%)", "verdict", "area", "trials", "setting"]
    rows = [
        [
            title(row.optimizer),
            spread(row.loss),
            spread(row.perplexity, 2),
            *([spread(row.accuracy)] if judged else []),
            interval(row.from_baseline, summary.supports_claims),
            NONE if row.from_baseline is None else judgement(row.from_baseline, summary.supports_claims),
            spread(row.training_area),
            str(row.trials),
            setting(row.setting),
        ]
        for row in summary.losses
    ]
    parts = [
        "## Final loss",
        f"Nats per {summary.provenance.target} on the whole evaluation set after the last step, mean ± standard "
        "deviation over seeds; perplexity is exp(loss); area is the mean training loss over all steps.",
        table(header, rows),
        *_notes(summary),
        footer(summary.provenance),
    ]
    return parts + (_subject_differences(summary) if summary.subject_differences else [])


def _subject_differences(summary: Summary) -> list[str]:
    ours = title(SUBJECT)
    rows = [
        [
            title(row.theirs),
            interval(row.difference, summary.supports_claims),
            judgement(row.difference, summary.supports_claims),
        ]
        for row in summary.subject_differences
    ]
    return [
        f"## {ours} against each",
        f"Final loss of {ours} less the other's, paired by seed.",
        table(["", f"{ours} − other (95%)", f"{ours} is"], rows),
        footer(summary.provenance),
    ]


def _notes(summary: Summary) -> list[str]:
    if not summary.supports_claims:
        count = len(summary.provenance.seeds)
        return [f"No claim: {count} seed{'s' * (count > 1)}; a claim needs three."]
    return [
        "Differences are paired by seed, with Student's t interval for each comparison alone; "
        '"not distinguishable" is where it covers zero.'
    ]


def _time_to_baseline(summary: Summary) -> list[str]:
    base = title(BASELINE)
    timed = any(row.mean_seconds for row in summary.time_to_baseline)
    header = ["", "steps", f"× {base}'s (95%)", *(["seconds", f"× {base}'s (95%)"] if timed else [])]
    rows = [
        [
            title(row.optimizer),
            reached(row),
            interval(row.step_ratio, summary.supports_claims, signed=False),
            *(
                [
                    spread(row.mean_seconds, 1),
                    interval(row.second_ratio, summary.supports_claims, signed=False),
                ]
                if timed
                else []
            ),
        ]
        for row in summary.time_to_baseline
    ]
    return [
        f"## Time to {base}'s final loss",
        f"The target is the last point of tuned {base}'s own curve at the same seed, on the evaluation batches of the "
        "curves; steps are interpolated between points. All runs decay their learning rate towards the last step, so "
        f"this is early in the schedule of whoever gets there first. {_on_seconds(timed)}",
        table(header, rows),
        footer(summary.provenance, timed),
    ]


def _time_to_published(summary: Summary) -> list[str]:
    columns = next(iter(summary.time_to_published.values()))
    timed = any(row.mean_seconds for row in columns)
    rows = [
        [f"{perplexity:.2f}", *(_steps_and_seconds(row) for row in rows)]
        for perplexity, rows in summary.time_to_published.items()
    ]
    return [
        "## Time to the published perplexities",
        f"Perplexity per byte on the batches of the curves; steps{' / seconds' if timed else ''}, mean over seeds. "
        f"{_on_seconds(timed)}",
        table(["perplexity", *(title(row.optimizer) for row in columns)], rows),
        footer(summary.provenance, timed),
    ]


def _steps_and_seconds(row: Reach) -> str:
    if row.mean_steps is None:
        return reached(row)
    return f"{row.mean_steps.mean:.0f}" + (f" / {row.mean_seconds.mean:.1f}" if row.mean_seconds else "")


def _on_seconds(timed: bool) -> str:
    if timed:
        return "Seconds are steps times the mean step time of the interleaved timing; their spread is the steps'."
    return "Seconds are left out: the steps of these optimizers were not timed side by side."


def _costs(summary: Summary) -> list[str]:
    base = title(BASELINE)
    timed = any(row.step_seconds for row in summary.costs)
    times = ["ms a step", f"× {base}'s", "ms in the optimizer", "share", "targets/s"] if timed else []
    rows = [
        [title(row.optimizer), *(_times(row) if timed else []), *_memory(row)]
        for row in sorted(summary.costs, key=lambda row: row.state_bytes)
    ]
    how = (
        "Wall-clock times, mean ± standard deviation over blocks of steps of all optimizers in turn in one process; "
        "targets/s counts what is predicted and enters the loss."
        if timed
        else "Times are left out: the steps of these optimizers were not timed side by side."
    )
    return [
        "## Cost",
        f"{how} Peak memory is the largest of the final runs: allocated on a GPU, resident in the process elsewhere.",
        table(["", *times, "state, MB", f"× {base}'s", "peak, MB"], rows),
        footer(summary.provenance, timed),
    ]


def _times(row: Cost) -> list[str]:
    if row.step_seconds is None or row.optimizer_seconds is None or row.targets_per_second is None:
        return [NONE] * 5
    return [
        milliseconds(row.step_seconds, 1),
        NONE if row.step_ratio is None else f"{row.step_ratio.mean:.2f}",
        milliseconds(row.optimizer_seconds, 2),
        f"{row.share:.0%}",
        f"{row.targets_per_second:,.0f}",
    ]


def _memory(row: Cost) -> list[str]:
    ratio = NONE if row.state_ratio is None else f"{row.state_ratio:.2f}"
    return [f"{row.state_bytes / MEGABYTE:.2f}", ratio, f"{row.peak_bytes / MEGABYTE:.0f}"]


def _searches(summary: Summary) -> list[str]:
    coordinates = list(dict.fromkeys(name for row in summary.searches for name in row.tried))
    rows = [
        [
            title(row.optimizer),
            *(_tried(row, name) for name in coordinates),
            f"{row.trials}" + (f", {row.diverged} diverged" if row.diverged else ""),
            NONE if math.isnan(row.best_loss) else f"{row.best_loss:.3f}",
            f"`{row.version}`",
        ]
        for row in summary.searches
    ]
    return [
        "## Search",
        "Values tried, the chosen one in bold. Each trial is a full run, judged on the evaluation set of the final "
        "ones, at a seed that they do not use; `runs.csv` has a row for each. The last column is the version of the "
        "code that the runs depend on.",
        table(["", *coordinates, "trials", "best trial's loss", "code"], rows),
        footer(summary.provenance),
    ]


def _tried(row: Search, name: str) -> str:
    if name not in row.tried:
        return NONE
    return ", ".join(f"**{short(each)}**" if each == row.chosen[name] else short(each) for each in row.tried[name])


def _outside(summary: Summary) -> list[str]:
    rows = [
        [title(row.optimizer), spread(row.loss), spread(row.perplexity, 2), str(row.trials), setting(row.setting)]
        for row in summary.outside
    ]
    return [
        "## Outside the protocol (own schedule)",
        "These bring a learning-rate schedule of their own, so that their runs are compared with no others.",
        table(["", "final loss", "perplexity", "trials", "setting"], rows),
        footer(summary.provenance),
    ]


def _left_out(reasons: Mapping[str, str]) -> list[str]:
    return ["## Left out", "\n".join(f"- {title(name)}: {reason}." for name, reason in reasons.items())]


def _left_out_sentence(reasons: Mapping[str, str]) -> str:
    return "Left out: " + "; ".join(f"{title(name)} ({reason})" for name, reason in reasons.items()) + "."


def _figures(names: Sequence[str]) -> list[str]:
    return ["## Figures", *(f"![{name.replace('_', ' ')}]({name}.svg)" for name in names)]


# Headlines


def _headline(summary: Summary) -> str:
    base = title(BASELINE)
    header = ["", "final loss", f"− {base} (95%)", "verdict", f"steps to {base}'s loss, ×", "seconds, ×", "state, ×"]
    steps, seconds, states = _step_ratios(summary), _second_ratios(summary), _state_ratios(summary)
    rows = [
        [
            title(row.optimizer),
            spread(row.loss),
            interval(row.from_baseline, summary.supports_claims),
            NONE if row.from_baseline is None else judgement(row.from_baseline, summary.supports_claims),
            *(ratios.get(row.optimizer, NONE) for ratios in (steps, seconds, states)),
        ]
        for row in summary.losses
    ]
    return table(header, rows)


def _row(summary: Summary) -> list[str]:
    """Of the README: the subject beside the baseline and the best of the others."""
    losses = {row.optimizer: row for row in summary.losses}
    others = [row.optimizer for row in summary.losses if row.optimizer not in (BASELINE, SUBJECT)]
    differences = {row.theirs: row.difference for row in summary.subject_differences}
    best = f"{title(others[0])} {spread(losses[others[0]].loss)}" if others else NONE
    ratios = [_step_ratios(summary), _second_ratios(summary), _state_ratios(summary)]
    return [
        *(spread(losses[name].loss) if name in losses else NONE for name in (BASELINE, SUBJECT)),
        _marked(differences.get(BASELINE), summary.supports_claims),
        best,
        _marked(differences.get(others[0]) if others else None, summary.supports_claims),
        *(_beside_others(each, others) for each in ratios),
    ]


def _marked(difference: Estimate | None, supports_claims: bool) -> str:
    told = interval(difference, supports_claims)
    decided = difference is None or (supports_claims and not difference.covers_zero)
    return told if decided else f"{told} {UNDECIDED}"


def _beside_others(ratios: Mapping[str, str], others: Sequence[str]) -> str:
    """The subject's ratio, and the lowest number among the others' in brackets."""
    numbers = {name: ratios[name] for name in others if ratios.get(name, NONE)[0].isdigit()}
    own = ratios.get(SUBJECT, NONE)
    if not numbers:
        return own
    lowest = min(numbers, key=lambda name: float(numbers[name]))
    return f"{own} ({title(lowest)} {numbers[lowest]})"


def _step_ratios(summary: Summary) -> dict[str, str]:
    return {row.optimizer: _ratio(row, row.step_ratio) for row in summary.time_to_baseline}


def _second_ratios(summary: Summary) -> dict[str, str]:
    return {row.optimizer: _ratio(row, row.second_ratio) for row in summary.time_to_baseline}


def _ratio(row: Reach, ratio: Estimate | None) -> str:
    if row.mean_steps is None:
        return reached(row)
    return NONE if ratio is None else f"{ratio.mean:.2f}"


def _state_ratios(summary: Summary) -> dict[str, str]:
    return {row.optimizer: f"{row.state_ratio:.2f}" for row in summary.costs if row.state_ratio is not None}


def _readme_footers(summaries: Iterable[Summary]) -> list[str]:
    """Commands, hardware and seeds, once for all studies where they agree."""
    groups: dict[Any, list[Provenance]] = {}
    for summary in summaries:
        made = summary.provenance
        groups.setdefault((_made_with(made), made.data, made.device, made.extras), []).append(made)
    return [_joint_footer(members) for members in groups.values()]


def _joint_footer(members: Sequence[Provenance]) -> str:
    names = " ".join(member.study for member in members)
    commands = _commands(members[0], names, timed=any(member.timing_environment for member in members))
    texts = "; ".join(dict.fromkeys(member.text for member in members))
    return f"<sub>{commands}. {_made_with(members[0])} {texts}.</sub>"


# Footers


def footer(provenance: Provenance, timed: bool = False) -> str:
    """What reproduces a table, and what it was made with."""
    return f"<sub>{_commands(provenance, provenance.study, timed)}. {_made_with(provenance)} {provenance.text}.</sub>"


def _commands(provenance: Provenance, names: str, timed: bool) -> str:
    data = " --data-dir DATA" if provenance.data == "local" else ""
    device = f" --device {provenance.device}" if provenance.device != "cpu" else ""
    study = f"python -m benchmarks study {names}{data}{device} --out {RESULTS}"
    extras = "".join(f" --optimizer {name}" for name in provenance.extras)
    commands = [f"`{study}`", *([f"`{study}{extras}`"] if extras else [])]
    if timed:
        commands.append(f"`python -m benchmarks timing {names}{data}{device} --out {RESULTS}`")
    commands.append(f"`python -m benchmarks report {names} --out {RESULTS}`")
    return ", then ".join(commands)


def _made_with(provenance: Provenance) -> str:
    environments = [*provenance.environments]
    if provenance.timing_environment and provenance.timing_environment not in environments:
        environments.append(provenance.timing_environment)
    hardware = " / ".join(dict.fromkeys(map(hardware_of, environments)))
    versions = " / ".join(dict.fromkeys(map(versions_of, environments)))
    seeds = f"seed{'s' * (len(provenance.seeds) > 1)} {', '.join(map(str, provenance.seeds))}"
    tuned = "Not tuned" if provenance.tuning_seed is None else f"Tuned on seed {provenance.tuning_seed}"
    return f"{hardware}; {versions}. {tuned}, final runs on {seeds}."


def hardware_of(environment: Mapping[str, Any]) -> str:
    threads = environment["threads"]
    return f"{environment['processor']}, {environment['cores']} cores, {threads} thread{'s' * (threads > 1)} a run"


def versions_of(environment: Mapping[str, Any]) -> str:
    packages = [f"{name} {environment[name]}" for name in VERSIONS if name in environment]
    return ", ".join([f"Python {environment['python']}", *packages])


# Cells


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
