"""The page of a study, with every table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.reporting.markdown import (
    NONE,
    footer,
    interval,
    judgement,
    level,
    milliseconds,
    reached,
    setting,
    short,
    spread,
    table,
    title,
)
from benchmarks.reporting.summary import SUBJECT, Summary
from benchmarks.reporting.tables import BASELINE, Cost, Reach, Search

MEGABYTE = 1e6


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


def _heading(summary: Summary) -> str:
    return f"# {summary.provenance.study}\n\n{description(summary)}"


def description(summary: Summary) -> str:
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
    header = [
        "",
        *quality,
        f"− {title(BASELINE)}{level(summary.supports_claims)}",
        "verdict",
        "area",
        "trials",
        "setting",
    ]
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
        *notes(summary),
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
        table(["", f"{ours} − other{level(summary.supports_claims)}", f"{ours} is"], rows),
        footer(summary.provenance),
    ]


def notes(summary: Summary) -> list[str]:
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
    ratio = f"× {base}'s{level(summary.supports_claims)}"
    header = ["", "steps", ratio, *(["seconds", ratio] if timed else [])]
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
        f"The target is the last point of {base}'s own curve at the same seed, on the evaluation batches of the "
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
        "ones, at seeds that they do not use; `runs.csv` has a row for each. The tuning loss is the chosen setting's, "
        "the mean over the tuning seeds. The last column is the version of the code that the runs depend on.",
        table(["", *coordinates, "trials", "tuning loss", "code"], rows),
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


def _figures(names: Sequence[str]) -> list[str]:
    return ["## Figures", *(f"![{name.replace('_', ' ')}]({name}.svg)" for name in names)]
