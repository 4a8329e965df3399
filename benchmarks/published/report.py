"""What came of the claims: CSV, JSON, Markdown and figures, and the block of docs/published-claims.md."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.published import source
from benchmarks.published.arms import ARMS, Arm
from benchmarks.published.claims import CLAIMS, PERCENT, SECTIONS, TIMES, Finding, Unit, judge
from benchmarks.published.figures import ablations, convergence
from benchmarks.published.measures import Evidence, perplexity
from benchmarks.published.rules import CONTROL, PENDING, VERDICTS
from benchmarks.published.runs import evidence_in
from benchmarks.reporting.markdown import NONE, hardware_of, setting, spread, table, versions_of
from benchmarks.reporting.report import DOTS_PER_INCH, link_between, with_block, write_csv
from benchmarks.reporting.tables import Row
from benchmarks.tasks.models import SHAPES
from benchmarks.tasks.texts import ORIGINS
from scao_hf.finetune.comparison.figures import save
from scao_hf.finetune.comparison.statistics import estimate

ROOT = Path(__file__).resolve().parents[2]
MEGABYTE = 1e6
WHOLE_PERCENT = Unit("+.0f", "%")
HIDDEN_OPTIONS = ("auxiliary", "betas", "weight_decay")
"""The same for all arms."""


def write_report(folder: Path, seeds: Sequence[int], page: Path | None) -> Iterator[Path]:
    """Write what a folder's runs say of the claims, yielding every file when it is done.

    Args:
        folder: with `runs.jsonl` and `timing.json`, as far as they are there; made if it is not.
        seeds: to read.
        page: a file in which the text between the markers is replaced.

    Raises:
        ValueError: the page lacks the markers.
        ProtocolError: runs that were made under different conditions.
    """
    evidence = evidence_in(folder, seeds)
    findings = [judge(claim, evidence) for claim in CLAIMS]
    rows = [row_of(finding) for finding in findings]
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "claims.csv", rows)
    yield folder / "claims.csv"
    (folder / "claims.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    yield folder / "claims.json"
    for name, figure in (("convergence", convergence(evidence)), ("ablations", ablations(findings))):
        yield from save(figure, folder / name, DOTS_PER_INCH)
    summary = folder / "summary.md"
    summary.write_text(f"# Published claims\n\n{block(findings, evidence, '')}\n", encoding="utf-8")
    yield summary
    if page is not None:
        # A page has no business with folders outside its repository.
        figures = f"{link_between(page, folder)}/" if folder.resolve().is_relative_to(ROOT) else None
        text = with_block(page.read_text(encoding="utf-8"), block(findings, evidence, figures))
        page.write_text(text, encoding="utf-8")
        yield page


def row_of(finding: Finding) -> Row:
    """A finding as plain values; what is not finite, or not there, is None."""
    claim, ours, verdict = finding
    numbers = (ours.mean, ours.deviation, ours.half_width) if ours else (None, None, None)
    mean, deviation, half_width = (value if value is not None and math.isfinite(value) else None for value in numbers)
    return {
        "id": claim.id,
        "section": next(section for section, claims in SECTIONS.items() if claim in claims),
        "what": claim.what,
        "quoted": claim.quoted,
        "published": claim.published,
        "ours": mean,
        "deviation": deviation,
        "half_width": half_width,
        "count": ours.count if ours else 0,
        "verdict": verdict.word,
        "reason": verdict.reason,
        "preconditioned_from": _beginning(claim.preconditioned_from),
        "arms": " ".join(claim.measure.arms),
    }


def block(findings: Sequence[Finding], evidence: Evidence, figures: str | None) -> str:
    """Everything that is counted or measured, as Markdown.

    Args:
        findings: of all claims.
        evidence: that they were judged by.
        figures: what to put before the figures' names; None leaves them out.
    """
    by_id = {finding.claim.id: finding for finding in findings}
    parts = ["## Verdicts", _verdicts(findings)]
    for section, claims in SECTIONS.items():
        parts += [f"### {section}", _section([by_id[claim.id] for claim in claims])]
    parts += _figures(figures) if figures is not None else []
    parts += ["### The runs", _runs(evidence)]
    parts += ["## What the published files say by themselves", *_files()]
    parts.append(_footer(evidence))
    return "\n\n".join(parts)


# Ours


def _verdicts(findings: Sequence[Finding]) -> str:
    claimed = [finding for finding in findings if finding.claim.rule is not None]
    rows = []
    for word in (*VERDICTS, PENDING):
        names = [f"`{claim.id}`" for claim, _, verdict in claimed if verdict.word == word]
        rows.append([word, str(len(names)), ", ".join(names) or NONE])
    return table(["verdict", "claims", "which"], rows)


def _section(findings: Iterable[Finding]) -> str:
    header = ["claim", "", "published", "ours, mean ± sd", "verdict", "preconditioned from step"]
    return table(header, [_cells(finding) for finding in findings])


def _cells(finding: Finding) -> list[str]:
    claim, ours, verdict = finding
    measured = NONE
    if ours is not None and math.isfinite(ours.mean):
        measured = claim.unit.write(ours.mean)
        if ours.deviation is not None and ours.count > 1:
            measured += f" ± {ours.deviation:{claim.unit.format.removeprefix('+')}}"
    elif ours is not None:
        measured = "diverged"
    judged = verdict.word if verdict.word in (CONTROL, PENDING) else f"**{verdict.word}**"
    reason = f": {verdict.reason}" if verdict.reason else ""
    beginning = _beginning(claim.preconditioned_from) or NONE
    return [f"`{claim.id}`", claim.what, claim.quoted or NONE, measured, judged + reason, beginning]


def _beginning(steps: Sequence[int | None]) -> str:
    return ", ".join("never" if step is None else str(step) for step in steps)


def _runs(evidence: Evidence) -> str:
    header = ["", "optimizer", "code", "steps", "options", "preconditioned from", "seeds", "perplexity", "state, MB"]
    return table(header, [_arm_cells(arm, evidence) for arm in ARMS.values()])


def _arm_cells(arm: Arm, evidence: Evidence) -> list[str]:
    runs = list(evidence.runs[arm.name].values())
    known = arm.optimizer == "scao_published"
    return [
        f"`{arm.name}`",
        f"`{arm.optimizer}`",
        evidence.versions[arm.optimizer] if runs else NONE,
        str(arm.steps),
        _options(arm),
        _beginning([arm.preconditioned_from()]) if known else NONE,
        ", ".join(str(run.seed) for run in runs) or NONE,
        spread(estimate([perplexity(run) for run in runs]) if runs else None, 2),
        f"{max(run.measures['state_bytes'] for run in runs) / MEGABYTE:.1f}" if runs else NONE,
    ]


def _options(arm: Arm) -> str:
    """All of them for the arms that are compared, what is changed for the others."""
    options = {name: value for name, value in {**arm.setting, **arm.more}.items() if name not in HIDDEN_OPTIONS}
    if arm.group == arm.scale:
        return setting(options)
    base = f"{arm.scale}/scao"
    changed = {name: value for name, value in options.items() if ARMS[base].setting.get(name, NONE) != value}
    return ", ".join(filter(None, [f"as `{base}`", setting(changed)]))


def _figures(prefix: str) -> list[str]:
    return [
        f"![Perplexity by step, published and ours]({prefix}convergence.svg)",
        f"![What the ablations add, published and ours]({prefix}ablations.svg)",
    ]


def _footer(evidence: Evidence) -> str:
    command = "`python -m benchmarks published`, then `--timing` for seconds and throughput"
    runs = [run for by_seed in evidence.runs.values() for run in by_seed.values()]
    if not runs:
        return f"<sub>{command}. No runs yet.</sub>"
    environments = [run.measures["environment"] for run in runs]
    hardware = " / ".join(dict.fromkeys(map(hardware_of, environments)))
    versions = " / ".join(dict.fromkeys(map(versions_of, environments)))
    texts = " / ".join(dict.fromkeys(ORIGINS["wikitext", run.conditions["data"]] for run in runs))
    seeds = ", ".join(map(str, evidence.seeds))
    timed = "" if evidence.step_seconds else " Nothing was timed side by side, so that seconds are left out."
    return f"<sub>{command}. {hardware}; {versions}. Seeds {seeds}. {texts}.{timed}</sub>"


# Theirs


def _files() -> list[str]:
    """Tables that need no run of ours."""
    return [
        "### One AdamW run under several clocks",
        _clocks(),
        "### Seconds for 25 steps in the 500-step run",
        _stretches(),
        "### The time-to-target table beside the curve that it is drawn from",
        _targets(),
        "### The lead before the first preconditioned step, and at the end",
        _leads(),
        "### Memory by arithmetic",
        _memory(),
    ]


def _clocks() -> str:
    rows = []
    for each in source.CLOCKED:
        speeds = sorted(each.tokens_per_second.values())
        against = [100 * (each.scao_tokens_per_second / speed - 1) for speed in (speeds[-1], speeds[0])]
        rows.append(
            [
                each.what,
                f"{each.final_loss:.13f}",
                str(len(speeds)),
                ", ".join(f"{speed:,.0f}" for speed in speeds),
                f"{each.scao_tokens_per_second:,.0f}",
                " to ".join(map(WHOLE_PERCENT.write, against)),
            ]
        )
    header = ["", "AdamW's final loss in all of them", "files", "its tokens/s", "SCAO's tokens/s", "SCAO over AdamW"]
    return table(header, rows)


def _stretches() -> str:
    rows = []
    for name, times in zip(("AdamW", "SCAO"), zip(*source.SECONDS_500, strict=True), strict=True):
        stretches = [later - earlier for earlier, later in pairwise(times)]
        summary = (min(stretches), statistics.median(stretches), max(stretches))
        rows.append([name, *(f"{value:.1f}" for value in summary)])
    return table(["", "fastest", "median", "slowest"], rows)


def _targets() -> str:
    seconds = dict(zip((point.step for point in source.CURVES["500"]), source.SECONDS_500, strict=True))
    rows = []
    at = {point.step: point for point in source.CURVES["500"]}
    for target in source.TARGETS:
        # Targets are published to two decimals.
        adamw = next(step for step, point in at.items() if round(point.adamw, 2) <= target.perplexity)
        scao = next(step for step, point in at.items() if round(point.scao, 2) <= target.perplexity)
        rows.append(
            [
                f"{target.perplexity:.2f}",
                f"{target.adamw_step} ({at[target.adamw_step].adamw:.2f})",
                f"{target.scao_step} ({at[target.scao_step].scao:.2f})",
                TIMES.write(target.speed_up),
                str(adamw),
                str(scao),
                TIMES.write(seconds[adamw][0] / seconds[scao][1]),
                TIMES.write(adamw / scao),
            ]
        )
    header = ["perplexity ≤", "step named for AdamW (its perplexity)", "for SCAO", "published speed-up"]
    return table([*header, "AdamW's first step there", "SCAO's", "in seconds", "in steps"], rows)


def _leads() -> str:
    rows = []
    for what, key, last_adam_step in (
        ("1M, 500 steps", "500", 100),
        ("1M, 200 steps", "200", 40),
        ("5M, 50 steps", "5m", 20),
        ("10M, 50 steps", "10m", 20),
    ):
        curve = source.CURVES[key]
        before = next(point for point in curve if point.step == last_adam_step)
        rows.append([what, str(last_adam_step), PERCENT.write(before.gap), PERCENT.write(curve[-1].gap)])
    header = ["", "last step of plain Adam", "SCAO's perplexity over AdamW's there", "at the end"]
    return table(header, rows)


def _memory() -> str:
    rows = []
    for what, row in source.MEMORY.items():
        shape = SHAPES[row.shape]
        published = [row.adamw, row.scao, row.scao_int8]
        counted = [
            source.adamw_bytes(shape),
            source.scao_bytes(shape, row.rank),
            source.scao_bytes(shape, row.rank, int8=True),
        ]
        cells = [
            NONE if quoted is None else f"{quoted:.3f} / {value / source.GIBI:.3f}"
            for quoted, value in zip(published, counted, strict=True)
        ]
        excess = counted[1] - counted[0]
        share = f"{source.factor_bytes(shape) / excess:.0%}"
        rows.append([what, f"{source.parameters(shape):,}", str(row.rank), *cells, share])
    header = ["", "parameters", "rank", "AdamW", "SCAO", "SCAO, int8", "dense factors in what SCAO adds"]
    return table(header, rows)
