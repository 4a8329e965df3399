"""Headlines: the overview of all studies, and the block in the README."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.reporting.markdown import (
    NONE,
    commands,
    footer,
    interval,
    judgement,
    level,
    made_with,
    reached,
    spread,
    table,
    title,
)
from benchmarks.reporting.pages import description, notes
from benchmarks.reporting.summary import SUBJECT, Provenance, Summary
from benchmarks.reporting.tables import BASELINE, Reach
from scao_hf.finetune.comparison.statistics import Estimate

UNDECIDED = "≈"


def overview_page(summaries: Sequence[Summary], others: Sequence[str] = ()) -> str:
    """All studies, a headline table each.

    Args:
        summaries: of the studies.
        others: folders beside theirs that have a summary as well.
    """
    parts = ["# Results", "One table a study; its name leads to all tables, the search, the costs and the figures."]
    if others:
        parts.append("Not studies: " + ", ".join(f"[{name}]({name}/summary.md)" for name in others) + ".")
    for summary in summaries:
        parts += [f"## [{summary.provenance.study}]({summary.provenance.study}/summary.md)", description(summary)]
        parts += [_headline(summary), *notes(summary)] if summary.losses else []
        parts += [_left_out_sentence(summary.left_out)] if summary.left_out else []
        parts.append(footer(summary.provenance, timed=bool(summary.provenance.timing_environment)))
    return "\n\n".join(parts) + "\n"


def _left_out_sentence(reasons: Mapping[str, str]) -> str:
    return "Left out: " + "; ".join(f"{title(name)} ({reason})" for name, reason in reasons.items()) + "."


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


def _headline(summary: Summary) -> str:
    base = title(BASELINE)
    difference = f"− {base}{level(summary.supports_claims)}"
    header = ["", "final loss", difference, "verdict", f"steps to {base}'s loss, ×", "seconds, ×", "state, ×"]
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
        groups.setdefault((made_with(made), made.data, made.device, made.extras), []).append(made)
    return [_joint_footer(members) for members in groups.values()]


def _joint_footer(members: Sequence[Provenance]) -> str:
    names = " ".join(member.study for member in members)
    made = commands(members[0], names, timed=any(member.timing_environment for member in members))
    texts = "; ".join(dict.fromkeys(member.text for member in members))
    return f"<sub>{made}. {made_with(members[0])} {texts}.</sub>"
